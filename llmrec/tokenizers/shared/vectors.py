"""Tokenizers that quantise one vector per item: all views side by side.

Each view is scaled to unit length, multiplied by its weight and laid beside the others; a view that misses an item
contributes zeros. Items that no view knows take no part in `fit`; `encode` gives them the codes of the zero vector, so
that all of them share a prefix, unless a method has places to give each of them (gaoq).

Shapes: N items, B rows of a chunk, L levels, K codes of a level, D sum of the view dimensions, E latent dimension.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import Encoded, ItemTokenizer
from llmrec.tokenizers.shared.kmeans import nearest, squared_distances
from llmrec.tokenizers.shared.row_blocks import blocks
from llmrec.views import ItemViews, View

CHUNK = 65536  # rows that go through a network together


@dataclass(kw_only=True)
class VectorTokenizer(ItemTokenizer):
    """A tokenizer of item vectors.

    A method defines `learn` and `codes_of`, and where it can `rebuild` and `last_level_cost`. One that keeps a view for
    another use than to be quantised overrides `inputs`.
    """

    view_weights: list[float] | None = option(
        "Weight of each of `view_names`, after normalisation to unit length.", None
    )

    def __post_init__(self):
        super().__post_init__()
        self.view_dims: dict[str, int] = {}

    def problems(self) -> list[str]:
        weights = self.view_weights or []
        if all(0 < weight < float("inf") for weight in weights):
            return []
        return [f"view_weights is {weights}; positive numbers are needed"]

    @abstractmethod
    def learn(self, points_ND: Tensor) -> None:
        """Learn from the vectors of the items that some view knows, (N, D) float32 on the CPU."""

    @abstractmethod
    def codes_of(self, points_BD: Tensor) -> Tensor:
        """(B, L) int64 codes of vectors, on the device of both."""

    @abstractmethod
    def rebuild(self, codes_BL: Tensor) -> Tensor:
        """(B, D) vectors that codes stand for."""

    @abstractmethod
    def last_level_cost(self, points_BD: Tensor) -> Tensor:
        """(B, K) cost of each code of the last level, all earlier ones being those of `codes_of`."""

    def inputs(self, views: ItemViews) -> ItemViews:
        """Those of the views that are quantised."""
        return views

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        self.view_dims = dims_of(self.inputs(views))
        points_ND = self.joint_vectors(catalog, views, np.flatnonzero(self.inputs(views).known))
        if not len(points_ND):
            raise ValueError(
                f"no view has a vector for any item of '{catalog.source}'. Run `llmrec embed` with other views."
            )
        self.learn(points_ND)
        return self

    @torch.no_grad()
    def encode(self, catalog: Catalog, views: ItemViews) -> Encoded:
        dims = dims_of(self.inputs(views))
        if not self.view_dims or dims != self.view_dims:
            raise ValueError(
                f"This tokenizer was fitted on the views {self.view_dims} (name: dimension) and was given {dims}; "
                "fit it first, or pass the same views in the same order."
            )
        require_rows(catalog, views)
        codes_NL, device = self.encode_views(views), resolve_device(self.device)

        def vectors(rows: np.ndarray) -> Tensor:
            return self.joint_vectors(catalog, views, rows)

        return Encoded(
            codes_NL.numpy(),
            last_level_cost=lambda rows: self.last_level_cost(vectors(rows).to(device)).cpu(),
            vectors=vectors,
            reconstruction=lambda rows: self.rebuild(codes_NL[torch.as_tensor(rows)].to(device)).cpu(),
        )

    @torch.no_grad()
    def encode_views(self, views: ItemViews) -> Tensor:
        """(N, L) int64 codes on the CPU, of views that may be larger than the device's memory, or the host's."""
        weighted = self.weighted(views)
        sources = [view.vectors for view, _ in weighted]
        parts = [
            self.codes_of(join(weighted, rows, found)) for rows, found in blocks(sources, resolve_device(self.device))
        ]
        return torch.cat(parts).cpu()

    def joint_vectors(self, catalog: Catalog, views: ItemViews, rows: np.ndarray) -> Tensor:
        """Vectors of item rows (n,), (n, D) float32 on the CPU; see `join`.

        Raises:
            ValueError: If a view is of another catalogue, or there is not one weight per view.
        """
        require_rows(catalog, views)
        weighted = self.weighted(views)
        return join(weighted, rows, [torch.from_numpy(np.array(view.vectors[rows])) for view, _ in weighted])

    def weighted(self, views: ItemViews) -> list[tuple[View, float]]:
        """Each of `inputs` with its weight.

        Raises:
            ValueError: If there is not one weight per view.
        """
        weights = self.view_weights or [1.0] * len(views)
        if len(weights) != len(views):
            raise ValueError(f"view_weights is {weights} for the views {list(views)}; give one weight per view.")
        inputs = self.inputs(views)
        return [(view, weight) for weight, (name, view) in zip(weights, views.items(), strict=True) if name in inputs]

    def state(self) -> tuple[dict[str, Tensor], JsonObject]:
        return {}, {"view_dims": self.view_dims}

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        self.view_dims = facts["view_dims"]


@dataclass(kw_only=True)
class CodebookTokenizer(VectorTokenizer):
    """A tokenizer with a codebook for each level, all of one size; `learn` sets `codebooks`, on the device."""

    num_levels: int = option("Codes per item, before a collision suffix.", 3, least=1)
    codebook_size: int = option("Codes per level.", 256, least=2)

    def __post_init__(self):
        super().__post_init__()
        self.codebooks: list[Tensor] = []

    def planned_sizes(self, num_items: int) -> list[int]:
        return self.level_sizes

    @property
    def level_sizes(self) -> list[int]:
        return [self.codebook_size] * self.num_levels

    def state(self) -> tuple[dict[str, Tensor], JsonObject]:
        tensors, facts = super().state()
        return {**tensors, **{f"codebook_{level}": book for level, book in enumerate(self.codebooks)}}, facts

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        super().restore(tensors, facts)
        device = resolve_device(self.device)
        count = sum(name.startswith("codebook_") for name in tensors)
        self.codebooks = [tensors[f"codebook_{level}"].to(device) for level in range(count)]
        sizes = [len(book) for book in self.codebooks]
        if sizes != self.level_sizes:
            raise ValueError(f"{len(sizes)} codebooks of {sizes} codes where {self.level_sizes} belong")


@dataclass(kw_only=True)
class ResidualTokenizer(CodebookTokenizer):
    """A tokenizer whose levels each quantise what the levels before have left of a latent vector.

    Codebooks are (K, E). A method with an encoder overrides `latent` and `decode`; the others quantise the vectors
    themselves. One that changes what is left before a level quantises it overrides `level_input` and `rebuild`.
    """

    def latent(self, points_BD: Tensor) -> Tensor:
        """(B, E) what the codebooks quantise."""
        return points_BD

    def decode(self, latent_BE: Tensor) -> Tensor:
        """(B, D) vectors that latent ones stand for."""
        return latent_BE

    def level_input(self, left_BE: Tensor) -> Tensor:
        """(B, E) what a level quantises of what the levels before have left."""
        return left_BE

    def codes_of(self, points_BD: Tensor) -> Tensor:
        return self._quantize(points_BD)[0]

    def rebuild(self, codes_BL: Tensor) -> Tensor:
        return self.decode(sum(book[codes] for book, codes in zip(self.codebooks, codes_BL.T, strict=True)))

    def last_level_cost(self, points_BD: Tensor) -> Tensor:
        return squared_distances(self._quantize(points_BD)[1], self.codebooks[-1])

    def _quantize(self, points_BD: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) codes, and (B, E) what the last level quantises."""
        left_BE, codes = self.latent(points_BD), []
        for codebook_KE in self.codebooks:
            before_BE = self.level_input(left_BE)
            codes.append(nearest(before_BE, codebook_KE)[0])
            left_BE = before_BE - codebook_KE[codes[-1]]
        return torch.stack(codes, 1), before_BE


