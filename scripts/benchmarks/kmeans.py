"""Residual k-means over all items: ours on a GPU or the CPU, and faiss (pip install faiss-cpu) on the CPU.

    python scripts/benchmarks/kmeans.py                                         # 10^6 x 768 on a GPU
    python scripts/benchmarks/kmeans.py --items 30000 --dim 128 --device cpu

First, over a sample and from the same start, both must reach the same distortion. Then each fits all levels from a
start of its own: ours by k-means++, faiss at random items. Neither draws a sample of the items to iterate over.
"""

from __future__ import annotations

import argparse
import time

import faiss
import torch
from common import emit, emit_machine, seconds
from torch import Tensor
from vectors import clustered, parser, residual_levels

from llmrec.tokenizers.shared.kmeans import kmeans, kmeans_plus_plus, lloyd, nearest

TOLERANCE = 0.005  # of the distortions
SAMPLE_PER_CODE = 64
KEY_FIGURES = [{"case": "ratio", "figure": "faster", "by": []}]
RUNS = {"h200-kmeans": ["--repeats", "5"]}
NEEDS = ["faiss"]


def main() -> None:
    flags = parser(__doc__.splitlines()[0])
    flags.add_argument("--iterations", type=int, default=20)
    flags.add_argument("--repeats", type=int, default=3)
    args = flags.parse_args()
    emit_machine()
    vectors_ND = clustered(args.items, args.dim, args.device, args.seed)
    assert_same(args, vectors_ND[: SAMPLE_PER_CODE * args.codes])
    compare(args, vectors_ND)


def assert_same(args: argparse.Namespace, sample_ND: Tensor) -> None:
    start_KD = kmeans_plus_plus(sample_ND, args.codes, torch.Generator().manual_seed(args.seed))
    books = lloyd(sample_ND, start_KD, args.iterations), faiss_kmeans(args, sample_ND, start_KD)
    ours, theirs = (float(nearest(sample_ND, book)[1].double().mean()) for book in books)
    if abs(ours / theirs - 1) > TOLERANCE:
        raise SystemExit(f"From one start, ours ends at distortion {ours:.6g} and faiss at {theirs:.6g}.")
    emit("equal", items=len(sample_ND), distortion_over_faiss=ours / theirs)


def compare(args: argparse.Namespace, vectors_ND: Tensor) -> None:
    def ours(left_ND: Tensor) -> tuple[Tensor, None]:
        generator = torch.Generator().manual_seed(args.seed)
        return kmeans(left_ND, args.codes, args.iterations, generator), None

    size = {name: getattr(args, name) for name in ("items", "dim", "codes", "levels", "iterations")}
    took = seconds(lambda: residual_levels(vectors_ND, args.levels, ours), args.repeats, args.device)
    distortions = residual_levels(vectors_ND, args.levels, ours)[2]
    emit("kmeans", way="llmrec", device=args.device, **size, seconds=took, distortion=distortions[-1])
    started = time.perf_counter()
    theirs = residual_levels(vectors_ND, args.levels, lambda left_ND: (faiss_kmeans(args, left_ND), None))[2]
    faiss_took = time.perf_counter() - started
    emit("kmeans", way="faiss", device="cpu", **size, seconds=faiss_took, distortion=theirs[-1])
    over = {f"distortion_{level}": x / y for level, (x, y) in enumerate(zip(distortions, theirs, strict=True))}
    emit("ratio", faster=faiss_took / took, **over)


def faiss_kmeans(args: argparse.Namespace, points_ND: Tensor, start_KD: Tensor | None = None) -> Tensor:
    """Codebook by faiss over all points, from the start or from random points."""
    points = points_ND.cpu().numpy()
    solver = faiss.Kmeans(args.dim, args.codes, niter=args.iterations, seed=args.seed + 1,
                          min_points_per_centroid=1, max_points_per_centroid=len(points))  # fmt: skip
    solver.train(points, init_centroids=None if start_KD is None else start_KD.cpu().numpy())
    return torch.from_numpy(solver.centroids.copy()).to(points_ND.device)


if __name__ == "__main__":
    main()
