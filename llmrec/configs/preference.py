"""Options that dpo and grpo share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmrec.configs.options import option


@dataclass(kw_only=True)
class PreferenceOptions:
    """Options with which a fresh LoRA trains on a fine-tuned checkpoint; they go before those of FineTuneConfig."""

    renamed: ClassVar[dict[str, str]] = {
        "max_prompts": "removed: max_steps limits the prompts that are trained on",
        "quantization": "removed: the checkpoint is held in the precision of the run; lower micro_batch_size, or set "
        "gradient_checkpointing, to save memory",
        "weight_decay": "removed: it is 0.01",
        "scheduler": "removed: it is cosine, as in S-DPO and MiniOneRec",
    }

    model: str = option("Directory written by `llmrec sft`, or by an earlier run of dpo or grpo to continue from.")
    targets: Literal["every_item", "last_item"] = option(
        "Items of a training sequence to recommend: every item that has a history, or only the last.", "last_item"
    )
    # S-DPO (2406.09215) and MiniOneRec's GRPO (2510.24431): learning rate 1e-5, gradients clipped at 0.3.
    learning_rate: float = option("Peak learning rate of LoRA.", 1e-5, above=0)
    max_grad_norm: float = option("Clip gradients to this norm.", 0.3, least=0)
    epochs: float = option("Passes over the prompts.", 1.0, above=0)
    batch_size: int = option("Prompts per optimiser step, over all processes.", 64, least=1)
    micro_batch_size: int = option("Prompts per forward pass on one device.", 16, identity=False, least=1)
