"""Augmentation of histories: other looks at the same training sequence, drawn anew in every epoch.

Crop keeps a contiguous part, mask leaves items out, reorder shuffles a contiguous part. CL4SRec contrasts two such
looks with each other; here the loss stays next-item prediction, on the look alone.

Departures: a masked item is left out, as there is no token for it; and since every item of a sequence may be a target,
one whose place the augmentation has made untrue is shown and not scored (`honest_targets`).

Source: CL4SRec, Xie et al., Contrastive Learning for Sequential Recommendation (arXiv:2010.14395).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from llmrec.configs import SftConfig

SHORTEST = 2  # items: one to be seen and one to be predicted from it


@dataclass(frozen=True)
class Augmentation:
    """How often each change is made to a history, and to how much of it.

    Args:
        crop: Probability that a part of `crop_ratio` of the items is kept.
        mask: Probability that `mask_ratio` of the items are left out.
        reorder: Probability that a part of `reorder_ratio` of the items is shuffled.
    """

    crop: float
    crop_ratio: float
    mask: float
    mask_ratio: float
    reorder: float
    reorder_ratio: float

    @classmethod
    def of(cls, config: SftConfig) -> Augmentation | None:
        """The one that a run asks for, if any."""
        asked = cls(**{f.name: getattr(config, f.name) for f in dataclasses.fields(cls)})
        return asked if asked.crop or asked.mask or asked.reorder else None

    def draw(self, length: int, num_context: int, rng: np.random.Generator) -> np.ndarray:
        """Places of the items that are shown, in the order in which they are shown.

        At least one target stays honest: a crop holds one, mask keeps the last two items and reorder the last.

        Args:
            length: Items of the history.
            num_context: Leading items that are not targets.
            rng: Source of the draw.

        Returns:
            (n,) int64, n at most `length`.
        """
        places = np.arange(length)
        crops, masks, reorders = rng.random(3) < (self.crop, self.mask, self.reorder)
        if crops:
            places = _crop(places, num_context, self.crop_ratio, rng)
        if masks:
            places = _mask(places, self.mask_ratio, rng)
        if reorders:
            places = _reorder(places, self.reorder_ratio, rng)
        return places


def honest_targets(places: np.ndarray, num_context: int) -> np.ndarray:
    """Which shown items are targets: those that really came next after what is shown before them.

    That is, everything shown before an item had come before it, and the item that came right before it is shown. So
    the first item of a crop, the item behind a gap and the inside of a shuffled part are not scored; the item right
    behind a shuffled part is.

    Args:
        places: (n,) of `Augmentation.draw`.
        num_context: Leading items of the history that are not targets.

    Returns:
        (n,) bool.
    """
    latest_before = np.maximum.accumulate(np.concatenate([[-1], places]))[:-1]
    return (places - 1 == latest_before) & (places >= num_context)


def _crop(places: np.ndarray, num_context: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    size = max(SHORTEST, int(ratio * len(places)))
    if size >= len(places):
        return places
    start = rng.integers(max(0, num_context - size + 1), len(places) - size, endpoint=True)
    return places[start : start + size]


def _mask(places: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    is_shown = np.ones(len(places), dtype=bool)
    is_shown[rng.permutation(max(0, len(places) - SHORTEST))[: int(ratio * len(places))]] = False
    return places[is_shown]


def _reorder(places: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    size = min(int(ratio * len(places)), len(places) - 1)
    if size < SHORTEST:
        return places
    start = rng.integers(len(places) - 1 - size, endpoint=True)
    places[start : start + size] = rng.permutation(places[start : start + size])
    return places
