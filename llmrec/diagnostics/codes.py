"""Measures of the codes alone: collisions, use of the codes, the prefix tree, and change between two tokenizations.

Entropies are in bits, for items drawn uniformly and for items drawn by their training interactions. For distinct
semantic IDs the uniform prefix-conditional entropies H(c_l | c_<l) add up to log2 N whatever the tokenizer, so their
sum ranks no tokenizer; only its distribution over the levels differs. They are exact, because the catalogue is the
whole population. The training interactions are a sample: their conditional entropies have the Miller-Madow correction
(Miller 1955, "Note on the bias of information estimates"). The entropies of single levels, with many interactions per
code, do not need it.

Shapes: N items, L levels.
"""

from __future__ import annotations

import math

import numpy as np

from llmrec.runtime.manifest import JsonObject
from llmrec.sid.groups import buckets, entropy_bits
from llmrec.sid.table import EMPTY, SidTable

WEIGHTED = ("entropy_bits", "perplexity_share", "kl_bits", "conditional_entropy_bits")  # by training interactions


def collision_report(codes_NL: np.ndarray, training_N: np.ndarray | None = None) -> JsonObject:
    """Measure how many items share all codes with another item.

    Args:
        codes_NL: (N, L) codes.
        training_N: (N,) training interactions of each item.

    Returns:
        collision_rate: items minus distinct semantic IDs, divided by items. shared_items: share of items whose semantic
        ID another item has, too. max_bucket: largest number of items with one semantic ID. expected_bucket: number of
        items that share the semantic ID of the item of a random training interaction, itself included; None without
        interactions. gini: Gini coefficient of the items per semantic ID, 0 if all have equally many.

    Source: Gini of items per semantic ID from FORGE (arXiv:2509.20904).
    """
    order_N, _, counts = buckets(codes_NL)
    bucket_N = np.empty(len(codes_NL), np.int64)
    bucket_N[order_N] = np.repeat(counts, counts)
    known = training_N is not None and training_N.sum() > 0
    return {
        "collision_rate": float(1 - len(counts) / len(codes_NL)),
        "shared_items": float(counts[counts > 1].sum() / len(codes_NL)),
        "max_bucket": int(counts.max()),
        "expected_bucket": float(np.average(bucket_N, weights=training_N)) if known else None,
        "gini": gini(counts),
    }


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of positive counts: 0 if all are equal, close to 1 if one has nearly all."""
    n, ascending = len(counts), np.sort(counts)
    return float((n + 1) / n - 2 * (np.arange(n, 0, -1) @ ascending) / (n * ascending.sum()))


def level_report(sid_table: SidTable, training_N: np.ndarray | None = None) -> list[JsonObject]:
    """Measure the use of the codes of each level and of the nodes of the prefix tree, by the items' first semantic IDs.

    Args:
        sid_table: The semantic IDs.
        training_N: (N,) training interactions of each item; the weighted measures are None without any.

    Returns:
        Per level: used codes and their share; entropy in bits; perplexity 2^entropy divided by codebook size;
        divergence from uniform codes in bits; prefix-conditional entropy in bits, for which the end of a shorter
        semantic ID counts as a code. The same weighted by training interactions. Mean and largest number of codes that
        follow a prefix.
    """
    codes_NL = sid_table.codes(np.arange(sid_table.num_items))
    training_N = None if training_N is None or training_N.sum() == 0 else training_N
    prefix_N, before, before_training, levels = np.zeros(len(codes_NL), np.int64), 0.0, 0.0, []
    for level, size in enumerate(sid_table.level_sizes):
        codes_N, parents_N = codes_NL[:, level], prefix_N
        children, prefix_N = np.unique(parents_N * (size + 1) + codes_N + 1, return_inverse=True)
        joint = entropy_bits(np.bincount(prefix_N))
        entry = {"level": level, "codebook_size": size, **_use(codes_N, size)}
        entry |= {"conditional_entropy_bits": joint - before, **_branching(children, size + 1)}
        before = joint
        weighted: JsonObject = dict.fromkeys(WEIGHTED)
        if training_N is not None:
            joint = miller_madow_bits(np.bincount(prefix_N, weights=training_N))
            weighted = {name: value for name, value in _use(codes_N, size, training_N).items() if name in weighted}
            weighted["conditional_entropy_bits"] = joint - before_training
            before_training = joint
        levels.append({**entry, "training": weighted})
    return levels


def tree_report(sid_table: SidTable) -> dict[str, float]:
    """Measure how full the prefix tree is, by the items' first semantic IDs.

    Returns:
        fill_ratio: items divided by the semantic IDs that the codebooks allow. leaf_singletons: share of the distinct
        semantic IDs whose last code is the only one under its prefix, so that it carries no information.
    """
    codes_NL = sid_table.codes(np.arange(sid_table.num_items))
    order_N, starts, _ = buckets(codes_NL)
    codes_NL = codes_NL[order_N[starts]]
    parents_NL = codes_NL.copy()
    last = np.maximum((codes_NL != EMPTY).sum(axis=1) - 1, 0)
    parents_NL[np.arange(len(codes_NL)), last] = EMPTY
    siblings = buckets(parents_NL)[2]
    return {
        "fill_ratio": sid_table.num_items / math.prod(sid_table.level_sizes),
        "leaf_singletons": float((siblings == 1).sum() / len(codes_NL)),
    }


def churn(codes_a: np.ndarray, codes_b: np.ndarray) -> JsonObject:
    """Share of the items whose codes differ between two tokenizations of one catalogue.

    Args:
        codes_a: (N, L) codes in catalogue order.
        codes_b: (N, any number of levels) codes of the same items; the shorter one ends where it has no level.

    Returns:
        levels: share of the items whose code differs, per level. sid: share of the items with any different code.

    Raises:
        ValueError: If the numbers of items differ.
    """
    if len(codes_a) != len(codes_b):
        raise ValueError(
            f"churn needs codes of the same items; {len(codes_a)} and {len(codes_b)} were given. "
            "Tokenize one catalogue twice."
        )
    num_levels = max(codes_a.shape[1], codes_b.shape[1])
    a, b = (
        np.pad(codes, ((0, 0), (0, num_levels - codes.shape[1])), constant_values=EMPTY) for codes in (codes_a, codes_b)
    )
    return {"levels": (a != b).mean(axis=0).tolist(), "sid": float((a != b).any(axis=1).mean())}


def miller_madow_bits(counts: np.ndarray) -> float:
    """Estimated entropy in bits of the distribution behind a histogram: plug-in + (occupied - 1) / (2 n)."""
    return entropy_bits(counts) + float(((counts > 0).sum() - 1) / (2 * counts.sum() * math.log(2)))


def _use(codes_N: np.ndarray, size: int, weights_N: np.ndarray | None = None) -> JsonObject:
    """Use of the codes of one level; entropies are None if no item has a code there."""
    there = codes_N != EMPTY
    counts = np.bincount(codes_N[there], weights=None if weights_N is None else weights_N[there], minlength=size)
    bits = entropy_bits(counts) if counts.sum() else None
    return {
        "used": int((counts > 0).sum()),
        "usage": float((counts > 0).mean()),
        "entropy_bits": bits,
        "perplexity_share": None if bits is None else 2**bits / size,
        "kl_bits": None if bits is None else math.log2(size) - bits,
    }


def _branching(children: np.ndarray, stride: int) -> JsonObject:
    """Numbers of codes that follow a prefix; an end is not a code. `children` are parent * stride + code + 1."""
    branches = np.unique(children[children % stride > 0] // stride, return_counts=True)[1]
    has_codes = len(branches) > 0
    return {
        "branching_mean": float(branches.mean()) if has_codes else None,
        "branching_max": int(branches.max()) if has_codes else None,
    }
