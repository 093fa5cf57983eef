"""Where in a batch the LLM knows a history: states to be pooled for each target, and none that has seen the target.

An item's tokens end where the LLM has read all of it. For a target, the states at the ends of the items before it are
averaged, and the last of them, which predicts the target's first code, is taken as it is. Attention is causal and
packed sequences are apart, so what the target is, or what follows it, changes neither. Of several positions in a batch
with one target the one with the longest history is taken, for a second one would be its own negative.

Batches are made when a step begins: the loader of accelerate draws one batch ahead, so that its tokens would be of the
semantic IDs from before a swap.

Shapes: S sequences, M items of the longest, U distinct targets, R rows, T tokens, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmrec.model.prompts import NO_ITEM
from llmrec.runtime.manifest import JsonObject
from llmrec.training.sft.examples import HistoryCollator, flatten


class Pools(NamedTuple):
    """Positions of a batch.

    Attributes:
        item_ends: (S, M) int64 place in the flattened batch of each item's last token; 0 beyond the last item.
        places: (U,) int64 place of each target in the flattened `item_ends`; never the first of its sequence.
        targets: (U,) int64 item rows, ascending and distinct.
    """

    item_ends: Tensor
    places: Tensor
    targets: Tensor


@dataclass
class PoolingCollator(HistoryCollator):
    """Hands examples on as item rows; `batch` makes tokens of them by the semantic IDs of the moment.

    Args:
        known_N: (N,) bool, items that the tokenizer has a vector of; others are no targets of an alignment.
    """

    known_N: np.ndarray | None = None

    def __call__(self, examples: list[JsonObject]) -> JsonObject:
        return {"examples": examples}

    def batch(self, examples: list[JsonObject], pooling: bool) -> JsonObject:
        """Tokens and labels as `llmrec sft` has them, with `pools` where they are asked for."""
        batch = super().__call__(examples)
        return {**batch, "pools": self.pools(examples, batch["input_ids"].shape[1])._asdict()} if pooling else batch

    def pools(self, examples: list[JsonObject], row_tokens: int) -> Pools:
        """Where the items of a batch end, and which of them are targets.

        Args:
            examples: Histories alone; their semantic IDs are of one length.
            row_tokens: T of the batch that `batch` makes of them.
        """
        items, is_target, num_items = flatten(examples)
        prompts = self.encoder.encode_prompts(self.prefix, items, num_items)
        starts = self._starts(prompts.lengths.tolist(), row_tokens)
        is_item = np.arange(num_items.max(initial=0)) < num_items[:, None]
        sequence, order = np.nonzero(is_item)
        last_tokens = np.flatnonzero((np.diff(prompts.items, append=NO_ITEM) != 0) & (prompts.items != NO_ITEM))
        moved = starts - (prompts.lengths.cumsum() - prompts.lengths)  # from the tokens in a row to the batch
        ends = np.zeros(is_item.shape, np.int64)
        ends[is_item] = last_tokens + moved[sequence]
        asked = np.flatnonzero(is_target & (order > 0) & self.known_N[items])
        longest_first = asked[np.argsort(-order[asked], kind="stable")]
        targets, first = np.unique(items[longest_first], return_index=True)
        chosen = longest_first[first]
        places = sequence[chosen] * ends.shape[1] + order[chosen]
        return Pools(*map(torch.from_numpy, (ends, places, targets)))

    def _starts(self, lengths: list[int], row_tokens: int) -> np.ndarray:
        """(S,) place of each sequence's first token in the flattened batch."""
        starts = np.zeros(len(lengths), np.int64)
        for row, sequences in enumerate(self.lay_out(lengths)[0]):
            before = np.cumsum([0, *(lengths[each] for each in sequences[:-1])])
            starts[sequences] = row * row_tokens + before
        return starts


def pooled(states_RTH: Tensor, pools: Pools) -> tuple[Tensor, Tensor]:
    """(U, H) mean of the states at the ends of the items before each target, and (U, H) the last of them."""
    ends_SMH = states_RTH.flatten(0, 1)[pools.item_ends]
    count = torch.arange(ends_SMH.shape[1], device=ends_SMH.device)
    before_MM = (count < count[:, None]).to(ends_SMH.dtype) / count.clamp(min=1)[:, None]
    means_SMH = before_MM @ ends_SMH
    return means_SMH.flatten(0, 1)[pools.places], ends_SMH.flatten(0, 1)[pools.places - 1]
