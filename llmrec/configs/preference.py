"""Options that the stages share which optimise preferences: dpo and grpo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmrec.configs.fine_tune import FineTuneConfig
from llmrec.configs.options import option


@dataclass(kw_only=True)
class PreferenceConfig(FineTuneConfig):
    """What a fine-tuned checkpoint is asked, and how its answers are scored, while a fresh LoRA on it trains."""

    model: str = option("Directory written by `llmrec sft`, or by an earlier run of this kind to go on from.")
    targets: Literal["last_item", "every_item"] = option(
        "Items of a training sequence that a prompt ends before.", "last_item"
    )
    max_prompts: int | None = option("Prompts to train on, a random sample if there are more.", None, least=1)
    normalize_over: Literal["checkpoint", "vocabulary", "level", "children"] = option(
        "What a code's probability is normalised over; as the checkpoint is decoded, or another way.", "checkpoint"
    )
    # S-DPO (2406.09215) and MiniOneRec's GRPO (2510.24431): learning rate 1e-5, gradients clipped at 0.3.
    learning_rate: float = option("Peak learning rate of LoRA.", 1e-5, above=0)
    max_grad_norm: float = option("Gradient clipping.", 0.3, least=0)
    epochs: float = option("Passes over the prompts.", 1.0, above=0)
    batch_size: int = option("Prompts per optimiser step, over all processes.", 64, least=1)
    micro_batch_size: int = option("Prompts per forward pass on one device.", 16, identity=False, least=1)
