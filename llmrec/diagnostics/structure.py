"""Consistency of the meaning of a code: in the vectors under each parent, and in what users do next.

Index consistency follows ReSID (arXiv:2602.02338). It measures whether the offsets from a parent's centroid to a
child's centroid point in the same direction for all children with the same code. History overlap measures whether the
codes of the history predict the code of the target. Each is compared with a null: codes permuted among the children of
each parent, and targets drawn by training popularity.

Shapes: M items of the sample, N items, P children, D dimension, L levels, R training examples.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llmrec.data.examples import Examples
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.table import EMPTY

PERMUTATIONS = 20
MAX_EXAMPLES = 100_000  # training examples that are read


def index_consistency(codes_ML: np.ndarray, vectors_MD: Tensor, seed: int) -> list[JsonObject]:
    """Mean cosine of the offsets, child - parent, of children with the same code under different parents.

    Args:
        codes_ML: (M, L) codes.
        vectors_MD: (M, D) vectors; the centroid of a prefix is their mean over its items.
        seed: Seed of the permutations.

    Returns:
        Per level from 1 (each code of level 0 occurs once): level, number of pairs of children, their mean cosine, and
        its mean and standard deviation over permutations of the codes within each parent. None if no code has two
        parents with several children each, because an only child has no offset.
    """
    rng, report = np.random.default_rng(seed), []
    node_M = np.zeros(len(codes_ML), np.int64)
    for level, codes_M in enumerate(codes_ML.T):
        there = codes_M != EMPTY
        stride = int(codes_M.max(initial=0)) + 2
        child_M = np.unique(node_M * stride + codes_M + 1, return_inverse=True)[1]
        if level > 0:
            offsets_PD, parent_P, code_P = _offsets(node_M[there], codes_M[there], vectors_MD[torch.from_numpy(there)])
            report.append({"level": level, **_consistency(offsets_PD, parent_P, code_P, rng)})
        node_M = child_M.reshape(-1)
    return report


def _offsets(parent_M: np.ndarray, codes_M: np.ndarray, vectors_MD: Tensor) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Unit offsets of the children that have one, with their parents (ascending) and codes."""
    stride = int(codes_M.max(initial=0)) + 1
    keys, child_M = np.unique(parent_M * stride + codes_M, return_inverse=True)
    parents, parent_P = np.unique(keys // stride, return_inverse=True)
    parent_of_M = parent_P[child_M] if len(keys) else child_M
    offsets_PD = _means(vectors_MD, child_M, len(keys)) - _means(vectors_MD, parent_of_M, len(parents))[parent_P]
    length_P = offsets_PD.norm(dim=1)
    scale = vectors_MD.norm(dim=1).mean() if len(vectors_MD) else 0.0
    keep = length_P > 1e-6 * scale  # smaller ones are rounding: an only child, or equal vectors
    return offsets_PD[keep] / length_P[keep, None], parent_P[keep.numpy()], (keys % stride)[keep.numpy()]


def _means(vectors_MD: Tensor, group_M: np.ndarray, num_groups: int) -> Tensor:
    """(num_groups, D) mean vector of each group."""
    index = torch.from_numpy(group_M)
    sums = torch.zeros(num_groups, vectors_MD.shape[1]).index_add_(0, index, vectors_MD)
    return sums / torch.bincount(index, minlength=num_groups)[:, None]


def _consistency(offsets_PD: Tensor, parent_P: np.ndarray, code_P: np.ndarray, rng: np.random.Generator) -> JsonObject:
    """Observed mean cosine and its null; children are in the order of their parents."""
    pairs = int((np.bincount(code_P) * (np.bincount(code_P) - 1)).sum() // 2) if len(code_P) else 0
    if pairs == 0:
        return {"pairs": 0, "cosine": None, "null_mean": None, "null_sd": None}
    null = []
    for _ in range(PERMUTATIONS):
        order = np.lexsort((rng.random(len(parent_P)), parent_P))
        null.append(_mean_cosine(offsets_PD, code_P[order], pairs))
    return {
        "pairs": pairs,
        "cosine": _mean_cosine(offsets_PD, code_P, pairs),
        "null_mean": float(np.mean(null)),
        "null_sd": float(np.std(null, ddof=1)),
    }


def _mean_cosine(unit_PD: Tensor, code_P: np.ndarray, pairs: int) -> float:
    """Mean over all pairs with one code; a sum of n unit vectors has the squared length n + 2 (sum of the cosines)."""
    sums_KD = torch.zeros(int(code_P.max()) + 1, unit_PD.shape[1]).index_add_(0, torch.from_numpy(code_P), unit_PD)
    return float((sums_KD.double().square().sum() - len(unit_PD)) / (2 * pairs))


def history_overlap(train: Examples, codes_NL: np.ndarray, training_N: np.ndarray, seed: int) -> JsonObject:
    """Share of training targets with a code that their history has at the same level.

    Args:
        train: Training examples; no others may be given, because tokenizers see training interactions only.
        codes_NL: (N, L) codes.
        training_N: (N,) training interactions; the targets of the null are drawn in proportion.
        seed: Seed of the draw, if there are more than MAX_EXAMPLES examples.

    Returns:
        examples: number of examples with a history. levels: per level, the observed share, its expectation for a target
        drawn by popularity, and their difference; None if no target has this level.
    """
    train = train if len(train) <= MAX_EXAMPLES else train.take(train.sample(MAX_EXAMPLES, seed))
    lengths_R = np.diff(train.offsets)
    owner = np.repeat(np.arange(len(train)), lengths_R)
    levels = []
    for level, codes_N in enumerate(codes_NL.T):
        seen, targets_R = codes_N[train.values], codes_N[train.targets]
        counted_R = (lengths_R > 0) & (targets_R != EMPTY)
        hit_R = np.zeros(len(train), bool)
        hit_R[owner[seen == targets_R[owner]]] = True
        expected_R = _expected_overlap(owner[seen != EMPTY], seen[seen != EMPTY], codes_N, training_N, len(train))
        entry: JsonObject = {"level": level, "observed": None, "null": None, "difference": None}
        if counted_R.any():
            observed, null = float(hit_R[counted_R].mean()), float(expected_R[counted_R].mean())
            entry |= {"observed": observed, "null": null, "difference": observed - null}
        levels.append(entry)
    return {"examples": int((lengths_R > 0).sum()), "levels": levels}


def _expected_overlap(
    owner: np.ndarray, seen: np.ndarray, codes_N: np.ndarray, training_N: np.ndarray, num_examples: int
) -> np.ndarray:
    """(R,) exact probability that an item drawn by popularity has a code of the history."""
    there = codes_N != EMPTY
    popularity_K = np.bincount(codes_N[there], weights=training_N[there], minlength=1)
    share_K = popularity_K / max(popularity_K.sum(), 1)
    pairs = np.unique(owner * len(share_K) + seen)  # a code that occurs twice in a history counts once
    return np.bincount(pairs // len(share_K), weights=share_K[pairs % len(share_K)], minlength=num_examples)
