"""Options that every stage which trains the LLM shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmrec.configs.options import Config, StageConfig, option


@dataclass(kw_only=True)
class FineTuneConfig(StageConfig, Config):
    """Options of LoRA, the optimiser, batches, validation and checkpoints.

    Attributes:
        stage: Name of the stage, as messages show it.
        one_process: Whether the stage refuses to run in several processes.
        quantization, weight_decay, scheduler: Constants, which a stage may turn into options.
    """

    stage = ""
    one_process = False
    renamed: ClassVar[dict[str, str]] = {
        "eval_rows": "eval_examples",
        "lora_targets": "removed: LoRA adapts every linear layer",
        "lora_dora": "removed: LoRA trains without DoRA",
        "lora_rslora": "removed: set lora_alpha to lora_alpha * sqrt(lora_rank) for the same scale",
        "lora_dropout": "removed: use dropout of `llmrec sft`, weight_decay or label_smoothing against overfitting",
    }

    quantization = "none"
    weight_decay = 0.01
    scheduler = "cosine"

    catalog: str = option("Directory written by `llmrec prepare`.")
    model: str = option("Checkpoint directory to start from.")
    lora_rank: int = option("Rank of the LoRA matrices.", 16, least=1)
    lora_alpha: int = option("The update of LoRA is scaled by lora_alpha / lora_rank.", 32, least=1)
    epochs: float = option("Passes over the training sequences.", 3.0, above=0)
    max_steps: int = option("If positive, train for this many optimiser steps instead of `epochs`.", -1, least=-1)
    batch_size: int = option("Sequences per optimiser step, over all processes.", 64, least=1)
    micro_batch_size: int = option("Sequences per forward pass on one device.", 64, identity=False, least=1)
    learning_rate: float = option("Peak learning rate of LoRA, or of all weights.", 2e-4, above=0)
    warmup_steps: int = option("Number of optimiser steps of linear warm-up.", 20, least=0)
    max_grad_norm: float = option("Clip gradients to this norm.", 1.0, least=0)
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "Precision of matrix products; auto means bfloat16 on a GPU that supports it.", "auto"
    )
    gradient_checkpointing: bool = option("Recompute activations to save memory.", False, identity=False)
    eval_steps: int | None = option(
        "Number of optimiser steps between validations; there is also one at the end. The weights of the best step are "
        "saved.",
        None,
        least=1,
    )
    patience: int | None = option("Stop when ndcg@10 has not improved in this many validations.", None, least=1)
    eval_examples: int = option(
        "Number of examples to rank in each validation, drawn at random if there are more.", 2000, least=1
    )
    save_steps: int = option(
        "Optimiser steps between resumable checkpoints. With eval_steps, every validation writes one instead.",
        200,
        identity=False,
        least=1,
    )
    logging_steps: int = option("Number of optimiser steps between log lines.", 20, identity=False, least=1)
    report_to: list[str] = option("Experiment trackers, under their names in transformers.", [], identity=False)
    device: str = option("Device to train on: auto or cpu.", "auto", identity=False)

    def problems(self) -> list[str]:
        """List the options that contradict each other."""
        if self.patience and self.eval_steps is None:
            return ["patience counts validations and needs eval_steps, the steps between them"]
        return []
