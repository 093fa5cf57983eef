"""Fitted residual codebooks: each level quantises the residual that the levels before leave.

Shapes: B vectors, L levels, K codes of a level, E dimension of the codebooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.shared.kmeans import nearest, squared_distances


@dataclass
class ResidualCodebooks:
    """Codebooks whose codes add up to a vector, but for a residual.

    Attributes:
        books: Of each level, (K, E), all on one device.
    """

    books: list[Tensor]

    @property
    def level_sizes(self) -> list[int]:
        """Number of codes of each level."""
        return [len(book_KE) for book_KE in self.books]

    def codes(self, points_BE: Tensor) -> Tensor:
        """(B, L) int64 nearest codes, level after level."""
        left_BE, codes = points_BE, []
        for book_KE in self.books:
            codes.append(nearest(left_BE, book_KE)[0])
            left_BE = left_BE - book_KE[codes[-1]]
        return torch.stack(codes, 1)

    def rebuild(self, codes_BL: Tensor) -> Tensor:
        """(B, E) sums of codes."""
        parts = [book_KE[codes_B] for book_KE, codes_B in zip(self.books, codes_BL.T, strict=True)]
        return sum(parts, start=parts[0].new_zeros(()))

    def last_level_cost(self, points_BE: Tensor, codes_BL: Tensor) -> Tensor:
        """(B, K) squared distances of the last codes to the residual that the given earlier ones leave."""
        for book_KE, codes_B in zip(self.books[:-1], codes_BL.T, strict=False):
            points_BE = points_BE - book_KE[codes_B]
        return squared_distances(points_BE, self.books[-1])

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, to be saved."""
        return saved_books(self.books)

    def facts(self) -> JsonObject:
        """Further facts to be saved."""
        return {}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], level_sizes: Sequence[int], device: torch.device) -> Self:
        """Read what `tensors` has saved; see `restored_books`."""
        return cls(restored_books(tensors, level_sizes, device))


def saved_books(books: Sequence[Tensor]) -> dict[str, Tensor]:
    """Name the codebooks as codebooks.safetensors has them."""
    return {f"codebook_{level}": book for level, book in enumerate(books)}


def restored_books(tensors: Mapping[str, Tensor], level_sizes: Sequence[int], device: torch.device) -> list[Tensor]:
    """Read the codebooks that `saved_books` named.

    Raises:
        ValueError: If they are not as many, or not as large, as the level sizes say.
    """
    count = sum(name.startswith("codebook_") for name in tensors)
    books = [tensors[f"codebook_{level}"].to(device) for level in range(count)]
    sizes = [len(book) for book in books]
    if sizes != list(level_sizes):
        raise ValueError(f"{len(sizes)} codebooks of {sizes} codes where {list(level_sizes)} belong")
    return books
