"""OPQ: the dimensions are cut into equal parts, and k-means in each part gives one code.

The levels do not refine one another: each describes its own part of the vector, so their order has no meaning. The
best readers of such codes score all levels at once (RPG) or compose an item's vector from them (VQ-Rec).

Sources: product quantisation (Jegou et al., PAMI 2011); the learned rotation in front of it (Ge et al., CVPR 2013,
non-parametric form) from a random one, as faiss starts; VQ-Rec (arXiv:2210.12316) takes 32 parts of the text vector,
RPG (arXiv:2506.05781) 16 to 64 after PCA and whitening, ActionPiece (arXiv:2502.13581) 4. Departures: in torch; fitted
on all items with a vector, where RPG and ActionPiece take those of the training split; vectors are centred.

Shapes: N items, L levels, K codes per level, D dimension of the vectors, E = L x S dimension after PCA, S of a part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.console import progress, say
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import ItemTokenizer
from llmrec.tokenizers.shared import options
from llmrec.tokenizers.shared.codebooks import restored_books, saved_books
from llmrec.tokenizers.shared.kmeans import code_means, kmeans_plus_plus, lloyd, nearest, squared_distances
from llmrec.tokenizers.shared.vector_coder import VectorCoder
from llmrec.tokenizers.shared.vectors import CHUNK, JointVectors
from llmrec.views import ItemViews


@dataclass
class ProductCodebooks:
    """A codebook for each part of the turned vector.

    Attributes:
        books: Of each level, (K, S).
        mean_D: (D,) subtracted first.
        into_DE: (D, E) matrix into the turned vectors.
        back_ED: (E, D) matrix back.
    """

    books: list[Tensor]
    mean_D: Tensor
    into_DE: Tensor
    back_ED: Tensor

    @property
    def level_sizes(self) -> list[int]:
        """Number of codes of each level."""
        return [len(book_KS) for book_KS in self.books]

    def parts(self, points_BD: Tensor) -> list[Tensor]:
        """L parts (B, S) of the turned vectors."""
        return parts_of((points_BD - self.mean_D) @ self.into_DE, len(self.books))

    def codes(self, points_BD: Tensor) -> Tensor:
        """(B, L) int64 nearest code of each part."""
        parts = zip(self.parts(points_BD), self.books, strict=True)
        return torch.stack([nearest(part, book)[0] for part, book in parts], dim=1)

    def rebuild(self, codes_BL: Tensor) -> Tensor:
        """(B, D) codes side by side, turned back."""
        parts = [book[codes] for book, codes in zip(self.books, codes_BL.T, strict=True)]
        return torch.cat(parts, dim=1) @ self.back_ED + self.mean_D

    def last_level_cost(self, points_BD: Tensor, codes_BL: Tensor) -> Tensor:
        """(B, K) squared distances within the last part, which do not depend on the other codes."""
        return squared_distances(self.parts(points_BD)[-1], self.books[-1])

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, to be saved."""
        return {**saved_books(self.books), "mean": self.mean_D, "into": self.into_DE, "back": self.back_ED}

    def facts(self) -> JsonObject:
        """Further facts to be saved."""
        return {}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], level_sizes: Sequence[int], device: torch.device) -> Self:
        """Read what `tensors` has saved; see `restored_books`."""
        matrices = (tensors[name].to(device) for name in ("mean", "into", "back"))
        return cls(restored_books(tensors, level_sizes, device), *matrices)


