"""Keeping transformers' own output off the terminal while models load and save."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def without_tensor_bars() -> Iterator[None]:
    """Keep transformers' progress bars over the tensors of a file, which take a second, off the terminal."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def without_load_report() -> Iterator[None]:
    """Keep transformers' table of missing weights off the terminal; `load_model` refuses them itself."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
