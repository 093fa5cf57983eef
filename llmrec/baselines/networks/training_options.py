"""Options of the trainer of the networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmrec.configs.options import Config, option


@dataclass(kw_only=True)
class TrainingOptions(Config):
    """Options of training one network. A network adds its own in a class that derives from this one."""

    # SASRec, "Implementation Details", for Adam
    learning_rate: float = option("Learning rate of AdamW; it is constant.", 1e-3, above=0)
    # also SASRec's
    batch_size: int = option(
        "Windows per step; fewer if an epoch would otherwise have less than 32 steps.", 128, least=1
    )
    # torch's default for AdamW; the papers use no decay
    weight_decay: float = option("Weight decay of AdamW.", 0.01, least=0)
    # SASRec's code
    max_epochs: int = option("Largest number of passes over the training sequences.", 200, least=1)
    # RecBole's stopping_step
    patience: int = option("Training stops after so many epochs without a new best one.", 10, least=1)
    # Held-out histories are cut when the catalogue is prepared; a longer history would never be ranked.
    max_history: int | None = option(
        "Latest items of a history that are read. The default is the longest history of the valid examples.",
        None,
        least=1,
    )
    loss: Literal["softmax", "sampled_softmax"] = option(
        "Cross-entropy over all items, or over the target and `negatives` random items.", "softmax"
    )
    negatives: int | None = option(
        "Random items that each target competes with in `sampled_softmax`. The default is 256.", None, least=1
    )

    def problems(self) -> list[str]:
        if self.negatives is None or self.loss == "sampled_softmax":
            return []
        return [
            f"negatives is {self.negatives}, but loss is softmax, which scores all items; "
            "choose sampled_softmax or leave negatives out"
        ]
