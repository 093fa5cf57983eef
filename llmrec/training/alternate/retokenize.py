"""New semantic IDs after the tokenizer has trained: matched codes keep their token rows, and items their suffixes.

The codes of a level before and after a pass are matched (Hungarian method, cosines of the code vectors). A new code
takes over the token rows of the old code that it is matched with, and an item whose codes are all matched with its old
ones keeps its suffix, so that its semantic ID means what it did.

Source: ETEGRec (arXiv:2409.05546) recomputes codes and suffixes after each epoch of the tokenizer, and does not say
which item gets which suffix. The matching is ours, for `llmrec.training.alternate.swap_table`.

Shapes: N items, L levels of the tokenizer; the table has one more. K codes of a level, E latent dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from llmrec.diagnostics.codes import churn
from llmrec.sid.groups import entropy_bits
from llmrec.sid.table import EMPTY, SidTable
from llmrec.tokenizers.collisions.suffix import least_free
from llmrec.tokenizers.shared.collapse import collapsed


@dataclass(frozen=True)
class Retokenized:
    """Semantic IDs after a pass of the tokenizer.

    Attributes:
        table: New semantic IDs of the same items.
        old_codes: For each level, the old code whose token rows each new code takes over; -1 for none.
        churn: Share of the items whose semantic ID has changed; codes that were only renamed do not count.
    """

    table: SidTable
    old_codes: list[np.ndarray]
    churn: float


def match_codes(old_KE: Tensor, new_KE: Tensor) -> np.ndarray:
    """Match each new code with an old one, so that the sum of cosines is largest; no old code is taken twice.

    Args:
        old_KE: (K, E) code vectors of a level before the pass.
        new_KE: (K, E) code vectors after it.

    Returns:
        (K,) int64 old code of each new one; -1 where the cosine is not positive, which is no match.
    """
    cosine_KK = (normalize(new_KE.double(), dim=1) @ normalize(old_KE.double(), dim=1).T).cpu().numpy()
    old_K = linear_sum_assignment(cosine_KK, maximize=True)[1]
    return np.where(cosine_KK[np.arange(len(old_K)), old_K] > 0, old_K, EMPTY)


def retokenize(table: SidTable, codes_NL: np.ndarray, matches: Sequence[np.ndarray]) -> Retokenized:
    """Give items their new codes, and suffixes that make them distinct.

    Args:
        table: Semantic IDs so far; the last level is the suffix, which every item has.
        codes_NL: (N, L) int64 new codes.
        matches: For each level, (K,) result of `match_codes`.

    Raises:
        ValueError: If a level has collapsed, or more items share all codes than there are suffixes.
    """
    before, sizes = table.codes(np.arange(table.num_items)), table.level_sizes
    fallen = collapsed(codes_NL, sizes[:-1])
    if fallen:
        raise ValueError(f"the tokenizer has collapsed: {fallen}.")
    renamed_NL = np.stack([match[codes_N] for match, codes_N in zip(matches, codes_NL.T, strict=True)], axis=1)
    stays_N = (renamed_NL == before[:, :-1]).all(axis=1)
    suffix_N = least_free(codes_NL, np.where(stays_N, before[:, -1], EMPTY))
    if suffix_N.max() >= sizes[-1]:
        raise ValueError(
            f"the tokenizer has collapsed: {suffix_N.max() + 1} suffixes are needed for items that share all codes, "
            f"and there are tokens for {sizes[-1]}."
        )
    new = SidTable(table.item_ids, np.column_stack([codes_NL, suffix_N]), level_sizes=sizes)
    changed = churn(before, np.column_stack([renamed_NL, suffix_N]))["sid"]
    return Retokenized(new, [*matches, np.arange(sizes[-1])], changed)


def code_metrics(codes_NL: np.ndarray) -> dict[str, float]:
    """Metrics that show a failing tokenizer: perplexity of each level, and distinct tuples of codes per item.

    Args:
        codes_NL: (N, L) int64 codes without the suffix.
    """
    perplexity = {
        f"perplexity_{level}": 2 ** entropy_bits(np.bincount(codes_N)) for level, codes_N in enumerate(codes_NL.T)
    }
    return {**perplexity, "unique_per_item": len(np.unique(codes_NL, axis=0)) / len(codes_NL)}
