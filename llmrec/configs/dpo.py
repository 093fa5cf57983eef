"""Options of `llmrec dpo`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmrec.configs.options import option, suggestion
from llmrec.configs.preference import PreferenceConfig

NEGATIVE_SOURCES = ("beam", "sibling", "popular", "random")


@dataclass(kw_only=True)
class DpoConfig(PreferenceConfig):
    """Teach a fine-tuned checkpoint to prefer what came next to items that did not."""

    stage = "dpo"

    loss: Literal["sdpo", "dpo"] = option(
        "Softmax over all negatives of a prompt (S-DPO), or the mean over pairs (DPO); equal with one negative.",
        "sdpo",
    )
    # S-DPO (2406.09215): beta 1 and 3 negatives in its script.
    beta: float = option("How strongly the policy is held to the checkpoint.", 1.0, above=0)
    negatives: int = option("Items of a prompt that the target is preferred to.", 3, least=1, most=1000)
    negative_sources: list[str] = option(
        f"Where they come from: {', '.join(NEGATIVE_SOURCES)}.",
        ["beam", "random"],
    )
    negative_weights: list[float] | None = option(
        "Share of each of `negative_sources`, as numbers of any sum; equal when left out.", None
    )
    # Conservative DPO, as RosePO (2410.12519) smooths it for each pair.
    label_smoothing: float = option(
        "Probability that a pair is the wrong way round, with `loss: dpo`; the oracle column of `preferences` sets it "
        "for each pair.",
        0.0,
        least=0,
        most=0.5,
    )
    preferences: str | None = option(
        "Parquet or JSONL file with history, target and negatives to train on, instead of mining them.", None
    )

    def problems(self) -> list[str]:
        problems = super().problems()
        names, weights = self.negative_sources, self.negative_weights
        problems += [
            f"unknown negative source '{name}'; {suggestion(name, NEGATIVE_SOURCES)}"
            for name in names
            if name not in NEGATIVE_SOURCES
        ]
        if not names or len(set(names)) < len(names):
            problems.append(f"negative_sources is {names}; name at least one, and each once")
        if weights is not None and len(weights) != len(names):
            problems.append(f"negative_weights has {len(weights)} numbers for {len(names)} negative_sources")
        if min(weights or [1]) <= 0:
            problems.append(f"negative_weights is {weights}; every weight must be above 0")
        if self.label_smoothing and self.loss != "dpo":
            problems.append("label_smoothing is of pairs and needs loss 'dpo'")
        return problems