def dims_of(views: ItemViews) -> dict[str, int]:
    """View -> dimension."""
    return {name: view.vectors.shape[1] for name, view in views.items()}


def require_rows(catalog: Catalog, views: ItemViews) -> None:
    """Refuse views of another catalogue.

    Raises:
        ValueError: If a view has not one row per item.
    """
    for name, view in views.items():
        if len(view.vectors) != catalog.num_items:
            raise ValueError(
                f"view '{name}' has {len(view.vectors)} rows but the catalogue has {catalog.num_items} items; "
                "run `llmrec embed` on this catalogue."
            )


def join(weighted: Sequence[tuple[View, float]], rows: slice | np.ndarray, parts: Sequence[Tensor]) -> Tensor:
    """Views side by side, each at unit length times its weight, zeros where it misses an item.

    Args:
        weighted: Views and their weights.
        rows: Item rows, of which `missing` is read.
        parts: (B, D) vectors of these rows in each view.

    Returns:
        (B, sum of D), on the device of the parts.
    """
    found = []
    for (view, weight), part_BD in zip(weighted, parts, strict=True):
        known_B1 = torch.from_numpy(~view.missing[rows]).to(part_BD.device)[:, None]
        found.append(torch.nn.functional.normalize(part_BD, dim=1) * known_B1 * weight)
    return torch.cat(found, dim=1)


def require_distinct(points_ND: Tensor, least: int) -> None:
    """Refuse vectors among which fewer than `least` are distinct; counts only as far as needed.

    Raises:
        ValueError: With what to lower.
    """
    distinct: set[bytes] = set()
    for row in points_ND.numpy():
        distinct.add(row.tobytes())
        if len(distinct) >= least:
            return
    if len(distinct) == 1:
        raise ValueError(
            f"all of the {len(points_ND)} item vectors are equal; items that cannot be told apart get no semantic IDs. "
            "Check what the views were built from."
        )
    raise ValueError(
        f"{len(points_ND)} items with a vector, {len(distinct)} distinct vectors, cannot fill codebooks of {least} "
        f"codes. Lower codebook_size to at most {len(distinct)}."
    )
