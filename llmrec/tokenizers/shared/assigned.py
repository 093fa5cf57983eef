"""Codes that `fit` assigned to items, where these are not the nearest ones: balanced clusters have a size to keep.

They are given back, in any catalogue and from a loaded tokenizer, to every fitted item whose nearest codes are still
those of `fit`: its vector has not moved as far as the codebooks can tell. New items, and items that have moved, get the
nearest codes.

Shapes: F fitted items, N items of a catalogue, L levels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class AssignedCodes:
    """Codes of the fitted items, by item id.

    Attributes:
        codes: (F, L) int64 codes that `fit` assigned.
        nearest: (F, L) int64 nearest codes of the same items.
        keys: (F,) int64 `item_keys` of them.
    """

    codes: Tensor
    nearest: Tensor
    keys: Tensor

    @classmethod
    def of(cls, item_ids: Sequence[str], codes: Tensor, nearest: Tensor) -> Self:
        """Remember the codes (F, L) and nearest codes (F, L) of items."""
        return cls(codes, nearest, torch.from_numpy(item_keys(item_ids)))

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> Self | None:
        """Read what `tensors` has saved; None where there is nothing of the kind."""
        if "assigned" not in tensors:
            return None
        return cls(tensors["assigned"], tensors["nearest"], tensors["item_keys"])

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, to be saved."""
        return {"assigned": self.codes, "nearest": self.nearest, "item_keys": self.keys}

    def put_back(self, item_ids: Sequence[str], nearest_NL: Tensor) -> Tensor:
        """Replace the nearest codes of fitted items by those that `fit` assigned.

        Args:
            item_ids: (N,) ids of a catalogue.
            nearest_NL: (N, L) int64 nearest codes of its items.

        Returns:
            (N, L) int64.
        """
        found_N, place_N = find_keys(item_keys(item_ids), self.keys.numpy())
        stays_N = torch.from_numpy(found_N) & (nearest_NL == self.nearest[place_N]).all(dim=1)
        codes_NL = nearest_NL.clone()
        codes_NL[stays_N] = self.codes[place_N][stays_N]
        return codes_NL


def item_keys(item_ids: Sequence[str]) -> np.ndarray:
    """(N,) int64 hashes of item_ids, by which tensors remember items; among 10^6 items two are equal once in 10^7."""
    digests = (hashlib.blake2b(item_id.encode(), digest_size=8).digest() for item_id in item_ids)
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)


def find_keys(wanted: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find each wanted key among the keys: whether it is there, and where; elsewhere the place has no meaning."""
    order = keys.argsort()
    place = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
    return keys[place] == wanted, place
