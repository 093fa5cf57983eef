"""compare: finished evaluations beside each other, after a check that they measured the same thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmrec.configs import CompareConfig
from llmrec.evaluation.compare import Run, check_comparable, compare, show
from llmrec.evaluation.html import render_comparison


def main(config: CompareConfig) -> dict[str, Any]:
    """Compare ours of every run with ours of the first and print the tables.

    Returns:
        As `llmrec.evaluation.compare.compare`.

    Raises:
        ValueError: If fewer than two runs are given, a directory is no result of `llmrec evaluate`, the runs differ in
            what they measured, or the file to write exists.
    """
    names = config.names or config.runs
    if len(names) != len(config.runs):
        raise ValueError(f"--names has {len(names)} names for {len(config.runs)} --runs; give one for each.")
    if not config.runs:
        raise ValueError("--runs is empty; give directories written by `llmrec evaluate`.")
    if len(config.runs) < 2:
        raise ValueError(f"--runs is {config.runs}; two or more are needed for a comparison.")
    if config.html is not None and Path(config.html).exists():
        raise ValueError(f"--html '{config.html}' exists; remove it or choose another file.")
    runs = [Run.load(name, path) for name, path in zip(names, config.runs, strict=True)]
    check_comparable(runs)
    result = compare(runs, config.bootstrap_samples, config.seed)
    show(result)
    if config.html is not None:
        Path(config.html).write_text(render_comparison(result), encoding="utf-8")
    return result
