"""The kinds of fuzzed inputs, by name."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path

from tests.faults.fuzz.judge import Case

KINDS = ("files", "requests", "tables", "options")


def prepared(kind: str, directory: Path) -> Callable[[int], Case]:
    """Function that makes the case of a seed; what all cases of a kind share is made first."""
    module = importlib.import_module(f"tests.faults.fuzz.{kind}")
    if not hasattr(module, "prepare_all"):
        return functools.partial(module.case, directory=directory)
    return functools.partial(module.case, directory=directory, shared=module.prepare_all(directory))
