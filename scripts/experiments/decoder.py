"""The small decoder beneath which semantic IDs are compared, how it is trained, and what is kept of its evaluation.

It is the 1.2M one of recipes/beauty-micro with what helped it there (dropout, label smoothing and weight decay, by
valid), trained for as many epochs whatever the tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grid import Step, load

EXTEND = {"model": "micro", "micro_layers": 4, "micro_hidden": 128, "micro_words": 300}
SFT = {
    "train": "full", "max_history": 20, "batch_size": 256, "micro_batch_size": 256, "learning_rate": 1e-3,
    "warmup_steps": 50, "dropout": 0.2, "weight_decay": 0.1, "label_smoothing": 0.1, "logging_steps": 95,
    "save_steps": 100000,
}  # fmt: skip
EVALUATE = {"baselines": [], "batch_size": 256}
SPLITS = ("valid", "test")


def decoder_steps(given: dict[str, Any], epochs: float, device: str, **replaced: dict[str, Any]) -> tuple[Step, ...]:
    """extend, sft and an evaluation of each split.

    Args:
        given: Options of all of them, such as the catalogue where no stage of the run makes it.
        epochs: Of sft.
        device: auto, cpu or cuda.
        replaced: extend, sft or a split, as the evaluation of it -> options in place of those above.
    """
    extend, sft, evaluate = ({**given, **options} for options in (EXTEND, SFT, EVALUATE))
    return (
        ("extend", {**extend, **replaced.get("extend", {})}),
        ("sft", {**sft, "device": device, "epochs": epochs, **replaced.get("sft", {})}),
        *(("evaluate", {**evaluate, "device": device, "split": split, **replaced.get(split, {})}) for split in SPLITS),
    )


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
