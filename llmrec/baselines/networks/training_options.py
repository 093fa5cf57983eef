"""Options of the trainer of the networks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingOptions:
    """Options of training one network.

    Attributes:
        learning_rate: Learning rate of AdamW; it is constant.
        batch_size: Windows per step; fewer if an epoch would otherwise have less than LEAST_STEPS steps.
        weight_decay: Weight decay of AdamW.
        max_epochs: Largest number of passes over the training sequences.
        patience: Training stops after so many epochs without a new best one.
    """

    learning_rate: float = 1e-3  # SASRec, "Implementation Details", for Adam
    batch_size: int = 128  # also SASRec's
    weight_decay: float = 0.01  # torch's default for AdamW; the papers use no decay
    max_epochs: int = 200  # SASRec's code
    patience: int = 10  # RecBole's stopping_step
