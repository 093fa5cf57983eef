"""Positions of a batch at which the LLM has read a history: pools of states for each target.

An item has been read at its last token. For each target, the states at the last tokens of the items before it are
averaged; the last of these states, which predicts the target's first code, is also taken by itself. Attention is causal
and packed sequences are separate, so neither depends on the target or on what follows it. If a target occurs several
times in a batch, the occurrence with the longest history counts, because a second one would be its own negative.

Shapes: S sequences, M items of the longest, U distinct targets, R rows of the batch, T tokens, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmrec.model.history.encoder import NO_ITEM
from llmrec.training.sft.examples import Example, HistoryCollator, flatten


class Pools(NamedTuple):
    """Positions of a batch.

    Attributes:
        item_ends: (S, M) int64 position, in the flattened batch, of each item's last token; 0 beyond the last item.
        places: (U,) int64 position of each target in the flattened `item_ends`; never the first item of a sequence.
        targets: (U,) int64 item rows, ascending and distinct.
    """

    item_ends: Tensor
    places: Tensor
    targets: Tensor


@dataclass(frozen=True)
class PoolingCollator:
    """Batches of `llmrec sft`, and their pools.

    Args:
        histories: Collator that makes the batches. Its encoder may be replaced between two batches.
        known_N: (N,) bool, True for items that the tokenizer has a vector of. The others are not aligned.
    """

    histories: HistoryCollator
    known_N: np.ndarray

    def batch(self, examples: list[Example], with_pools: bool) -> dict[str, object]:
        """Make a batch with the semantic IDs of the moment.

        Args:
            examples: Examples of histories only.
            with_pools: Add the key `pools`, the fields of `Pools`.
        """
        batch: dict[str, object] = {**self.histories(examples)}
        return {**batch, "pools": self.pools(examples)._asdict()} if with_pools else batch

    def pools(self, examples: list[Example]) -> Pools:
        """Find the ends of items and the targets in the batch of some examples.

        Args:
            examples: Examples of histories only, whose semantic IDs are of one length.
        """
        histories = self.histories
        items, is_target, num_items = flatten(examples)
        prompts = histories.encoder.encode_prompts(histories.prefix, items, num_items)
        starts = histories.starts(prompts.lengths.tolist())
        longest = int(num_items.max(initial=0))
        is_item = np.arange(longest) < num_items[:, np.newaxis]
        sequence, order = np.nonzero(is_item)
        last_tokens = np.flatnonzero((np.diff(prompts.items, append=NO_ITEM) != 0) & (prompts.items != NO_ITEM))
        shift = starts - (prompts.lengths.cumsum() - prompts.lengths)  # from joined sequences to the flattened batch
        ends = np.zeros((len(num_items), longest), np.int64)
        ends[is_item] = last_tokens + shift[sequence]
        candidates = np.flatnonzero(is_target & (order > 0) & self.known_N[items])
        longest_first = candidates[np.argsort(-order[candidates], kind="stable")]
        targets, first = np.unique(items[longest_first], return_index=True)
        chosen = longest_first[first]
        places = sequence[chosen] * longest + order[chosen]
        return Pools(*map(torch.from_numpy, (ends, places, targets)))


def pool_states(states_RTH: Tensor, pools: Pools) -> tuple[Tensor, Tensor]:
    """Pool the states of the items before each target.

    Args:
        states_RTH: (R, T, H) last hidden states of the batch.
        pools: Pools of the batch, on the same device.

    Returns:
        (U, H) mean of the states at the ends of the items before each target, and (U, H) the last of these states.
    """
    ends_SMH = states_RTH.flatten(0, 1)[pools.item_ends]
    count = torch.arange(ends_SMH.shape[1], device=ends_SMH.device)
    before_MM = (count < count[:, None]).to(ends_SMH.dtype) / count.clamp(min=1)[:, None]
    means_SMH = before_MM @ ends_SMH
    return means_SMH.flatten(0, 1)[pools.places], ends_SMH.flatten(0, 1)[pools.places - 1]
