"""compare: compare finished evaluations, after a check that they measured the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmrec.configs import CompareConfig
from llmrec.evaluation import compare
from llmrec.evaluation.runs import Run, check_comparable
from llmrec.evaluation.summary import OURS
from llmrec.reports.comparison import render
from llmrec.runtime import disk
from llmrec.runtime.console import tell
from llmrec.runtime.manifest import JsonObject


def main(config: CompareConfig) -> JsonObject:
    """Compare every run with the first.

    Returns:
        Result of `llmrec.evaluation.compare.compare`.

    Raises:
        ValueError: If fewer than two runs are given, a directory is no result of `llmrec evaluate` or lacks the system,
            the runs differ in what they measured, or the file to write exists.
    """
    systems: Sequence[str | None] = config.systems or [None for _ in config.runs]
    if len(systems) != len(config.runs):
        raise ValueError(f"--systems has {len(systems)} systems for {len(config.runs)} --runs; give one for each.")
    pairs = zip(config.runs, systems, strict=True)
    names = config.names or [path if system in (None, OURS) else f"{path} ({system})" for path, system in pairs]
    if len(names) != len(config.runs):
        raise ValueError(f"--names has {len(names)} names for {len(config.runs)} --runs; give one for each.")
    if not config.runs:
        raise ValueError("--runs is empty; give directories written by `llmrec evaluate`.")
    if len(config.runs) < 2:
        raise ValueError(f"--runs is {config.runs}; two or more are needed for a comparison.")
    if config.html is not None and Path(config.html).exists():
        raise ValueError(f"--html '{config.html}' exists; remove it or choose another file.")
    runs = [Run.load(*run) for run in zip(names, config.runs, systems, strict=True)]
    check_comparable(runs)
    result = compare.compare(runs, config.seed)
    if config.html is not None:
        with disk.replacing(config.html) as temporary:
            temporary.write_text(render(result), encoding="utf-8")
    return result


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    compare.show(result)
    tell("The other cut-offs, the spread over seeds and the learning curves are in --json, and on the page of --html.")
