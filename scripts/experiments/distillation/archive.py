"""Finished runs and their ranks, as `run.py gather` wrote them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

DATASETS = ("beauty", "games", "mt")
SEEDS = range(3)
COLUMNS = (("plain", "R@10"), ("plain", "N@10"), ("excl", "R@10"), ("excl", "N@10"))
GAINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "R@10": lambda ranks: (ranks < 10).astype(np.float64),
    "N@10": lambda ranks: (ranks < 10) / np.log2(ranks.astype(np.float64) + 2),
}


def read_ranks(paths: Sequence[Path]) -> dict[str, dict[str, np.ndarray]]:
    """Read the ranks of all runs; the first file that has a run counts."""
    ranks: dict[str, dict[str, np.ndarray]] = {}
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                ranks.setdefault(name.removesuffix(".npz"), dict(np.load(io.BytesIO(archive.read(name)))))
    return ranks


@dataclass
class Archive:
    """Results and ranks by the id of a run, which is `<data>-<name>-s<seed>`."""

    results: dict[str, dict[str, Any]]
    ranks: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    @classmethod
    def read(cls, results: Path, ranks: Sequence[Path]) -> Archive:
        """Read results.jsonl and any number of files of ranks."""
        lines = map(json.loads, results.read_text().splitlines())
        return cls({line["job"]["id"]: line for line in lines}, read_ranks(ranks))

    def names(self, data: str) -> list[str]:
        """Names of the runs on a dataset."""
        return sorted({run.split("-", 1)[1][:-3] for run in self.results if run.startswith(f"{data}-")})

    def seeds(self, data: str, name: str) -> list[int]:
        """Seeds that have a result."""
        return [seed for seed in SEEDS if f"{data}-{name}-s{seed}" in self.results]

    def runs(self, data: str, name: str) -> list[dict[str, Any]]:
        """Results of all seeds."""
        return [self.results[f"{data}-{name}-s{seed}"] for seed in self.seeds(data, name)]

    def variants(self, data: str, name: str) -> list[str]:
        """Variants of a model that were ranked."""
        return list(self.runs(data, name)[0]["valid"])

    def valid(self, data: str, name: str, variant: str) -> float:
        """Mean of plain and seen-excluded N@10 on all valid examples, averaged over seeds: it chooses."""
        tables = [run["valid"][variant] for run in self.runs(data, name)]
        return float(np.mean([(table["plain"]["N@10"] + table["excl"]["N@10"]) / 2 for table in tables]))

    def has_ranks(self, data: str, name: str, seed: int) -> bool:
        """Whether the ranks of a run were read."""
        return f"{data}-{name}-s{seed}" in self.ranks

    def per_user(self, data: str, name: str, seed: int, variant: str, column: str, metric: str) -> np.ndarray:
        """Value of a metric for each test example."""
        return GAINS[metric](self.ranks[f"{data}-{name}-s{seed}"][f"test|{variant}|{column}"])
