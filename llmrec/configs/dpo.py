"""Options of `llmrec dpo`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmrec.configs.fine_tune import FineTuneConfig
from llmrec.configs.options import option, suggestion
from llmrec.configs.preference import PreferenceOptions

NEGATIVE_SOURCES = ("beam", "sibling", "popular", "random")


@dataclass(kw_only=True)
class DpoConfig(PreferenceOptions, FineTuneConfig):
    """Teach a fine-tuned checkpoint to prefer the item that came next to items that did not."""

    stage = "dpo"
    renamed: ClassVar[dict[str, str]] = {
        "negative_weights": "removed: every source gives the same number of negatives",
        "label_smoothing": "removed: give the probability of each pair in the oracle column of a preferences file",
    }

    loss: Literal["sdpo", "dpo"] = option(
        "Softmax over all negatives of a prompt (sdpo), or mean over pairs (dpo). With one negative they are equal.",
        "sdpo",
    )
    # S-DPO (2406.09215): beta 1 and 3 negatives in its script.
    beta: float = option("Larger values keep the policy closer to the checkpoint.", 1.0, above=0)
    # Iterative RPO (2404.19733): weight 1.
    sft_weight: float = option(
        "Weight of the negative log-likelihood of the target, mean over its codes. It is added to the loss, so that "
        "targets do not become less probable together with their negatives.",
        0.0,
        least=0,
    )
    negatives: int = option(
        "Number of negatives per prompt: items that the model learns to rank below the target.", 3, least=1, most=1000
    )
    negative_sources: list[str] = option(
        f"Sources of the negatives, in equal shares: {', '.join(NEGATIVE_SOURCES)}.", ["beam", "random"]
    )
    normalize_over: Literal["checkpoint", "vocabulary", "level", "children"] = option(
        "Tokens over which the probability of a code is normalised. The choice checkpoint takes those with which the "
        "checkpoint is decoded.",
        "checkpoint",
    )
    preferences: str | None = option(
        "Parquet or JSONL file with history, target and negatives to train on, instead of mining negatives.", None
    )

    def problems(self) -> list[str]:
        """List the options that contradict each other."""
        problems, names = super().problems(), self.negative_sources
        problems += [
            f"unknown negative source '{name}'; {suggestion(name, NEGATIVE_SOURCES)}"
            for name in names
            if name not in NEGATIVE_SOURCES
        ]
        if not names or len(set(names)) < len(names):
            problems.append(f"negative_sources is {names}; name at least one, and each once")
        return problems
