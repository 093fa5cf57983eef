"""DPO, S-DPO and GRPO on Amazon Beauty, each against the checkpoint of `llmrec sft` that it starts from.

    python scripts/experiments/beauty_preference.py --work /tmp/grid --results /tmp/grid/results.jsonl --seeds 0 1 2

Needs runs/beauty/catalog and runs/beauty/views (recipes/beauty-smollm2-135m: prepare, embed). The start is a decoder of
decoder.py on RQ-KMeans codes, its best step on valid; `more sft` trains it on, so that a gain is not one of steps
alone. Every method ends after as many prompts, keeps the step that is best on valid (the start among them), and
is compared on test with its own start, paired by user. Results: recipes/beauty-preference.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from decoder import DECODERS, beauty_parser, cells, decoder_steps, recommended
from grid import Run, Step, carry_out, load, tell_failures

from llmrec.data.columns import USER_ID
from llmrec.evaluation.bootstrap import paired_difference
from llmrec.evaluation.metrics import Position, ndcg, recall

TOKENIZE = {"method": "rq_kmeans", "view_names": ["text", "collaborative"]}
START = "sft"
JUDGED = {"eval_steps": 95, "eval_examples": 3000}
ADAPTER = {
    "targets": "every_item", "batch_size": 256, "micro_batch_size": 256, "lora_rank": 32, "lora_alpha": 64,
    "warmup_steps": 20, "learning_rate": 1e-4, "max_grad_norm": 1.0, "eval_steps": 50, "eval_examples": 3000,
}  # fmt: skip
MIXED = {"negative_sources": ["beam", "random"], "beta": 0.3}
METHODS: dict[str, Step | None] = {
    START: None,
    "more sft": ("sft", {"learning_rate": 1e-4}),
    "DPO": ("dpo", {**ADAPTER, **MIXED, "loss": "dpo", "negatives": 1}),
    "S-DPO": ("dpo", {**ADAPTER, **MIXED, "loss": "sdpo", "negatives": 8}),
    "S-DPO, popular": ("dpo", {**ADAPTER, **MIXED, "loss": "sdpo", "negatives": 8, "negative_sources": ["popular"]}),
    "S-DPO, random, rate 2e-5": (
        "dpo",
        {**ADAPTER, **MIXED, "loss": "sdpo", "negatives": 8, "negative_sources": ["random"], "learning_rate": 2e-5},
    ),
    "GRPO": ("grpo", {**ADAPTER, "rewards": ["rule"]}),
    "GRPO, target injected": ("grpo", {**ADAPTER, "rewards": ["rule"], "inject_target": True}),
    "GRPO, beams": ("grpo", {**ADAPTER, "rewards": ["rule", "rank"], "rollouts": "beams"}),
    "GRPO, beams, rate 3e-4": (
        "grpo",
        {**ADAPTER, "rewards": ["rule", "rank"], "rollouts": "beams", "learning_rate": 3e-4},
    ),
}
COLUMNS = ("plain", "seen_excluded")
K = 10


def runs_of(arguments: argparse.Namespace) -> list[Run]:
    return [
        Run(name, steps_of(method, arguments), seed) for seed in arguments.seeds for name, method in METHODS.items()
    ]


def steps_of(method: Step | None, arguments: argparse.Namespace) -> tuple[Step, ...]:
    """tokenize, extend and sft, which all share; then the method and the evaluations."""
    data, device = {"catalog": arguments.catalog}, {"device": arguments.device}
    tokenize = {**TOKENIZE, "views": arguments.views, **device}
    extend, (_, trained), *evaluated = decoder_steps(data, arguments.epochs, arguments.device, arguments.decoder)
    trained = {**trained, **JUDGED}
    start = (("tokenize", {**data, **tokenize}), extend, ("sft", trained))
    if method is None:
        return *start, *evaluated
    stage, options = method
    given = {**trained, "epochs": None} if stage == "sft" else {**data, **device}
    return *start, (stage, {**given, **options, "max_steps": arguments.max_steps}), *evaluated


def measure(run: Run, directories: list[Path]) -> dict[str, Any]:
    """What the table shows of a run, and the test gains of the users who are served."""
    trained, (*_, valid, test) = directories[-3], directories
    counts = load(trained / "manifest.json")["counts"]
    kept = {name: counts.get(name) for name in ("saved_step", "steps", "train_seconds")}
    return {**kept, **recommended([valid, test]), "gains": {column: gains(test, column) for column in COLUMNS}}


def gains(evaluated: Path, column: str) -> dict[str, Any]:
    """Number of users, and recall and NDCG of those for whom they are not 0, by place in the order of user_id."""
    table = pq.read_table(evaluated / "per_user.parquet", filters=[("column", "=", column)]).sort_by(USER_ID)
    position = Position(*(table[name].to_numpy() for name in Position._fields))
    found = {"recall": recall(position, K), "ndcg": ndcg(position, K)}
    rows = np.flatnonzero(found["recall"])
    return {"users": len(table), "rows": rows.tolist(), **{m: v[rows].round(5).tolist() for m, v in found.items()}}


def per_user(result: dict[str, Any], column: str, metric: str) -> np.ndarray:
    """(U,) a metric of every user."""
    of = result["gains"][column]
    return np.bincount(of["rows"], weights=of[metric], minlength=of["users"])


def show(results: list[dict[str, Any]]) -> None:
    """A line per run, then per method the mean difference to its starts: users are drawn, seeds averaged first."""
    seeds: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for result in results:
        if "error" not in result:
            seeds[result["name"]][result["seed"]] = result
    print(f"{'':24} seed | valid R N, seen excl. R N | test R N, seen excl. R N  | saved step of steps, train s")
    for name in METHODS:
        for seed, r in sorted(seeds[name].items()):
            valid, test = cells(r)
            ended = f"{r['saved_step']} of {r['steps']}, {r['train_seconds']:.0f}"
            print(f"{name:24} {seed:4} | {valid}   | {test}   | {ended}")
    for name in METHODS:
        shared = sorted(seeds[name].keys() & seeds[START].keys())
        if name != START and shared:
            print(f"{name:24} less sft, seeds {shared}: {'; '.join(differences(seeds[name], seeds[START], shared))}")
    tell_failures(results)


def differences(ours: dict[int, Any], starts: dict[int, Any], seeds: list[int]) -> list[str]:
    """Of each column and metric on test, with its 95 % interval."""
    found = []
    for column in COLUMNS:
        for metric in ("recall", "ndcg"):
            a, b = (np.mean([per_user(of[s], column, metric) for s in seeds], axis=0) for of in (ours, starts))
            mean, low, high = paired_difference(a, b, np.arange(len(a)))
            found.append(f"{column} {metric} {mean:+.4f} [{low:+.4f}, {high:+.4f}]")
    return found


def main() -> None:
    made = beauty_parser(__doc__.splitlines()[0], epochs=40)
    made.add_argument("--decoder", choices=DECODERS, default=DECODERS[0])
    made.add_argument("--max-steps", type=int, default=500, help="of every method after sft")
    arguments = made.parse_args()
    carry_out(arguments, runs_of(arguments), measure, show)


if __name__ == "__main__":
    main()
