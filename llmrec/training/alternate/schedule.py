"""The schedule of a run: which optimiser steps of the LLM are aligned, and after which of them the tokenizer trains."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmrec.configs import AlternateConfig

SETTLED_CHURN, SETTLED_CYCLES = 0.01, 3  # a churn below this, in as many cycles in a row, freezes the tokenizer


@dataclass(frozen=True)
class Schedule:
    """Parts of a run, in optimiser steps of the LLM; the first one is 1.

    Attributes:
        steps: Steps of the run.
        aligned_after: Steps before the alignment begins.
        frozen_after: Step of the last pass; after it the tokenizer is frozen and nothing is aligned. 0 without a pass.
        cycle_steps: Steps between passes.
        pass_steps: Optimiser steps of the tokenizer in a pass, as many as an epoch of the LLM has.
        aligns: True if an alignment loss has a weight.
        is_joint: True if the tokenizer trains at the steps of the LLM, and not in passes.
        restarts: True if the learning rate of the LLM starts anew when the tokenizer is frozen.
    """

    steps: int
    aligned_after: int
    frozen_after: int
    cycle_steps: int
    pass_steps: int
    aligns: bool
    is_joint: bool
    restarts: bool

    @classmethod
    def of(cls, config: AlternateConfig, num_examples: int) -> Schedule:
        """Make the schedule of a run.

        There is no pass after the last step of all, because nothing would be trained on its semantic IDs.

        Args:
            config: Options of the stage.
            num_examples: Number of examples of an epoch, a multiple of the batch size.

        Raises:
            ValueError: If the tokenizer would be frozen before its first pass, or before anything is aligned.
        """
        in_epoch = num_examples // config.batch_size
        steps = math.ceil(config.epochs * in_epoch)
        end, aligned_after = min(int(config.freeze_after * steps), steps - 1), int(config.align_after * steps)
        frozen_after = end // config.cycle_steps * config.cycle_steps
        if config.freeze_after and frozen_after <= (aligned_after if config.aligns else 0):
            raise ValueError(
                f"cycle_steps is {config.cycle_steps}, and of the run's {steps} steps {aligned_after} come before the "
                f"alignment and {steps - end} after the tokenizer is frozen: no pass would be aligned. Lower "
                "cycle_steps or align_after, raise freeze_after, or train longer; freeze_after 0 trains no tokenizer."
            )
        is_joint = config.optimization == "joint"
        return cls(
            steps, aligned_after, frozen_after, config.cycle_steps, in_epoch, config.aligns, is_joint, config.restart
        )

    @property
    def cycles(self) -> int:
        """Number of cycles, each of which ends with new semantic IDs."""
        return self.frozen_after // self.cycle_steps

    @property
    def tokenizer_steps(self) -> int:
        """Optimiser steps of the tokenizer in the run."""
        return self.frozen_after if self.is_joint else self.cycles * self.pass_steps


@dataclass
class Progress:
    """Cycles that a run has behind it, and with them the answer to what its next step trains.

    Attributes:
        schedule: Schedule of the run.
        cycle: Cycles so far.
        settled: Cycles in a row, up to the last one, that have hardly changed the semantic IDs.
        is_frozen: True if the tokenizer is not trained any more.
    """

    schedule: Schedule
    cycle: int
    settled: int
    is_frozen: bool

    @classmethod
    def at_start(cls, schedule: Schedule) -> Progress:
        """Make the progress of a run that begins."""
        return cls(schedule, 0, 0, is_frozen=not schedule.cycles)

    @property
    def trains_jointly(self) -> bool:
        """True if the tokenizer trains at the steps of the LLM now."""
        return self.schedule.is_joint and not self.is_frozen

    @property
    def restarted_after(self) -> int:
        """Step after which the learning rate has started anew; 0 if it has not."""
        return self.cycle * self.schedule.cycle_steps if self.is_frozen and self.schedule.restarts else 0

    def place_of(self, step: int) -> float:
        """Place of a step in the learning-rate schedule of the whole run, which fits into the rest after a restart."""
        steps, begun = self.schedule.steps, self.restarted_after
        return (step - begun) * steps / (steps - begun)

    def aligns_at(self, step: int) -> bool:
        """Tell whether the alignment losses act at an optimiser step."""
        plan = self.schedule
        return plan.aligns and not self.is_frozen and plan.aligned_after < step <= plan.frozen_after

    def needs_pools_at(self, step: int) -> bool:
        """Tell whether a step needs the pools of its batch."""
        return self.aligns_at(step) or self.trains_jointly

    def ends_cycle(self, step: int) -> bool:
        """Tell whether a cycle ends after a step."""
        plan = self.schedule
        return not self.is_frozen and step % plan.cycle_steps == 0 and 0 < step <= plan.frozen_after

    def count_cycle(self, step: int, churn: float) -> None:
        """Count a cycle, and freeze the tokenizer after the last one or if the semantic IDs have settled.

        Args:
            step: Step that the cycle has ended after.
            churn: Share of the items whose semantic ID has changed.
        """
        has_settled = churn < SETTLED_CHURN and (self.aligns_at(step) or not self.schedule.aligns)
        self.cycle += 1
        self.settled = self.settled + 1 if has_settled else 0
        self.is_frozen = self.settled == SETTLED_CYCLES or self.cycle == self.schedule.cycles
