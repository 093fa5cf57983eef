"""Averages that a preference trainer logs: over the micro-batches since the last log entry, and over all processes."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor


class Averages:
    """Collects weighted means on the device; nothing waits for it before a log entry is written.

    Args:
        accelerator: Accelerator of the trainer.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.sums: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def add(self, name: str, values: Tensor, weights: Tensor) -> None:
        """Add the values of one micro-batch.

        Args:
            name: Key of the log entry.
            values: Values of any shape.
            weights: How much each value counts; broadcast against the values.
        """
        sums = torch.stack([(values * weights).sum(), weights.expand_as(values).sum()])
        self.sums.setdefault(name, []).append(sums.to(self.accelerator.device, torch.float32))

    def state(self) -> dict[str, list[list[float]]]:
        """Sums of this process since the last call of `take`, for a checkpoint."""
        return {name: [part.tolist() for part in parts] for name, parts in self.sums.items()}

    def restore(self, state: dict[str, list[list[float]]]) -> None:
        """Return to a state of `state`."""
        device = self.accelerator.device
        self.sums = {name: [torch.tensor(part, device=device) for part in parts] for name, parts in state.items()}

    def take(self) -> dict[str, float]:
        """Return the averages since the last call, each a mean over processes first and then over micro-batches.

        Every process has to call it after the same number of micro-batches.
        """
        if not self.sums:
            return {}
        counts = [len(parts) for parts in self.sums.values()]
        local = torch.stack([part for parts in self.sums.values() for part in parts])
        totals = self.accelerator.gather(local.unsqueeze(0)).sum(dim=0).double()
        means = (totals[:, 0] / totals[:, 1]).cpu().split(counts)
        taken = {name: float(part.mean()) for name, part in zip(self.sums, means, strict=True)}
        self.sums.clear()
        return taken
