"""SimCIT's ablations on Amazon Beauty: each is one option away from the first, beneath one decoder and training budget.

    python scripts/experiments/simcit_ablations.py --work /tmp/simcit --results /tmp/simcit/results.jsonl --parallel 8

Needs runs/beauty/catalog and runs/beauty/views (recipes/beauty-smollm2-135m: prepare, embed), and for the corrupted
view runs/beauty/views-corrupt (corrupt_view.py). Decoder and budget are those of beauty_tokenizers.py. How the codes
serve popular and rare items is in the strata of each run's metrics.json. Results: docs/papers.md.
"""

from __future__ import annotations

import argparse
from typing import Any

from beauty_tokenizers import asked, beneath, measure, show
from grid import Run, carry_out

BASE = {"method": "simcit", "view_names": ["text", "collaborative"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "no projection": {"projection": False},
    "no penalty of similar codes": {"code_similarity": 0},
    "text alone": {"view_names": ["text"]},
    "behaviour alone": {"view_names": ["collaborative"]},
    "text corrupted": {},
    "linear temperature": {"temperature_law": "linear"},
    "constant temperature .2": {"temperature_law": "constant", "temperature": 0.2},
    "constant noise": {"noise_law": "constant"},
    "without noise": {"noise_law": "constant", "noise": 0},
    "absolute distances": {"distances": "absolute"},
    "mixtures to the end": {"hard_codes": False, "temperature_end": 0.02, "noise_end": 0.1},
    "uniform start": {"codebook_start": "uniform"},
    "prefixes contrasted": {"prefix_weight": 0.5},
    **{f"batch {size}": {"batch_size": size, "micro_batch_size": 1024} for size in (256, 512, 2048, 4096, 8192)},
    # 12,101 items: room for a third of them, for 1.4 and for 1,387 times as many.
    **{f"{levels} x {size}": {"num_levels": levels, "codebook_size": size}
       for levels, size in ((2, 64), (2, 128), (3, 256))},
    "4 levels": {"num_levels": 4},
}  # fmt: skip
OTHER_VIEWS = {"text corrupted": "runs/beauty/views-corrupt"}


def options_of(name: str) -> dict[str, Any]:
    """Options of `llmrec tokenize` for a variant, data aside."""
    return {**BASE, **VARIANTS[name]}


def runs_of(arguments: argparse.Namespace) -> list[Run]:
    given = {"catalog": arguments.catalog, "device": arguments.device, "allow_collapse": True}
    found = []
    for seed in arguments.seeds:
        for name in VARIANTS:
            views = {"views": OTHER_VIEWS.get(name, arguments.views)}
            steps = (("tokenize", {**given, **views, **options_of(name)}), *beneath(arguments))
            found.append(Run(name, steps, seed))
    return found


def main() -> None:
    arguments = asked(__doc__.splitlines()[0]).parse_args()
    carry_out(arguments, runs_of(arguments), measure, show)


if __name__ == "__main__":
    main()
