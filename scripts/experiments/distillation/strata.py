"""NDCG@10 by how a test target follows the last item of its history in training, as markdown.

    python scripts/experiments/distillation/strata.py DATA --ranks out/ranks.zip

`seen` targets follow the last item in some training sequence, `2-hop` targets do so over one item between them, and
`never` is the rest. The rare and the frequent third are thirds of the targets by their training count.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from archive import DATASETS, GAINS, read_ranks
from scipy import sparse

MIXTURES = {"beauty": "0.5", "games": "0.7", "mt": "0.3"}  # chosen on valid


def models(data: str) -> list[tuple[str, str]]:
    """Runs and variants to show."""
    rankers = [(name, "model") for name in ("knn", "pre", "mix")]
    decoders = [("sid", "0.0"), ("aug", "0.0"), ("items+aug", "0.0"), ("items+aug", "1.0")]
    return [*rankers, *decoders, ("items+aug", MIXTURES[data]), ("items+aug-mix", "t0.5 items")]


def strata(path: Path) -> dict[str, np.ndarray]:
    """Strata of the test examples, as masks."""
    stored = dict(np.load(path))

    def sequences(name: str) -> list[np.ndarray]:
        offsets = stored[f"{name}_off"][1:-1]
        return np.split(stored[name].astype(int), offsets)

    train, size = sequences("train"), len(stored["codes"])
    pairs = np.concatenate([s[:-1] for s in train]), np.concatenate([s[1:] for s in train])
    follows = sparse.csr_matrix((np.ones(len(pairs[0]), np.float32), pairs), shape=(size, size))
    follows.data[:] = 1
    last, target = np.array([history[-1] for history in sequences("test")]), stored["test_y"].astype(int)
    seen = np.asarray(follows[last, target]).ravel() > 0
    between, precedes = np.zeros(len(target), bool), follows.T.tocsr()
    for start in range(0, len(target), 2000):
        part = slice(start, start + 2000)
        between[part] = np.asarray(follows[last[part]].multiply(precedes[target[part]]).sum(1)).ravel() > 0
    count = np.bincount(np.concatenate(train), minlength=size)[target]
    low, high = np.quantile(count, [1 / 3, 2 / 3])
    return {
        "seen": seen,
        "2-hop": ~seen & between,
        "never": ~seen & ~between,
        "rare third": count <= low,
        "frequent third": count > high,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="directory of the .npz files of export.py")
    parser.add_argument("--ranks", type=Path, nargs="+", required=True, help="ranks.zip of the runs")
    arguments = parser.parse_args()
    ranks = read_ranks(arguments.ranks)
    for data in DATASETS:
        masks = strata(arguments.data / f"{data}.npz")
        heads = " | ".join(f"{name} ({mask.mean():.2f})" for name, mask in masks.items())
        print(f"\n### {data}: N@10 plain / seen excluded by stratum (share of test examples)\n")
        print(f"| | {heads} | target within 50 |\n|---{'|---' * (len(masks) + 1)}|")
        for name, variant in models(data):
            tables = [table for run, table in ranks.items() if run.rsplit("-s", 1)[0] == f"{data}-{name}"]
            if not tables:
                continue

            def mean(column: str, mask: np.ndarray, tables: list = tables, variant: str = variant) -> float:
                return np.mean([GAINS["N@10"](table[f"test|{variant}|{column}"][mask]).mean() for table in tables])

            cells = [f"{mean('plain', mask):.4f} / {mean('excl', mask):.4f}" for mask in masks.values()]
            near = np.mean([(table[f"test|{variant}|excl"] < 50).mean() for table in tables])
            print(f"| {name} {variant} | {' | '.join(cells)} | {near:.3f} |")


if __name__ == "__main__":
    main()