@dataclass(kw_only=True)
class OPQ(ItemTokenizer):
    """Optimised product quantisation."""

    method: ClassVar[str] = "opq"

    view_weights: list[float] | None = options.view_weights()
    # ActionPiece; 16 to 64 in RPG, 32 in VQ-Rec.
    num_levels: int = option(
        "Number of codes per item, each of another part of the dimensions; before a collision suffix.", 4, least=1
    )
    # All three papers.
    codebook_size: int = options.codebook_size(256)
    # ActionPiece; 512 in RPG, none in VQ-Rec.
    pca_dim: int | None = option(
        "Number of dimensions that PCA keeps and whitens; null leaves the vectors as they are.", 128, least=1
    )
    # faiss has 50 as well.
    rotations: int = option("Number of updates of the learned rotation; 0 is plain product quantisation.", 50, least=0)
    # The faiss default.
    iterations: int = option("Number of k-means iterations per level, after the rotation is learned.", 25, least=1)

    def problems(self) -> list[str]:
        return part_problems(self.pca_dim, self.num_levels)

    def planned_sizes(self, num_items: int) -> list[int]:
        return [self.codebook_size] * self.num_levels

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        vectors = JointVectors(catalog, views, self.view_weights)
        codebooks = self.codebooks(vectors.to_fit(self.codebook_size))
        self.coder = VectorCoder(vectors.dims, codebooks, resolve_device(self.device), self.view_weights)
        return self

    def codebooks(self, points_ND: Tensor) -> ProductCodebooks:
        """Learn PCA, rotation and codebooks from vectors (N, D) on the CPU.

        Raises:
            ValueError: If the vectors cannot be cut into equal parts.
        """
        device, generator = resolve_device(self.device), torch.Generator().manual_seed(self.seed)
        mean_D, into_DE, back_ED = (part.to(device) for part in self._reduction(points_ND))
        reduced_NE = torch.cat([(part.to(device) - mean_D) @ into_DE for part in points_ND.split(CHUNK)])
        turn_EE, starts = learn_rotation(reduced_NE, self.num_levels, self.codebook_size, self.rotations, generator)
        parts = parts_of(reduced_NE @ turn_EE, self.num_levels)
        books = [lloyd(part, start, self.iterations) for part, start in zip(parts, starts, strict=True)]
        return ProductCodebooks(books, mean_D, into_DE @ turn_EE, turn_EE.T @ back_ED)

    def _reduction(self, points_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, and the matrices into the E dimensions and back."""
        dim = points_ND.shape[1]
        if self.pca_dim is None:
            if dim % self.num_levels:
                raise ValueError(
                    f"vectors of {dim} dimensions cannot be cut into {self.num_levels} equal parts. Set pca_dim to a "
                    f"multiple of {self.num_levels}, or another num_levels."
                )
            return points_ND.mean(0), torch.eye(dim), torch.eye(dim)
        mean_D, into_DE, back_ED = whitening(points_ND, self.pca_dim)
        kept = into_DE.shape[1] // self.num_levels * self.num_levels
        if kept == 0:
            raise ValueError(
                f"{len(points_ND)} vectors that vary in {into_DE.shape[1]} dimensions cannot be cut into "
                f"{self.num_levels} parts. Lower num_levels, or use more or larger views."
            )
        if kept < self.pca_dim:
            say(f"The vectors vary in {into_DE.shape[1]} dimensions; opq keeps {kept}, not {self.pca_dim}.")
        return mean_D, into_DE[:, :kept], back_ED[:kept]

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        device = resolve_device(self.device)
        codebooks = ProductCodebooks.restored(tensors, [self.codebook_size] * self.num_levels, device)
        self.coder = VectorCoder(facts["view_dims"], codebooks, device, self.view_weights)


def part_problems(pca_dim: int | None, num_levels: int) -> list[str]:
    """List what is wrong with a number of dimensions that the levels share equally."""
    if pca_dim is None or pca_dim % num_levels == 0:
        return []
    return [
        f"pca_dim is {pca_dim} for {num_levels} levels, which each take an equal part of the dimensions; give a "
        "multiple of num_levels"
    ]


def whitening(points_ND: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """PCA with whitening: the directions of largest variance, each scaled to variance 1.

    Args:
        points_ND: (N, D) float32 on the CPU.
        dim: Directions wanted; fewer where the points vary in fewer.

    Returns:
        (D,) mean; (D, E) matrix into the whitened directions; (E, D) matrix back.
    """
    mean_D = points_ND.mean(0)
    covariance_DD = sum((part - mean_D).double().T @ (part - mean_D).double() for part in points_ND.split(CHUNK))
    variance_D, directions_DD = torch.linalg.eigh(covariance_DD / len(points_ND))  # ascending
    # Below the rounding of float32 vectors a direction is noise, which whitening would blow up.
    least = variance_D[-1] * torch.finfo(torch.float32).eps * len(variance_D)
    kept = min(dim, int((variance_D > least).sum()))
    scale_E = variance_D[-kept:].flip(0).sqrt() if kept else variance_D[:0]
    directions_DE = directions_DD.flip(1)[:, :kept]
    return mean_D, (directions_DE / scale_E).float(), (scale_E[:, None] * directions_DE.T).float()


def parts_of(points_NE: Tensor, num_levels: int) -> list[Tensor]:
    """L parts (N, S)."""
    return [part.contiguous() for part in points_NE.chunk(num_levels, dim=1)]


def learn_rotation(
    points_NE: Tensor, num_levels: int, codebook_size: int, updates: int, generator: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """Learn the rotation with the least loss under product quantisation: codes and rotation are fitted in turns.

    Args:
        points_NE: (N, E) on any device, centred.
        updates: Turns; with 0 there is no rotation.
        generator: CPU generator.

    Returns:
        (E, E) orthogonal, and L codebooks (K, S) that k-means may start from.

    Source: Ge et al., CVPR 2013, algorithm 1: one k-means step, then the rotation of an orthogonal Procrustes problem.
    """
    dim = points_NE.shape[1]
    random_EE = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
    turn_EE = (random_EE if updates else torch.eye(dim)).to(points_NE.device)
    books = [kmeans_plus_plus(part, codebook_size, generator) for part in parts_of(points_NE @ turn_EE, num_levels)]
    for _ in progress(range(updates), "rotation", unit="updates"):
        parts = parts_of(points_NE @ turn_EE, num_levels)
        codes = [nearest(part, book)[0] for part, book in zip(parts, books, strict=True)]
        books = [code_means(*level)[0] for level in zip(parts, codes, books, strict=True)]
        rebuilt_NE = torch.cat([book[chosen] for book, chosen in zip(books, codes, strict=True)], dim=1)
        left, _, right = torch.linalg.svd((points_NE.T @ rebuilt_NE).double().cpu())
        turn_EE = (left @ right).float().to(points_NE.device)
    return turn_EE, books
