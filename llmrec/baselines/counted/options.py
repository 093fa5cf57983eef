"""Options that every counted ranker has."""

from __future__ import annotations

from dataclasses import dataclass

from llmrec.configs.options import Config, option

CHOSEN = "`llmrec teach` chooses it on valid unless it is given."  # help of an option that is in the grid of its ranker


@dataclass(kw_only=True)
class CountedOptions(Config):
    """Options of a counted ranker. A ranker adds its own in a class that derives from this one."""

    power: float = option(
        "Exponent of the scores before they become probabilities; above 1 these are sharper. It changes no ranking.",
        1.0,
        above=0,
    )
