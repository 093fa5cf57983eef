"""A distribution over items as distributions over the codes of an answer, level by level, summed exactly.

At each level, the next code of an answer has a distribution given the codes before it. Under a teacher, a code has the
probability of all items whose semantic ID begins with these codes and continues with it, divided by that of all items
whose semantic ID begins with these codes. The product over the levels is the teacher's probability of the answer.

Leaves of the trie are numbered so that the items below any prefix lie side by side. A cumulative sum over the leaves,
in double precision, then gives the mass below every prefix as a difference of two entries. No number is sampled or
left out, and the order of summation does not depend on the device.

Shapes: Q answers, N items, S semantic IDs (leaves), L levels, K codes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llmrec.runtime.device import from_host
from llmrec.sid.aliases import aliases_of
from llmrec.sid.table import SidTable

MASSES_AT_ONCE = 2**27  # entries of the cumulative sums, 1 GiB


class CodeTargets:
    """Sums of the teacher's probabilities along the trie.

    An item with several semantic IDs gives an equal share of its probability to each. Items that share a semantic ID
    add up.

    Args:
        table: Semantic IDs of the catalogue.
        level_sizes: Number of codes of each level, at least as many as the table has.
        device: Device of the probabilities.
    """

    def __init__(self, table: SidTable, level_sizes: Sequence[int], device: torch.device):
        order = np.lexsort(table.all_codes.T[::-1])  # leaves in the order of the trie
        codes_SL, owners_S = table.all_codes[order], table.item_rows[order]
        self.level_sizes = level_sizes
        self.owners_S = from_host(owners_S, device)
        counts_S = np.bincount(owners_S)[owners_S]
        self.shares_S = from_host((1 / counts_S).astype(np.float32), device) if counts_S.max() > 1 else None
        leaf_of_sid = np.empty(len(order), np.int64)
        leaf_of_sid[order] = np.arange(len(order))
        leaf_N = leaf_of_sid[table.first]  # an answer is written as the first semantic ID of its item
        self.nodes_LN, self.keys_LS = [], []
        node_S = np.zeros(len(order), np.int64)
        for level, size in enumerate(self.level_sizes):
            keys_S = node_S * (size + 1) + codes_SL[:, level] + 1  # 0 for leaves that end before this level
            self.nodes_LN.append(from_host(node_S[leaf_N], device))
            self.keys_LS.append(from_host(keys_S, device))
            node_S = np.unique(keys_S, return_inverse=True)[1]

    def __call__(self, probabilities_QN: Tensor, answers_Q: Tensor) -> list[Tensor]:
        """Compute the distributions of the codes of some answers.

        Args:
            probabilities_QN: (Q, N) the teacher's probabilities of all items.
            answers_Q: (Q,) int64 item rows of the answers, whose own codes are the prefixes.

        Returns:
            For each level, (Q, K) float32 probabilities of its codes. They are 0 throughout where the teacher gives the
            answer's prefix no probability. Where an answer's semantic ID has ended, they mean nothing.
        """
        at_once = max(1, MASSES_AT_ONCE // len(self.owners_S))
        parts = zip(probabilities_QN.split(at_once), answers_Q.split(at_once), strict=True)
        levels = [self._of_part(probabilities, answers) for probabilities, answers in parts]
        return [torch.cat(level) for level in zip(*levels, strict=True)]

    def _of_part(self, probabilities_QN: Tensor, answers_Q: Tensor) -> list[Tensor]:
        masses_QS = probabilities_QN[:, self.owners_S]
        if self.shares_S is not None:
            masses_QS = masses_QS * self.shares_S
        below_QS = masses_QS.cumsum(dim=1, dtype=torch.float64)  # mass of the leaves up to each leaf
        targets = []
        for size, nodes_N, keys_S in zip(self.level_sizes, self.nodes_LN, self.keys_LS, strict=True):
            first_key_Q1 = nodes_N[answers_Q].unsqueeze(1) * (size + 1) + 1
            bounds_QK = torch.searchsorted(keys_S, first_key_Q1 + torch.arange(size + 1, device=keys_S.device))
            before_QK = below_QS.gather(1, (bounds_QK - 1).clamp(min=0)) * (bounds_QK > 0)
            codes_QK = before_QK.diff(dim=1)
            total_Q1 = codes_QK.sum(dim=1, keepdim=True)
            targets.append(torch.where(total_Q1 > 0, codes_QK / total_Q1, 0.0).float())
        return targets


class AliasTargets:
    """Sums of the teacher's probabilities along the trie of the alias that an answer is written in.

    Args:
        table: Semantic IDs of the catalogue; see `CodeTargets`.
        level_sizes: Number of codes of each level, at least as many as the table has.
        device: Device of the probabilities.
    """

    def __init__(self, table: SidTable, level_sizes: Sequence[int], device: torch.device):
        self.aliases = [CodeTargets(alias, level_sizes, device) for alias in aliases_of(table)]

    def __call__(self, probabilities_QN: Tensor, answers_Q: Tensor, alias_Q: Tensor) -> list[Tensor]:
        """Compute the distributions of the codes of some answers.

        Args:
            probabilities_QN: (Q, N) the teacher's probabilities of all items.
            answers_Q: (Q,) int64 item rows of the answers.
            alias_Q: (Q,) int64 alias of each answer.

        Returns:
            See `CodeTargets`.
        """
        if len(self.aliases) == 1:
            return self.aliases[0](probabilities_QN, answers_Q)
        parts = [(alias_Q == alias).nonzero().squeeze(1) for alias in range(len(self.aliases))]
        of_parts = [
            targets(probabilities_QN[rows], answers_Q[rows]) for targets, rows in zip(self.aliases, parts, strict=True)
        ]
        order = torch.cat(parts).argsort()
        return [torch.cat(level)[order] for level in zip(*of_parts, strict=True)]
