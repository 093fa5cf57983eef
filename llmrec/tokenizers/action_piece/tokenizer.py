"""ActionPiece: items are sets of features, and what often stands side by side in histories becomes one token.

Features are the codes of OPQ and one code that tells apart the items whose other codes are equal. Pairs of features are
merged, and pairs of what was merged, also across neighbouring items (`merges.py`), until there are enough pieces. An
item is written in the pieces of its own features, in their one fixed way; a history in pieces that may run across items
(`llmrec.sid.pieces`). The semantic ID of an item is what it is written as, and all its levels have the same codes.

Source: ActionPiece (arXiv:2502.13581): 4 codes of 256 (OPQ on 128 whitened dimensions of a text vector), 64 hash codes
for Beauty, 40,000 pieces. Departures: OPQ is fitted on all items with a vector, not on those of the training split; the
hash code follows from the item id, so that a new item gets one, and the paper's is random; there are 10,000 pieces by
default, because a causal LLM needs a row of its embedding for each. Those of `merges.py` beside.

Shapes: N items, L levels of OPQ, m = L + 1 kinds of features.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.groups import num_collisions
from llmrec.sid.pieces.pieces import Pieces
from llmrec.tokenizers.action_piece.merges import learn_merges
from llmrec.tokenizers.base import Coder, Encoded, ItemTokenizer
from llmrec.tokenizers.opq import OPQ, part_problems
from llmrec.tokenizers.shared import options
from llmrec.tokenizers.shared.collapse import collapsed
from llmrec.views import ItemViews


@dataclass
class PieceCoder:
    """Features of items, and the pieces that they are written in.

    Attributes:
        codes: Coder of all features but the last.
        hash_size: Number of codes of the last feature.
        pieces: Vocabulary of pieces.
    """

    codes: Coder
    hash_size: int
    pieces: Pieces

    @property
    def level_sizes(self) -> list[int]:
        """Number of codes of each level, which are the pieces."""
        return [len(self.pieces)] * self.pieces.num_kinds

    @property
    def view_names(self) -> list[str]:
        """Views that `encode` reads, in the order of `fit`."""
        return self.codes.view_names

    def encode(self, catalog: Catalog, views: ItemViews) -> Encoded:
        """Give every item of a catalogue its pieces; see `ItemTokenizer.encode`."""
        encoded = self.codes.encode(catalog, views)
        features = self.pieces.features(add_hash(encoded.codes, catalog.item_ids, self.hash_size))
        answers = self.pieces.answers(features)
        return dataclasses.replace(encoded, codes=answers, last_level_cost=None, place=None, pieces=self.pieces)

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, to be saved."""
        pairs, weights = torch.from_numpy(self.pieces.pairs), torch.from_numpy(self.pieces.weights)
        return {**self.codes.tensors(), "pairs": pairs, "pair_weights": weights}

    def facts(self) -> JsonObject:
        """Further facts to be saved."""
        return {**self.codes.facts(), "kind_sizes": list(self.pieces.kind_sizes)}


@dataclass(kw_only=True)
class ActionPiece(ItemTokenizer):
    """Pieces of OPQ's codes."""

    method: ClassVar[str] = "action_piece"
    tells_apart: ClassVar[bool] = True

    view_weights: list[float] | None = options.view_weights()
    # The paper's, as those of the next two.
    num_levels: int = option("Number of features of an item by OPQ; the hash code is one more.", 4, least=1)
    codebook_size: int = options.codebook_size(256)
    pca_dim: int | None = option("See `opq`.", 128, least=1)
    # The paper's for Beauty; 128 for Sports, 256 for CDs.
    hash_size: int = option("Number of codes of the feature that tells items with equal codes apart.", 64, least=1)
    # 40,000 in the paper, for an LLM without other tokens.
    num_pieces: int = option(
        "Number of pieces, features included. Each is a token of the LLM. There are fewer where nothing is left to "
        "merge.",
        10_000,
        least=1,
        most=1_000_000,
    )

    def problems(self) -> list[str]:
        num_features = self.num_levels * self.codebook_size + self.hash_size
        few = f"num_pieces is {self.num_pieces}, fewer than the {num_features} features that pieces are made of"
        return part_problems(self.pca_dim, self.num_levels) + ([few] if self.num_pieces < num_features else [])

    def planned_sizes(self, num_items: int) -> list[int]:
        return [*[self.codebook_size] * self.num_levels, self.hash_size]

    def opq(self) -> OPQ:
        """Make the tokenizer of the features, not fitted."""
        return OPQ(
            num_levels=self.num_levels, codebook_size=self.codebook_size, pca_dim=self.pca_dim,
            view_weights=self.view_weights, seed=self.seed, device=self.device,
        )  # fmt: skip

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        coder = self.opq().fit(catalog, views).fitted
        codes_NL = coder.encode(catalog, views).codes
        fallen = collapsed(codes_NL, coder.level_sizes)
        if fallen:
            raise ValueError(f"the codebooks of the features have collapsed: {fallen}. Lower codebook_size.")
        codes_Nm = add_hash(codes_NL, catalog.item_ids, self.hash_size)
        if num_collisions(codes_Nm):
            largest = np.unique(codes_NL, axis=0, return_counts=True)[1].max()
            raise ValueError(
                f"{largest} items have equal codes, more than the {self.hash_size} hash codes that tell them apart; "
                f"set hash_size to {largest} or more, or codebook_size to more."
            )
        kind_sizes = (*coder.level_sizes, self.hash_size)
        features_Nm = Pieces(kind_sizes, np.empty((0, 2), np.int64), np.empty(0)).features(codes_Nm)
        histories = (features_Nm[rows] for rows in catalog.train.sequences())
        merges = learn_merges(histories, sum(kind_sizes), self.num_pieces - sum(kind_sizes))
        self._write_in(Pieces(kind_sizes, *merges), coder)
        return self

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        features = self.opq()
        features.restore(tensors, facts)
        pairs, weights = tensors["pairs"].numpy(), tensors["pair_weights"].numpy()
        self._write_in(Pieces(tuple(facts["kind_sizes"]), pairs, weights), features.fitted)

    def _write_in(self, pieces: Pieces, codes: Coder) -> None:
        """Take pieces into use; the report of `llmrec tokenize` counts them, also with append."""
        self.coder = PieceCoder(codes, self.hash_size, pieces)
        self.counts = {"features": pieces.num_features, "pieces": len(pieces)}


def add_hash(codes_NL: np.ndarray, item_ids: Sequence[str], hash_size: int) -> np.ndarray:
    """Add a code that tells apart the items whose other codes are equal.

    Args:
        codes_NL: (N, L) int64.
        item_ids: N external ids, by which items get their codes; an earlier item keeps its own when others are added.
        hash_size: Number of codes to give. Where more items have equal codes, the last ones share theirs with others.

    Returns:
        (N, L + 1) int64.
    """
    taken: dict[tuple[int, ...], set[int]] = {}
    hashes = np.empty(len(codes_NL), np.int64)
    for row, (codes, item_id) in enumerate(zip(codes_NL.tolist(), item_ids, strict=True)):
        used = taken.setdefault(tuple(codes), set())
        code = zlib.crc32(item_id.encode()) % hash_size
        while code in used and len(used) < hash_size:
            code = (code + 1) % hash_size
        used.add(code)
        hashes[row] = code
    return np.column_stack([codes_NL, hashes])
