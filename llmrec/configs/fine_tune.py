"""Options that all stages which train the LLM share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmrec.configs.options import StageConfig, option


@dataclass(kw_only=True)
class FineTuneConfig(StageConfig):
    """What is trained of the LLM, for how long, and how it is watched; each has a `stage`, as messages name it."""

    one_process = False  # whether several are refused

    catalog: str = option("Directory written by `llmrec prepare`.")
    model: str = option("Checkpoint directory to start from.")
    lora_rank: int = option("Rank of LoRA.", 16, least=1)
    lora_alpha: int = option("Scale of LoRA, divided by its rank (by the root of it under lora_rslora).", 32, least=1)
    lora_dropout: float = option("Dropout on LoRA's input.", 0.0, least=0, most=1)
    lora_targets: list[str] = option("Module names that LoRA adapts.", ["all-linear"])
    lora_dora: bool = option("Train the norms of the adapted weights apart from their directions (DoRA).", False)
    lora_rslora: bool = option("Scale LoRA by the root of its rank, for high ranks (rsLoRA).", False)
    quantization: Literal["none", "nf4"] = option("4-bit base weights by bitsandbytes (not with full).", "none")
    epochs: float = option("Passes over the training sequences.", 3.0, above=0)
    max_steps: int = option("Optimiser steps, instead of `epochs`, where positive.", -1, least=-1)
    batch_size: int = option("Sequences per optimiser step, over all processes.", 64, least=1)
    micro_batch_size: int = option("Sequences per forward pass on one device.", 64, identity=False, least=1)
    learning_rate: float = option("Peak learning rate of LoRA, or of all weights.", 2e-4, above=0)
    weight_decay: float = option("AdamW weight decay.", 0.01, least=0)
    warmup_steps: int = option("Optimiser steps of linear warm-up.", 20, least=0)
    # Those of transformers that need no further options and no evaluation.
    scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
    ] = option("Learning-rate schedule, as transformers names it.", "cosine")
    max_grad_norm: float = option("Gradient clipping.", 1.0, least=0)
    precision: Literal["auto", "float32", "bfloat16"] = option("auto: bfloat16 on a GPU that has it.", "auto")
    gradient_checkpointing: bool = option("Trade compute for memory.", False, identity=False)
    eval_steps: int | None = option(
        "Rank valid rows every so many optimiser steps and at the end, and save the best of these steps.", None, least=1
    )
    patience: int | None = option("Evaluations without a better ndcg@10 after which training stops.", None, least=1)
    eval_rows: int = option("Valid rows to rank for eval_steps, a random sample if there are more.", 2000, least=1)
    save_steps: int = option(
        "Optimiser steps between resumable checkpoints; with eval_steps each evaluation has one instead.",
        200,
        identity=False,
        least=1,
    )
    logging_steps: int = option("Optimiser steps between log lines.", 20, identity=False, least=1)
    report_to: list[str] = option("Trackers, as transformers names them.", [], identity=False)
    device: str = option("auto or cpu.", "auto", identity=False)

    def problems(self) -> list[str]:
        if self.patience and self.eval_steps is None:
            return ["patience counts evaluations and needs eval_steps, the steps between them"]
        return []
