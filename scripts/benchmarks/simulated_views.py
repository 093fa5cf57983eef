"""A view of a simulated catalogue in any dimension, written block by block: 15 GB for 10^7 items x 384.

    python scripts/benchmarks/simulated_views.py --catalog runs/catalog --out runs/views --dim 384

The vector of an item is the mean of random unit vectors of its words, which tell its cluster, and noise of its own. The
noise of a block depends on the seed and the number of the block alone. Memory is that of one block and of the titles.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from common import emit, emit_machine

from llmrec.data.catalog import Catalog
from llmrec.views import BLOCK, SUFFIX, describe
from llmrec.views.written import write

NOISE = 0.5  # length of the noise, beside a mean of unit vectors
KEY_FIGURES = []  # it has no slow way beside it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--catalog", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="directory of the view file")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    emit_machine()
    started, cpu = time.monotonic(), time.process_time()
    catalog = Catalog.load(args.catalog)
    emit("load", items=catalog.num_items, seconds=time.monotonic() - started, cpu_seconds=time.process_time() - cpu)
    started, cpu = time.monotonic(), time.process_time()
    args.out.mkdir(parents=True, exist_ok=True)
    facts = describe("simulated", catalog, dim=args.dim, seed=args.seed)
    path = args.out / f"simulated{SUFFIX}"
    write(path, blocks(catalog, args.dim, args.seed), args.dim, np.zeros(catalog.num_items, bool), facts)
    taken = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu}
    emit("write", items=catalog.num_items, dim=args.dim, megabytes=path.stat().st_size / 1e6, **taken)


def blocks(catalog: Catalog, dim: int, seed: int) -> Iterator[np.ndarray]:
    """Vectors of the items, block after block."""
    words_NW = words_of(catalog)
    vectors_VD = np.random.default_rng(seed).standard_normal((int(words_NW.max()) + 1, dim), np.float32)
    vectors_VD /= np.linalg.norm(vectors_VD, axis=1, keepdims=True)
    for number, first in enumerate(range(0, len(words_NW), BLOCK)):
        words_BW = words_NW[first : first + BLOCK]
        block_BD = np.random.default_rng([seed, number]).standard_normal((len(words_BW), dim), np.float32)
        block_BD *= NOISE / dim**0.5
        for words_B in words_BW.T:
            block_BD += vectors_VD[words_B] / words_BW.shape[1]
        yield block_BD


def words_of(catalog: Catalog) -> np.ndarray:
    """(N, 3) number of each word of the titles among all words, which are in order."""
    titles = pl.from_arrow(catalog.titles.array).str.split_exact(" ", 2).struct
    columns = [titles.field(f"field_{place}") for place in range(3)]
    words = pl.Enum(pl.concat([column.unique() for column in columns]).unique().sort())
    return np.stack([column.cast(words).to_physical().to_numpy() for column in columns], axis=1)


if __name__ == "__main__":
    main()
