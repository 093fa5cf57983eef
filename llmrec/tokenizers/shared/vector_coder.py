"""Codes of items by their vectors: what the tokenizers that read views learn.

A quantiser turns vectors into codes. The coder applies it to the joint vectors of a catalogue, and remembers which
views these were made of. Items that no view knows have the zero vector, so all of them get one prefix, unless the
method has places to give each of them (gaoq).

Shapes: N items, n of them with a vector, B vectors, L levels, K codes of the last level, D dimension of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from llmrec.data.catalog import Catalog
from llmrec.runtime import processes
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import Encoded
from llmrec.tokenizers.shared.assigned import AssignedCodes
from llmrec.tokenizers.shared.vectors import JointVectors
from llmrec.views import ItemViews


class Quantizer(Protocol):
    """Codebooks, a tree, or an encoder in front of codebooks: anything that turns vectors into codes."""

    @property
    def level_sizes(self) -> list[int]:
        """Number of codes of each level."""

    def codes(self, points_BD: Tensor) -> Tensor:
        """(B, L) int64 codes of vectors, on the device of both."""

    def rebuild(self, codes_BL: Tensor) -> Tensor:
        """(B, D) vectors that codes stand for."""

    def last_level_cost(self, points_BD: Tensor, codes_BL: Tensor) -> Tensor:
        """(B, K) cost of each code of the last level for vectors whose earlier codes are given."""

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, to be saved."""

    def facts(self) -> JsonObject:
        """Further facts to be saved."""


@runtime_checkable
class PlacingQuantizer(Quantizer, Protocol):
    """A quantiser that finds free codes for new items, under another parent where that of an item is full."""

    def place(self, points_BD: Tensor, taken_PL: Tensor) -> Tensor:
        """(B, L) int64 codes of vectors, none of them among the codes (P, L) that are taken."""


@dataclass
class VectorCoder:
    """A quantiser applied to views side by side.

    Attributes:
        view_dims: View -> dimension, in the order of `fit`.
        quantizer: On `device`.
        device: Where vectors are quantised.
        weights: Of the views that `fit` and `encode` are given, one each.
        without: A view among these that is not quantised.
        assigned: Codes of the fitted items, where they are not the quantiser's own.
        latent: Maps vectors into the space of `quantizer.rebuild`, where this is not their own.
    """

    view_dims: dict[str, int]
    quantizer: Quantizer
    device: torch.device
    weights: Sequence[float] | None = None
    without: str | None = None
    assigned: AssignedCodes | None = None
    latent: Callable[[Tensor], Tensor] | None = None

    @property
    def level_sizes(self) -> list[int]:
        """Number of codes of each level."""
        return self.quantizer.level_sizes

    @property
    def view_names(self) -> list[str]:
        """Views that `encode` reads, in the order of `fit`."""
        return list(self.view_dims)

    def assign(self, vectors: JointVectors, codes_nL: Tensor, unknown_codes: Tensor | None = None) -> None:
        """Keep codes of the fitted items that are not the nearest ones, such as those of balanced clusters.

        Args:
            vectors: Of all items.
            codes_nL: (n, L) int64 codes of the items that some view knows, in their order.
            unknown_codes: (N - n, L) codes of the others; those of the zero vector when left out.
        """
        nearest_NL, known_N = self._nearest(vectors), torch.from_numpy(vectors.known)
        codes_NL = nearest_NL.clone()
        codes_NL[known_N] = codes_nL.cpu()
        if unknown_codes is not None:
            codes_NL[~known_N] = unknown_codes.cpu()
        self.assigned = AssignedCodes.of(vectors.item_ids, codes_NL, nearest_NL)

    @torch.no_grad()
    def _nearest(self, vectors: JointVectors) -> Tensor:
        """(N, L) int64 codes that the quantiser gives, on the CPU; several processes share the items out."""
        none = torch.empty(0, len(self.level_sizes), dtype=torch.int64, device=self.device)
        codes_nL = torch.cat([none, *(self.quantizer.codes(part_BD) for part_BD in vectors.blocks(self.device))])
        return processes.joined(codes_nL).cpu()

    def encode(self, catalog: Catalog, views: ItemViews) -> Encoded:
        """Give every item of a catalogue its codes; see `ItemTokenizer.encode`."""
        dims = {name: view.vectors.shape[1] for name, view in views.items() if name != self.without}
        if dims != self.view_dims:
            raise ValueError(
                f"This tokenizer was fitted on the views {self.view_dims} (name: dimension) and was given {dims}; "
                "fit it first, or pass the same views in the same order."
            )
        vectors = JointVectors(catalog, views, self.weights, self.without)
        codes_NL = self._nearest(vectors)
        if self.assigned is not None:
            codes_NL = self.assigned.put_back(catalog.item_ids, codes_NL)

        def codes_of(rows: np.ndarray) -> Tensor:
            return codes_NL[torch.as_tensor(rows)].to(self.device)

        def last_level_cost(rows: np.ndarray) -> Tensor:
            return self.quantizer.last_level_cost(vectors.of(rows).to(self.device), codes_of(rows)).cpu()

        def reconstruction(rows: np.ndarray) -> Tensor:
            return self.quantizer.rebuild(codes_of(rows)).cpu()

        def quantised(rows: np.ndarray) -> Tensor:
            points_nD = vectors.of(rows)
            return points_nD if self.latent is None else self.latent(points_nD.to(self.device)).cpu()

        place = self._place(self.quantizer, vectors) if isinstance(self.quantizer, PlacingQuantizer) else None
        return Encoded(codes_NL.numpy(), last_level_cost, quantised, reconstruction, place)

    def _place(
        self, quantizer: PlacingQuantizer, vectors: JointVectors
    ) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """`Encoded.place` by a quantiser that finds free codes."""

        def place(rows: np.ndarray, taken_PL: np.ndarray) -> np.ndarray:
            taken = torch.from_numpy(taken_PL).to(self.device)
            return quantizer.place(vectors.of(rows).to(self.device), taken).cpu().numpy()

        return place

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, to be saved."""
        return {**self.quantizer.tensors(), **(self.assigned.tensors() if self.assigned else {})}

    def facts(self) -> JsonObject:
        """Further facts to be saved."""
        return {"view_dims": self.view_dims, **self.quantizer.facts()}
