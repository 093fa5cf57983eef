"""Loading and saving with transformers: its own output is kept off the terminal, and its errors are one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from transformers.utils import logging as transformers_logging

from llmrec.runtime.reading import first_line


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
def _without_load_report() -> Iterator[None]:
    """Keep transformers' table of missing weights off the terminal; `load_model` refuses them itself."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


@contextlib.contextmanager
def loading(source: str | Path, loader: str) -> Iterator[None]:
    """Keep transformers quiet while a model loads, and name the model that could not be loaded.

    Raises:
        ValueError: If the block fails, whatever the library raises.
    """
    try:
        with without_tensor_bars(), _without_load_report():
            yield
    except Exception as error:  # tokenizers raises a bare one, and deep nesting a RecursionError
        raise ValueError(
            f"'{source}' cannot be loaded by {loader} ({first_line(error)}). Give a Hub id that this machine can "
            "reach, or the path of a causal LM saved as safetensors."
        ) from error
