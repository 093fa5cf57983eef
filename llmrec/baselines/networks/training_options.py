"""Options of the trainer of the networks."""

from __future__ import annotations

from dataclasses import dataclass

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
