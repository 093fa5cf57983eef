"""ReSID, TIGER and SASRec at three sizes of the network, the scaling question of ReSID (arXiv:2602.02338).

    python scripts/experiments/backbone_sweep.py --catalog runs/beauty/catalog --work /tmp/sweep \\
        --results /tmp/sweep/results.jsonl --seeds 0 1 2 --parallel 6 --budget-s 300 --deadline-s 540

ReSID is FAMAE and GAOQ, TIGER is RQ-VAE on text with an ordinal suffix, both beneath the decoder of decoder.py at the
size that is named; SASRec has as many layers of the same width. A size is what stands beside the vectors of items or
tokens: the paper's budgets are of the backbone. Semantic IDs of a seed are learned once for all sizes.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from decoder import SPLITS, decoder_steps, recommended
from grid import Run, carry_out, parser, tell_failures
from safetensors import safe_open

from llmrec.baselines import NeuralRanker, SASRec
from llmrec.data.catalog import Catalog
from llmrec.evaluation.metrics import METRICS, SHOWN, coverage
from llmrec.evaluation.protocol import COLUMNS, evaluate, per_batch

SIZES = {"small": (2, 64), "medium": (4, 128), "large": (6, 256)}  # layers, hidden
VECTORS = ("embed_tokens", "lm_head")  # in the names of a decoder's weights


def methods(arguments: argparse.Namespace) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Name -> options of embed and of tokenize."""
    text = {"views": ["text"], "text_encoder": arguments.text_encoder, "text_template": "{title}"}
    return {
        "ReSID": (
            {"views": ["famae"], "famae_dim": arguments.famae_dim},
            {"method": "gaoq", "view_names": ["famae"], "collision": "hungarian_leaf"},
        ),
        "TIGER": (
            text,
            {"method": "rq_vae", "view_names": ["text"], "codebook_size": arguments.codebook_size},
        ),
    }


def runs_of(arguments: argparse.Namespace) -> list[Run]:
    data, device = {"catalog": str(Path(arguments.catalog).resolve())}, {"device": arguments.device}
    batch = {"batch_size": arguments.batch_size, "micro_batch_size": arguments.batch_size}
    found = []
    for seed in arguments.seeds:
        for size in arguments.sizes:
            layers, hidden = SIZES[size]
            for name, (embed, tokenize) in methods(arguments).items():
                steps = (
                    ("embed", {**data, **embed, **device}),
                    ("tokenize", {**data, **tokenize, **device}),
                    *decoder_steps(
                        data, arguments.epochs, arguments.device,
                        extend={"micro_layers": layers, "micro_hidden": hidden},
                        sft={**batch, "learning_rate": arguments.learning_rate},
                    ),
                )  # fmt: skip
                found.append(Run(f"{name}, {size}", steps, seed))
    return found


def measure(run: Run, directories: list[Path]) -> dict[str, Any]:
    """Recommendations of the decoder and, with ReSID, of SASRec, and the sizes of their networks without vectors."""
    sft, *evaluated = directories[-3:]
    method, size = run.name.split(", ")
    systems = {run.name: {**recommended(evaluated), "backbone": backbone(sft / "model.safetensors")}}
    if method == "ReSID":  # SASRec does not depend on semantic IDs, so one of the two methods trains it
        layers, hidden = SIZES[size]
        found = sasrec(run.steps[-1][1], run.seed, layers, hidden)
        systems[f"SASRec, {size}"] = {"test": found, "backbone": sasrec_backbone(layers, hidden)}
    return {"systems": systems}


def sasrec(options: dict[str, Any], seed: int, layers: int, hidden: int) -> dict[str, dict[str, float]]:
    """Column -> metric of a SASRec that is trained here, on test."""
    catalog = Catalog.load(options["catalog"])
    ranker = NeuralRanker(SASRec, catalog, seed, options["device"], layers=layers, hidden=hidden)
    found = {}
    for column in COLUMNS:
        outcome = evaluate(per_batch(ranker.rank), catalog.examples("test"), 10, column, 512)
        found[column] = {f"{name}@10": float(METRICS[name](outcome.position, 10).mean()) for name in SHOWN}
        found[column]["coverage@10"] = coverage(outcome.items, 10, catalog.num_items)
    return found


def backbone(weights: Path) -> int:
    """Parameters of a decoder but for the rows of its tokens."""
    with safe_open(weights, framework="pt") as file:
        names = [name for name in file.keys() if not any(part in name for part in VECTORS)]  # noqa: SIM118
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)


def sasrec_backbone(layers: int, hidden: int) -> int:
    """Parameters of SASRec's blocks and of the norm behind them."""
    network = SASRec(1, 1, hidden=hidden, layers=layers)
    return sum(weight.numel() for part in (network.blocks, network.norm) for weight in part.parameters())


def show(results: list[dict[str, Any]]) -> None:
    """A line per system and size: valid and test recall and NDCG, means over seeds, with the recall of each."""
    systems = defaultdict(list)
    for result in sorted(results, key=lambda result: result["seed"]):
        for name, system in result.get("systems", {}).items():
            systems[name].append(system)
    print(f"{'':20} backbone  valid R@10 N@10  test R@10 N@10  test R@10 by seed")
    for name, of in sorted(systems.items()):
        cells = [
            " ".join(f"{mean(s[split]['plain'][m] for s in of):.4f}"[1:] for m in ("recall@10", "ndcg@10"))
            if split in of[0]
            else ""
            for split in SPLITS
        ]
        by_seed = [round(s["test"]["plain"]["recall@10"], 4) for s in of]
        print(f"{name:20} {of[0]['backbone']:8,}  {cells[0]:>15}  {cells[1]:>14}  {by_seed}")
    tell_failures(results)


def main() -> None:
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--catalog", required=True, help="directory written by `llmrec prepare`, with side fields")
    made.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    made.add_argument("--text-encoder", default="tfidf", help="of TIGER's view, as `llmrec embed` takes it")
    made.add_argument("--famae-dim", type=int, default=128)
    made.add_argument("--codebook-size", type=int, default=256, help="of TIGER")
    made.add_argument("--epochs", type=float, default=12)
    made.add_argument("--batch-size", type=int, default=256)
    made.add_argument("--learning-rate", type=float, default=1e-3)
    made.add_argument("--device", default="auto")
    arguments = made.parse_args()
    carry_out(arguments, runs_of(arguments), measure, show)


if __name__ == "__main__":
    main()
