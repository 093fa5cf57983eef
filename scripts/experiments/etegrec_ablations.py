"""ETEGRec's ablations on Amazon Beauty: each differs from alternating training in one option, at the same budget.

    python scripts/experiments/etegrec_ablations.py --work /tmp/grid --results /tmp/grid/results.jsonl --parallel 7

Needs runs/beauty/catalog and runs/beauty/views with the view sasrec (recipes/beauty-smollm2-135m: prepare; embed with
--views sasrec). All start from the same tokenizer, which was trained by itself, and from the same small decoder
(decoder.py); `frozen` is `llmrec sft` on the semantic IDs of that tokenizer, and `final ids, fresh decoder` is `llmrec
sft` from the start on those that alternating training ends with. A pass follows every epoch of the decoder,
which is the paper's C = 2; the weights of the alignment are the paper's on Instrument. Results: docs/papers.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from decoder import SPLITS, beauty_parser, cells, decoder_steps, recommended
from grid import Run, Step, carry_out, load, tell_failures

TOKENIZE = {"method": "etegrec", "view_names": ["sasrec"]}
ALTERNATE = {"cycle_steps": 95, "sia_weight": 3e-4, "psa_weight": 1e-4}
FRESH = "final ids, fresh decoder"
VARIANTS: dict[str, dict[str, Any] | None] = {
    "frozen": None,
    "alternating": {},
    FRESH: {},
    "one schedule": {"restart": False},
    "without SIA": {"sia_weight": 0},
    "without PSA": {"psa_weight": 0},
    "without either": {"sia_weight": 0, "psa_weight": 0},
    "joint": {"optimization": "joint"},
}


def runs_of(arguments: argparse.Namespace) -> list[Run]:
    return [
        Run(name, steps_of(name, changed, arguments), seed)
        for seed in arguments.seeds
        for name, changed in VARIANTS.items()
    ]


def steps_of(name: str, changed: dict[str, Any] | None, arguments: argparse.Namespace) -> tuple[Step, ...]:
    """Stages of a variant: tokenize, extend, alternate (sft if `changed` is None), and the evaluations.

    A fresh decoder is extended and trained once more after alternate.
    """
    data, views = {"catalog": arguments.catalog}, {"views": arguments.views}
    first = ("tokenize", {**data, **views, **TOKENIZE, "device": arguments.device})
    extend, (_, trained), *evaluated = decoder_steps(data, arguments.epochs, arguments.device)
    if changed is None:
        return first, extend, ("sft", trained), *evaluated
    kept = {name: value for name, value in trained.items() if name != "micro_batch_size"}  # it is the batch size
    fresh = (extend, ("sft", trained)) if name == FRESH else ()
    return first, extend, ("alternate", {**kept, **views, **ALTERNATE, **changed}), *fresh, *evaluated


def measure(run: Run, directories: list[Path]) -> dict[str, Any]:
    """Collect the numbers of a run for the table."""
    trained, evaluated = directories[2], directories[-len(SPLITS) :]
    counts = load(trained / "manifest.json")["counts"]
    kept = {name: counts.get(name, 0) for name in ("cycles", "changed_items", "train_seconds")}
    return {**kept, **recommended(evaluated)}


def show(results: list[dict[str, Any]]) -> None:
    """Print one line for each run, in the order of the variants."""
    print(f"{'':24} seed | valid R N, seen excl. R N | test R N, seen excl. R N  | passes, changed items, train s")
    order = list(VARIANTS)
    whole = [result for result in results if "error" not in result]
    for r in sorted(whole, key=lambda r: (order.index(r["name"]), r["seed"])):
        valid, test = cells(r)
        print(
            f"{r['name']:24} {r['seed']:4} | {valid}   | {test}   | {r['cycles']:6}, {r['changed_items']:13.3f}, "
            f"{r['train_seconds']:7.0f}"
        )
    tell_failures(results)


def main() -> None:
    arguments = beauty_parser(__doc__.splitlines()[0], epochs=40).parse_args()
    carry_out(arguments, runs_of(arguments), measure, show)


if __name__ == "__main__":
    main()
