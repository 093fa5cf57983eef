"""Callbacks of every run: log lines without a terminal, and an end to a run that has diverged."""

from __future__ import annotations

import contextlib
import math

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmrec.runtime.console import bar, has_screen, say
from llmrec.training.validation import best_step

DIVERGED = (
    "training has diverged, its loss is not finite. Lower learning_rate or raise warmup_steps, and run again with "
    "--overwrite."
)


class Divergence(TrainerCallback):
    """Ends a run whose loss is not finite; the weights of the best step are kept where there is one.

    Args:
        stage: Name of the stage, for messages.
    """

    def __init__(self, stage: str):
        self.stage = stage

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Check the mean loss since the last entry, and at the end of training the mean of all steps.

        Raises:
            ValueError: If the loss is not finite and no step before can be saved.
        """
        loss = (logs or {}).get("loss", (logs or {}).get("train_loss", 0.0))
        if math.isfinite(loss):
            return
        if best_step(state).get("saved_step", state.global_step) == state.global_step:
            raise ValueError(f"Step {state.global_step}: {DIVERGED}")
        if not control.should_training_stop:
            say(f"{self.stage}: step {state.global_step} of {state.max_steps}, loss {loss}: training stops here.")
            control.should_training_stop = True


class TrainingBar(TrainerCallback):
    """Shows the steps as a bar, with the latest loss.

    Args:
        stage: Name of the stage, which begins the line.
    """

    def __init__(self, stage: str):
        self.stage = stage
        self.shown = contextlib.ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Show the bar, at the step from which a run continues."""
        self.update = self.shown.enter_context(bar(self.stage, state.max_steps, "steps", state.global_step))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Move the bar."""
        self.update(advance=1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Show the loss."""
        if logs and "loss" in logs:
            self.update(description=f"{self.stage}, loss {float(logs['loss']):.4f}")

    def close(self) -> None:
        """Remove the bar, also where training has failed."""
        self.shown.close()


class LogLines(TrainerCallback):
    """Prints one line per log entry where there is no terminal for a progress bar.

    Args:
        stage: Name of the stage, which begins each line.
        shown: Names of the values to print, if an entry has them.
    """

    def __init__(self, stage: str, shown: tuple[str, ...]):
        self.stage, self.shown = stage, shown

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Print the values of an entry of training; those of validation and of the end have lines of their own."""
        if logs and "loss" in logs and not has_screen():
            values = ", ".join(f"{name} {float(logs[name]):.4f}" for name in self.shown if logs.get(name) is not None)
            say(f"{self.stage}: step {state.global_step} of {state.max_steps}, {values}")
