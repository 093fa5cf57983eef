"""Options of `llmrec alternate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmrec.configs.options import option
from llmrec.configs.sft import SftConfig


@dataclass(kw_only=True)
class AlternateConfig(SftConfig):
    """Fine-tune the extended LLM and train its item tokenizer in turns (ETEGRec)."""

    stage = "alternate"
    one_process = True

    sid: str = option("Directory written by `llmrec tokenize --method etegrec`, whose semantic IDs `model` has.")
    views: str = option("Directory written by `llmrec embed`, with the views that the tokenizer was fitted on.")
    optimization: Literal["alternating", "joint"] = option(
        "Train the two in turns, or both at every step (an ablation).", "alternating"
    )
    cycle_steps: int = option("Optimiser steps of the LLM between passes of the tokenizer.", 500, least=1)
    pass_steps: int | None = option(
        "Optimiser steps of a pass of the tokenizer; those of one pass over the sequences when left out.", None, least=1
    )
    # The paper: the first 10 epochs of up to 400, and all of them but the last up to 100.
    align_after: float = option("Share of the steps before the two are aligned.", 0.1, least=0, most=1)
    freeze_after: float = option(
        "Share of the steps after which the tokenizer is frozen; cross-entropy alone remains.", 0.6, least=0, most=1
    )
    # The paper's best on Instrument and Scientific; 1e-3 on Game.
    sia_weight: float = option("Weight of the sequence-item alignment (mu).", 3e-4, least=0)
    psa_weight: float = option("Weight of the preference-semantic alignment (lambda).", 1e-4, least=0)
    divergence: Literal["symmetric_kl", "jensen_shannon"] = option(
        "Of the sequence-item alignment: the paper's, or a bounded one.", "symmetric_kl"
    )
    psa_temperature: float = option("Divides the cosines of the preference-semantic alignment.", 0.07, above=0)
    adapter_learning_rate: float = option("Peak learning rate of the adapters, which the LLM trains.", 1e-3, above=0)
    # The paper: one of 5e-4, 1e-4, 5e-5.
    tokenizer_learning_rate: float = option("Peak learning rate of the tokenizer.", 1e-4, above=0)
    tokenizer_weight_decay: float = option("AdamW weight decay of the tokenizer.", 0.05, least=0)

    @property
    def aligns(self) -> bool:
        """Whether any of the alignment losses has a weight."""
        return bool(self.sia_weight or self.psa_weight)

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.tasks or not self.histories:
            problems.append("alternate trains on histories alone; leave out tasks, or train them by `llmrec sft` first")
        if self.aligns and self.align_after >= self.freeze_after:
            problems.append(
                f"align_after is {self.align_after} and freeze_after {self.freeze_after}: nothing would be aligned; "
                "lower the one, raise the other, or set sia_weight and psa_weight to 0"
            )
        if (self.aligns or self.optimization == "joint") and self.micro_batch_size < self.batch_size:
            problems.append(
                f"micro_batch_size is {self.micro_batch_size} for batch_size {self.batch_size}: the tokenizer's losses "
                "are of the distinct targets of a whole batch, so set the two to one number (gradient_checkpointing "
                "saves memory)"
            )
        return problems
