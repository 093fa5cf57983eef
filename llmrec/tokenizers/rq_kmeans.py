"""RQ-KMeans: k-means on the items' vectors, then on their residuals, level after level.

Source: OneRec technical report (arXiv:2506.13695), section on tokenization. Departures: the input is any set of views
side by side, where the paper has one multimodal embedding; k-means starts by k-means++ (the paper's faiss starts at
random items), so that small codebooks are reproducibly good.

With `balance` all codes of a level have the same number of items, or one more, over the whole catalogue: `onerec` is
the balanced k-means of OneRec (arXiv:2502.18965), where codes in turn take their nearest items; `capacity` assigns
items to codes at a low total cost, as MiniOneRec (arXiv:2510.24431) does with k_means_constrained. Departures: that of
`onerec_assignment`; `capacity` goes by prices (balanced.py), so that it needs no solver and has no limit of size.
Balanced codes of fitted items are remembered by item id; new items get the nearest code.

Under `accelerate launch` each process holds the vectors of its share of the items, except with `balance`.

Shapes: N items, L levels, K codes per level, D dimension of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.console import progress
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import ItemTokenizer
from llmrec.tokenizers.shared import options
from llmrec.tokenizers.shared.assigned import AssignedCodes
from llmrec.tokenizers.shared.balanced import balanced_kmeans
from llmrec.tokenizers.shared.codebooks import ResidualCodebooks
from llmrec.tokenizers.shared.kmeans import kmeans, nearest
from llmrec.tokenizers.shared.vector_coder import VectorCoder
from llmrec.tokenizers.shared.vectors import CHUNK, JointVectors
from llmrec.views import ItemViews

Balance = Literal["none", "capacity", "onerec"]


@dataclass(kw_only=True)
class RQKMeans(ItemTokenizer):
    """Residual k-means."""

    method: ClassVar[str] = "rq_kmeans"
    renamed: ClassVar[dict[str, str]] = {"kmeans": "removed: k-means runs in torch; faiss gave no better codebooks."}

    view_weights: list[float] | None = options.view_weights()
    num_levels: int = options.num_levels(3)
    codebook_size: int = options.codebook_size(256)
    # 25 is the faiss default, as OneRec (2506.13695) uses it.
    iterations: int = options.kmeans_iterations(25)
    # OneRec's report and MiniOneRec's plain variant have none.
    balance: Balance = option(
        "Give every code of a level the same number of items: capacity at a low total cost, onerec by codes that "
        "choose in turn.",
        "none",
    )

    @property
    def holds_all_items(self) -> bool:
        return self.balance != "none"

    def planned_sizes(self, num_items: int) -> list[int]:
        return [self.codebook_size] * self.num_levels

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        vectors = JointVectors(catalog, views, self.view_weights)
        is_balanced, device = self.holds_all_items, resolve_device(self.device)
        points_ND = vectors.to_fit(self.codebook_size, all_items=is_balanced, is_share=not is_balanced).to(device)
        sizes = (self.num_levels, self.codebook_size, self.iterations)
        codebooks, codes_NL = residual_kmeans(points_ND, *sizes, self.seed, self.balance, is_share=not is_balanced)
        coder = VectorCoder(vectors.dims, codebooks, device, self.view_weights)
        if is_balanced:
            coder.assign(vectors, codes_NL)
        self.coder = coder
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        device = resolve_device(self.device)
        codebooks = ResidualCodebooks.restored(tensors, [self.codebook_size] * self.num_levels, device)
        assigned = AssignedCodes.restored(tensors)
        self.coder = VectorCoder(facts["view_dims"], codebooks, device, self.view_weights, assigned=assigned)


def residual_kmeans(
    points_ND: Tensor,
    num_levels: int,
    codebook_size: int,
    iterations: int,
    seed: int,
    balance: Balance = "none",
    is_share: bool = False,
) -> tuple[ResidualCodebooks, Tensor]:
    """Fit codebooks by k-means on the residuals of the vectors, level after level.

    Args:
        points_ND: (N, D) float32 on any device.
        num_levels: L.
        codebook_size: K.
        iterations: k-means iterations per level.
        seed: Of the starts of k-means.
        balance: Whether codes get the same number of points, and how.
        is_share: As for `kmeans`; balanced codes need all points in every process.

    Returns:
        Codebooks on the device of the points, and (N, L) int64 codes of the points.
    """
    left_ND, generator, books, codes = points_ND.clone(), torch.Generator().manual_seed(seed), [], []
    for _ in progress(range(num_levels), "k-means", unit="levels"):
        if balance == "none":
            book_KD = kmeans(left_ND, codebook_size, iterations, generator, is_share)
            codes_N = nearest(left_ND, book_KD)[0]
        else:
            by_turns = balance == "onerec"
            book_KD, codes_N = balanced_kmeans(left_ND, codebook_size, iterations, generator, by_turns)
        for part_BD, codes_B in zip(left_ND.split(CHUNK), codes_N.split(CHUNK), strict=True):
            part_BD -= book_KD[codes_B]  # in place: there are few copies of all vectors to spare
        books.append(book_KD)
        codes.append(codes_N)
    return ResidualCodebooks(books), torch.stack(codes, dim=1)
