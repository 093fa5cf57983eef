"""From item vectors in a file to unique semantic IDs, in seconds.

    python scripts/benchmarks/encode.py --items 10000000      # 31 GB in --directory, which should fit into memory
    python scripts/benchmarks/encode.py --items 100000 --dim 128 --device cpu

The file is memory-mapped and has just been written, so it is in the page cache. First, over a sample, the codes and
what they leave must be those of the same loop over faiss's exact search, which is timed there. Needs faiss: pip install
faiss-cpu.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import torch
from common import emit, emit_machine
from torch import Tensor
from vectors import ROWS, clustered, parser, residual_levels

from llmrec.tokenizers.base import Encoded
from llmrec.tokenizers.collisions import resolve
from llmrec.tokenizers.shared.codebooks import ResidualCodebooks
from llmrec.tokenizers.shared.kmeans import kmeans
from llmrec.tokenizers.shared.vectors import JointVectors
from llmrec.views import ItemViews, View

SAMPLE = 20_000
FIT_PER_CODE, ITERATIONS = 256, 5  # the codebooks need not be good here
DIFFERENT = 1e-3  # share of codes that may differ: halfway between two codes, rounding decides
TOLERANCE = 1e-4  # of the mean squared length of what is left
KEY_FIGURES = [{"case": "encode", "figure": "faster", "by": ["items"]}]
RUNS = {"h200-encode": ["--items", "10000000"]}
NEEDS = ["faiss"]


def main() -> None:
    flags = parser(__doc__.splitlines()[0])
    flags.add_argument("--directory", help="where the file of vectors is written; a temporary one when left out")
    args = flags.parse_args()
    emit_machine()
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        vectors = mapped_vectors(args, Path(directory) / "vectors.f32")
        sample = np.array(vectors[:SAMPLE])
        books = fit(args, torch.from_numpy(np.array(vectors[: FIT_PER_CODE * args.codes])).to(args.device))
        faiss_rate = assert_same(args, sample, books)
        measure(args, vectors, books, faiss_rate)


def mapped_vectors(args: argparse.Namespace, path: Path) -> np.ndarray:
    """Write the vectors piece by piece; a view of the file."""
    with path.open("wb") as file:
        for piece, first in enumerate(range(0, args.items, ROWS)):
            rows = min(ROWS, args.items - first)
            clustered(rows, args.dim, args.device, args.seed + piece).cpu().numpy().tofile(file)
    return np.memmap(path, np.float32, "r", shape=(args.items, args.dim))


def fit(args: argparse.Namespace, vectors_ND: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(args.seed)
    return residual_levels(
        vectors_ND, args.levels, lambda left_ND: (kmeans(left_ND, args.codes, ITERATIONS, generator), None)
    )[0]


def assert_same(args: argparse.Namespace, sample: np.ndarray, books: list[Tensor]) -> float:
    """Compare codes with the loop over faiss; items per second of the latter."""
    ours = encode(args, sample, books)
    started = time.perf_counter()
    theirs = faiss_codes(sample, [book.cpu().numpy() for book in books])
    rate = len(sample) / (time.perf_counter() - started)
    left = [what_is_left(sample, codes, books) for codes in (ours, theirs)]
    different = float((ours != theirs).mean())
    if different > DIFFERENT or abs(left[0] / left[1] - 1) > TOLERANCE:
        raise SystemExit(f"{different:.2%} of the codes are not those of faiss; mean squared lengths left: {left}.")
    assert len(np.unique(unique(args, ours), axis=0)) == len(sample), "two items share a semantic ID"
    emit("equal", items=len(sample), different_codes=different, left_over_faiss=left[0] / left[1])
    return rate


def encode(args: argparse.Namespace, vectors: np.ndarray, books: list[Tensor]) -> np.ndarray:
    """Codes as `llmrec tokenize` makes them."""
    views = ItemViews(text=View(vectors, np.zeros(len(vectors), bool)))
    items = SimpleNamespace(num_items=len(vectors), item_ids=[], source="benchmark")  # ids would only take memory
    books = ResidualCodebooks(books)
    parts = JointVectors(items, views).blocks(torch.device(args.device))
    return torch.cat([books.codes(part_BD) for part_BD in parts]).cpu().numpy()


def unique(args: argparse.Namespace, codes: np.ndarray) -> np.ndarray:
    return resolve("suffix_ordinal", Encoded(codes), [args.codes] * args.levels)[0]


def faiss_codes(left: np.ndarray, books: list[np.ndarray]) -> np.ndarray:
    codes = []
    for book in books:
        index = faiss.IndexFlatL2(book.shape[1])
        index.add(book)
        codes.append(index.search(left, 1)[1][:, 0])
        left = left - book[codes[-1]]
    return np.stack(codes, 1)


def what_is_left(vectors: np.ndarray, codes: np.ndarray, books: list[Tensor]) -> float:
    rebuilt = sum(book.cpu().numpy()[column] for book, column in zip(books, codes.T, strict=True))
    return float(np.square(vectors - rebuilt).sum(1).mean())


def measure(args: argparse.Namespace, vectors: np.ndarray, books: list[Tensor], faiss_rate: float) -> None:
    encode(args, vectors[:SAMPLE], books)  # what runs once per process does not count
    started = time.perf_counter()
    codes = encode(args, vectors, books)
    encoded = time.perf_counter()
    suffix_size = int(unique(args, codes)[:, -1].max()) + 1
    ended = time.perf_counter()
    size = {name: getattr(args, name) for name in ("items", "dim", "codes", "levels", "device")}
    rate = args.items / (encoded - started)
    emit("encode", **size, encode_seconds=encoded - started, suffix_seconds=ended - encoded, seconds=ended - started,
         suffix_size=suffix_size, encoded_per_s=rate, faiss_encoded_per_s=faiss_rate,
         faster=rate / faiss_rate)  # fmt: skip


if __name__ == "__main__":
    main()
