"""SASRec over items and their side fields, "SASRec*" of ReSID's tables.

The vector of an item is the sum of its own vector and, for each field, the mean of the vectors of its values. It is the
input of the network and, tied, its output, so that the fields describe an item that is rare in training.

Departure: the papers have one value per field; taking the mean over several is ours. `llmrec.data.side_fields` defines
which columns are fields.

Shapes: N items, E entries of all items and fields, D hidden.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from llmrec.baselines.networks.network import INITIAL_STD
from llmrec.baselines.networks.sasrec import SASRec
from llmrec.data.catalog import Catalog
from llmrec.data.side_fields import Fields, side_fields


class SASRecFields(SASRec):
    """SASRec whose item vectors are sums over fields.

    Args:
        fields: Side fields of N items.
        max_history: Number of positions to learn.
        options: Fields of SASRecOptions.
    """

    name = "sasrec_fields"

    def __init__(self, fields: Fields, max_history: int, **options: Any):  # SASRecOptions checks them
        super().__init__(len(fields.offsets) - 1, max_history, **options)
        self.values = nn.EmbeddingBag(fields.num_values, self.items.embedding_dim, mode="sum", include_last_offset=True)
        nn.init.normal_(self.values.weight, std=INITIAL_STD)
        for name in ("values", "offsets", "weights"):
            self.register_buffer(f"entry_{name}", torch.from_numpy(getattr(fields, name)), persistent=False)

    @classmethod
    def of(cls, catalog: Catalog, max_history: int, **options: Any) -> Self:  # SASRecOptions checks them
        """Build an untrained network for the items of a catalogue and their side fields."""
        return cls(side_fields(catalog), max_history, **options)

    def vectors(self) -> Tensor:
        """(N, D) own vectors plus the mean vectors of the values of each field."""
        return self.items.weight + self.values(self.entry_values, self.entry_offsets, self.entry_weights)  # (N, D)
