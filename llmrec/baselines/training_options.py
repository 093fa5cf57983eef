"""Options with which a network is trained, shared by the networks and their trainer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingOptions:
    """Options of the training of a network.

    Attributes:
        learning_rate: Of AdamW, constant.
        batch_size: Windows of a step; fewer where an epoch would have less than LEAST_STEPS steps.
        weight_decay: Of AdamW.
        max_epochs: Passes over the training sequences, at most.
        patience: Epochs without a better one after which training stops.
    """

    learning_rate: float = 1e-3  # SASRec, "Implementation Details", of Adam
    batch_size: int = 128  # likewise
    weight_decay: float = 0.01  # torch's default of AdamW; the papers decay nothing
    max_epochs: int = 200  # SASRec's code
    patience: int = 10  # RecBole's stopping_step
