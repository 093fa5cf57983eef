"""Cycles: which optimiser steps of the LLM are aligned, and after which of them the tokenizer has a pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

from datasets import Dataset

from llmrec.configs import AlternateConfig


@dataclass(frozen=True)
class Schedule:
    """What happens at which optimiser step of the LLM; the first one is 1.

    Attributes:
        steps: Of the run.
        aligned_after: Steps before the alignment is on.
        frozen_after: Step of the last pass, after which the tokenizer is frozen and the alignment off; 0 without any.
        cycle: Steps between passes.
        pass_steps: Optimiser steps of a pass.
    """

    steps: int
    aligned_after: int
    frozen_after: int
    cycle: int
    pass_steps: int

    @classmethod
    def of(cls, config: AlternateConfig, examples: Dataset) -> Schedule:
        """Of a run over examples that fill their last batch.

        After the last step of all there is no pass: nothing would be trained on its semantic IDs.

        Raises:
            ValueError: If the tokenizer would be frozen before its first pass, or before anything is aligned.
        """
        in_epoch = len(examples) // config.batch_size
        steps = config.max_steps if config.max_steps > 0 else math.ceil(config.epochs * in_epoch)
        end, aligned_after = min(int(config.freeze_after * steps), steps - 1), int(config.align_after * steps)
        frozen_after = end // config.cycle_steps * config.cycle_steps
        if config.freeze_after and frozen_after <= (aligned_after if config.aligns else 0):
            raise ValueError(
                f"cycle_steps is {config.cycle_steps}, and of the run's {steps} steps {aligned_after} come before the "
                f"alignment and {steps - end} after the tokenizer is frozen: no pass would be aligned. Lower "
                "cycle_steps or align_after, raise freeze_after, or train longer; freeze_after 0 trains no tokenizer."
            )
        return cls(steps, aligned_after, frozen_after, config.cycle_steps, config.pass_steps or in_epoch)

    @property
    def passes(self) -> int:
        return self.frozen_after // self.cycle

    def ends_cycle(self, step: int) -> bool:
        return step % self.cycle == 0 and 0 < step <= self.frozen_after
