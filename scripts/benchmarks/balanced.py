"""Balanced codes: assignment by prices compared with minimum-cost flow, and balanced residual k-means at size.

Needs OR-Tools: pip install ortools.

    python scripts/benchmarks/balanced.py                                       # 10^6 x 768 on a GPU
    python scripts/benchmarks/balanced.py --items 30000 --dim 64 --device cpu

First, over the costs of a smaller problem, prices must come within 1.5 % of flow, which is what k-means-constrained
runs in each iteration. Then all levels are fitted with prices. No optimum is known at that size, but prices prove how
close they are: no balanced assignment to the same codes costs less than `cost / cost_over_bound`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import emit, emit_machine
from ortools.graph.python import min_cost_flow
from torch import Tensor
from vectors import clustered, parser, residual_levels

from llmrec.tokenizers.shared.balanced import (
    balance_prices,
    balanced_kmeans,
    onerec_assignment,
    round_to_balance,
)
from llmrec.tokenizers.shared.kmeans import kmeans, squared_distances

TOLERANCE = 0.015  # cost above flow's
FLOW_STEPS = 2**30  # resolution of the integer costs of flow
KEY_FIGURES = [
    {"case": "assignment", "solver": "flow", "figure": "seconds", "over": {"case": "assignment", "solver": "prices"},
     "by": ["items", "codes"]},
]  # fmt: skip
RUNS = {"h200-balanced": []}
NEEDS = ["ortools"]


def main() -> None:
    flags = parser(__doc__.splitlines()[0])
    flags.add_argument("--flow-items", type=int, default=20_000, help="items of the problem that flow solves, too")
    flags.add_argument("--iterations", type=int, default=20)
    args = flags.parse_args()
    emit_machine()
    vectors_ND = clustered(max(args.items, args.flow_items), args.dim, args.device, args.seed)
    against_flow(args, vectors_ND[: args.flow_items])
    at_size(args, vectors_ND[: args.items])


def against_flow(args: argparse.Namespace, points_ND: Tensor) -> None:
    """Costs of plain k-means, whose codes are far from balanced, solved in three ways."""
    generator = torch.Generator().manual_seed(args.seed)
    cost_NK = squared_distances(points_ND, kmeans(points_ND, args.codes, 5, generator))
    solvers = {
        "flow": flow_assignment,
        "prices": lambda cost_NK: round_to_balance(cost_NK, balance_prices(cost_NK)),
        "onerec": lambda cost_NK: onerec_assignment(cost_NK, generator),
    }
    costs = {}
    for name, solver in solvers.items():
        codes_N, took = timed(args, lambda solver=solver: solver(cost_NK))
        costs[name] = total(cost_NK, codes_N)
        emit("assignment", solver=name, items=len(points_ND), codes=args.codes, seconds=took,
             cost_over_flow=costs[name] / costs["flow"], max_over_mean=max_over_mean(codes_N, args.codes))  # fmt: skip
    if costs["prices"] > (1 + TOLERANCE) * costs["flow"]:
        raise SystemExit(f"Prices cost {costs['prices'] / costs['flow'] - 1:.2%} more than flow.")


def flow_assignment(cost_NK: Tensor) -> Tensor:
    """Find the cheapest balanced assignment, by minimum-cost flow.

    Returns:
        (N,) int64 codes, on the device of the costs.
    """
    num_points, num_codes = cost_NK.shape
    least, more = divmod(num_points, num_codes)
    points, codes = np.arange(num_points), np.arange(num_points, num_points + num_codes)
    flow, pool = min_cost_flow.SimpleMinCostFlow(), num_points + num_codes
    arcs = flow.add_arcs_with_capacity_and_unit_cost(
        np.repeat(points, num_codes), np.tile(codes, num_points), np.ones(cost_NK.numel(), int), _in_steps(cost_NK)
    )
    # A code keeps `least` points and may pass one on to the pool, which takes as many as are left over.
    one_each = np.ones(num_codes, int)
    flow.add_arcs_with_capacity_and_unit_cost(codes, np.full(num_codes, pool), one_each, np.zeros(num_codes, int))
    flow.set_nodes_supplies(np.arange(pool + 1), np.concatenate([np.ones(num_points, int), -least * one_each, [-more]]))
    status = flow.solve()
    assert status == flow.OPTIMAL, status  # every point has an arc to every code
    taken_NK = flow.flows(arcs).reshape(num_points, num_codes)
    return torch.from_numpy(taken_NK.argmax(1)).to(cost_NK.device)


def _in_steps(cost_NK: Tensor) -> np.ndarray:
    """(N * K) int64 costs above each point's cheapest, which no assignment can save."""
    above_NK = (cost_NK - cost_NK.amin(1, keepdim=True)).double()
    return (above_NK * (FLOW_STEPS / above_NK.max().clamp(min=1e-30))).round().long().flatten().cpu().numpy()


def at_size(args: argparse.Namespace, points_ND: Tensor) -> None:
    def fit(left_ND: Tensor) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(args.seed)
        return balanced_kmeans(left_ND, args.codes, args.iterations, generator)

    residual_levels(points_ND[: 4 * args.codes], 1, fit)  # what runs once per process does not count
    (books, codes, distortions), took = timed(args, lambda: residual_levels(points_ND, args.levels, fit))
    size = {name: getattr(args, name) for name in ("items", "dim", "codes", "levels", "iterations")}
    emit("balanced", **size, seconds=took, distortion=distortions[-1])
    for level, (book_KD, codes_N) in enumerate(zip(books, codes, strict=True)):
        cost_NK = squared_distances(points_ND, book_KD)
        over = total(cost_NK, codes_N) / bound(cost_NK)
        emit("level", level=level, max_over_mean=max_over_mean(codes_N, args.codes), cost_over_bound=over)
        points_ND = points_ND - book_KD[codes_N]


def timed(args: argparse.Namespace, call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = call()
    if args.device != "cpu":
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def total(cost_NK: Tensor, codes_N: Tensor) -> float:
    return float(cost_NK.gather(1, codes_N[:, None]).double().sum())


def max_over_mean(codes_N: Tensor, num_codes: int) -> float:
    return float(torch.bincount(codes_N, minlength=num_codes).max()) * num_codes / len(codes_N)


def bound(cost_NK: Tensor) -> float:
    """What points pay at their cheapest codes less what codes take: never above the cheapest balanced cost."""
    prices_K = balance_prices(cost_NK)
    least, more = divmod(*cost_NK.shape)
    taken = least * prices_K.double().sum() + prices_K.double().topk(more).values.sum()
    return float((cost_NK + prices_K).amin(1).double().sum() - taken)


if __name__ == "__main__":
    main()
