"""The decoders beneath which semantic IDs are compared, how they are trained, and what is kept of their evaluation.

`micro` is the 1.2M one of recipes/beauty-micro with what helped it there (dropout, label smoothing and weight decay, by
valid), trained for as many epochs whatever the tokenizer; `smollm2` is sft-full.yaml of recipes/beauty-smollm2-135m,
whose step is chosen by 3,000 valid rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml
from grid import ROOT, Step, load, parser

RECIPE = ROOT / "recipes" / "beauty-smollm2-135m"

EXTEND = {"model": "micro", "micro_layers": 4, "micro_hidden": 128, "micro_words": 300}
SFT = {
    "train": "full", "max_history": 20, "batch_size": 256, "micro_batch_size": 256, "learning_rate": 1e-3,
    "warmup_steps": 50, "dropout": 0.2, "weight_decay": 0.1, "label_smoothing": 0.1, "logging_steps": 95,
    "save_steps": 100000,
}  # fmt: skip
DECODERS = ("micro", "smollm2")
EVALUATE = {"baselines": [], "batch_size": 256}
SPLITS = ("valid", "test")


def beauty_parser(description: str, epochs: float) -> argparse.ArgumentParser:
    """Flags of experiments beneath a decoder on Amazon Beauty; `epochs` is what the small one trains unless told."""
    made = parser(description)
    made.add_argument("--catalog", default="runs/beauty/catalog")
    made.add_argument("--views", default="runs/beauty/views")
    made.add_argument("--epochs", type=float, default=epochs, help="of sft of the small decoder")
    made.add_argument("--device", default="auto")
    return made


def decoder_steps(
    given: dict[str, Any], epochs: float, device: str, decoder: str = "micro", **replaced: dict[str, Any]
) -> tuple[Step, ...]:
    """extend, sft and an evaluation of each split.

    Args:
        given: Options of all of them, such as the catalogue where no stage of the run makes it.
        epochs: Of sft of the small decoder; the recipe says those of the other.
        device: auto, cpu or cuda.
        decoder: One of DECODERS.
        replaced: extend, sft or a split, as the evaluation of it -> options in place of those above.
    """
    if decoder == "micro":
        model, training = EXTEND, {**SFT, "epochs": epochs}
    else:
        model, training = options_of(RECIPE / "extend.yaml", "sid"), options_of(RECIPE / "sft-full.yaml", "model")
    extend, sft, evaluate = ({**given, **options} for options in (model, training, EVALUATE))
    return (
        ("extend", {**extend, **replaced.get("extend", {})}),
        ("sft", {**sft, "device": device, **replaced.get("sft", {})}),
        *(("evaluate", {**evaluate, "device": device, "split": split, **replaced.get(split, {})}) for split in SPLITS),
    )


def llm_of(decoder: str) -> str:
    """Model that `llmrec extend` is given for a decoder."""
    return str((EXTEND if decoder == "micro" else options_of(RECIPE / "extend.yaml"))["model"])


def options_of(recipe: Path, *directories: str) -> dict[str, Any]:
    """What a YAML file of a recipe says, but for the directories that the stages of a run hand on."""
    options = yaml.safe_load(recipe.read_text())
    return {name: value for name, value in options.items() if name not in ("catalog", "out", *directories)}


def cells(result: dict[str, Any]) -> list[str]:
    """Of each split, recall and NDCG at 10, plain and then with seen items excluded."""
    columns = [(c, m) for c in ("plain", "seen_excluded") for m in ("recall@10", "ndcg@10")]
    return [" ".join(f"{result[split][c][m]:.4f}"[1:] for c, m in columns) for split in SPLITS]


def recommended(evaluated: list[Path], system: str = "ours") -> dict[str, dict[str, dict[str, float]]]:
    """Split -> column -> metric of a system, from evaluations in the order of SPLITS, where it takes part."""
    found = {}
    for split, directory in zip(SPLITS, evaluated, strict=True):
        of = load(directory / "metrics.json")["systems"].get(system)
        if of is not None:
            found[split] = {c: {m: of[c][m] for m in ("recall@10", "ndcg@10", "coverage@10")} for c in of}
    return found
