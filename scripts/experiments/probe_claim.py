"""Does the learnability probe rank item tokenizers as a trained decoder does?

    python scripts/experiments/probe_claim.py scripts/experiments/results/beauty_tokenizers.jsonl

Reads the results of beauty_tokenizers.py, averages the seeds of a tokenizer, and prints Spearman's rank correlation of
recall@10 on test with what the probe and the report say of the semantic IDs, each with the sign by which more should be
better. Intervals are percentiles of a bootstrap that draws tokenizers.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import spearmanr

MEASURES: dict[str, Callable[[dict[str, Any]], float]] = {
    "probe: -item_cross_entropy": lambda run: -run["probe"]["item_cross_entropy"],
    "probe: recall_at_50": lambda run: run["probe"]["recall_at_50"],
    "probe: ndcg_at_10": lambda run: run["probe"]["ndcg_at_10"],
    "probe: gain of level 0": lambda run: run["probe"]["gain"][0],
    "-collision rate": lambda run: -run["collision_rate"],
    "perplexity / codes of level 0": lambda run: run["perplexity_share"][0],
}


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("results", help="JSON lines of beauty_tokenizers.py")
    made.add_argument("--without", nargs="*", default=[], metavar="NAME", help="tokenizers to leave out")
    made.add_argument("--samples", type=int, default=4000)
    arguments = made.parse_args()
    runs = tokenizers(arguments.results, arguments.without)
    recall = means(runs, lambda run: run["test"]["plain"]["recall@10"])
    print(f"{len(runs)} tokenizers, {sum(map(len, runs))} runs")
    for name, measure in MEASURES.items():
        found = means(runs, measure)
        low, high = interval(found, recall, arguments.samples)
        print(f"{name:32} {spearmanr(found, recall).statistic:+.2f} [{low:+.2f}, {high:+.2f}]")


def tokenizers(path: str, without: list[str]) -> list[list[dict[str, Any]]]:
    """Runs of each tokenizer, failed ones left out."""
    by_name = defaultdict(list)
    with open(path, encoding="utf-8") as file:
        for run in map(json.loads, file):
            if "error" not in run and run["name"] not in without:
                by_name[run["name"]].append(run)
    return list(by_name.values())


def means(runs: list[list[dict[str, Any]]], measure: Callable[[dict[str, Any]], float]) -> np.ndarray:
    return np.array([np.mean([measure(run) for run in seeds]) for seeds in runs])


def interval(x: np.ndarray, y: np.ndarray, samples: int) -> np.ndarray:
    """95 % of the correlations of as many tokenizers drawn with replacement."""
    rng = np.random.default_rng(0)
    draws = [drawn for drawn in rng.integers(len(x), size=(samples, len(x))) if np.ptp(x[drawn]) and np.ptp(y[drawn])]
    return np.quantile([spearmanr(x[drawn], y[drawn]).statistic for drawn in draws], [0.025, 0.975])


if __name__ == "__main__":
    main()
