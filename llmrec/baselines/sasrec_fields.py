"""SASRec over items and their side fields, "SASRec*" of ReSID's tables.

The vector of an item is the sum of its own and, for each field, the mean of its values' vectors; the network reads it
and, tied, scores with it, so that an item which training seldom saw is known by its fields.

Departure: the papers have one value per field; the mean over several is ours. `llmrec.data.side_fields` says what a
field is.

Shapes: N items, E entries of all items and fields, D hidden.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from llmrec.baselines.network import INITIAL_STD
from llmrec.baselines.sasrec import SASRec
from llmrec.data.catalog import Catalog
from llmrec.data.side_fields import Fields, side_fields


class SASRecFields(SASRec):
    """SASRec whose item vectors are sums over fields.

    Args:
        fields: Of N items.
        max_history: Positions to learn.
        options: Of SASRec.
    """

    name = "sasrec_fields"

    def __init__(self, fields: Fields, max_history: int, **options: Any):
        super().__init__(len(fields.offsets) - 1, max_history, **options)
        self.values = nn.EmbeddingBag(fields.num_values, self.items.embedding_dim, mode="sum", include_last_offset=True)
        nn.init.normal_(self.values.weight, std=INITIAL_STD)
        for name in ("values", "offsets", "weights"):
            self.register_buffer(f"entry_{name}", torch.from_numpy(getattr(fields, name)), persistent=False)

    @classmethod
    def of(cls, catalog: Catalog, max_history: int, **options: Any) -> Self:
        return cls(side_fields(catalog), max_history, **options)

    def vectors(self) -> Tensor:
        return self.items.weight + self.values(self.entry_values, self.entry_offsets, self.entry_weights)  # (N, D)
