"""What becomes of items without training interactions: how far they lie from the codes, and whom they stand beside.

An item that nobody has taken yet can be recommended only if its codes put it where its like are. Two questions are
asked of these items and, for comparison, of the others: how far is the nearest first-level code, and do the items with
the longest common prefix share its category?

Shapes: M items of the sample, B of them, K first-level codes, V values of the category, D dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from scipy import sparse
from torch import Tensor

from llmrec.data.catalog import Catalog
from llmrec.data.side_fields import NO_FIELDS, entries, is_shared
from llmrec.diagnostics.sample import Sample, blocks, common_prefixes
from llmrec.runtime.manifest import JsonObject

QUANTILES = {"q10": 0.1, "q50": 0.5, "q90": 0.9}
MAX_AGREEMENTS = 1024  # items of either kind whose neighbours' categories are read


class Category(NamedTuple):
    """One categorical column of items.parquet.

    Attributes:
        name: Column.
        values: (N, V) 1 where an item has a value; an item may have several or none.
        labels: First value of each item as text, None for an item without.
    """

    name: str
    values: sparse.csr_array
    labels: list[str | None]


def find_category(catalog: Catalog) -> Category | None:
    """The categorical column with the fewest values; true or false says too little. None where there is no such column.

    What counts as categorical is what `llmrec.data.side_fields` takes as a side field.
    """
    found = {}
    for name in catalog.items.column_names:
        column = catalog.items[name]
        given = None if name in NO_FIELDS or pa.types.is_boolean(column.type) else entries(column)
        if given is not None and len(given[1]) and is_shared(*given):
            found[name] = given
    if not found:
        return None
    name = min(found, key=lambda name: found[name][1].max())
    rows, codes = found[name]
    values = sparse.csr_array((np.ones(len(rows)), (rows, codes)), shape=(catalog.num_items, codes.max() + 1))
    values.data[:] = 1.0  # an item that repeats a value has it once
    cells = [cell if isinstance(cell, list) else [cell] for cell in catalog.items[name].to_pylist()]
    given = ([str(value) for value in cell or [] if value not in (None, "")] for cell in cells)
    return Category(name, values, [next(iter(cell), None) for cell in given])


def cold_start_report(catalog: Catalog, codes_ML: np.ndarray, sample: Sample, seed: int) -> JsonObject:
    """Items without training interactions (cold) beside the others (warm).

    Args:
        catalog: Its training interactions say which items are cold.
        codes_ML: (M, L) codes of the sample.
        sample: Items that are looked at; distances need vectors.
        seed: Draws the items where there are too many.

    Returns:
        items: of the sample, cold and warm. distance: as `code_distances`; agreement: as `category_agreement`. None for
        what cannot be said.
    """
    cold_M = catalog.training_counts[sample.rows] == 0
    report: JsonObject = {"items": {"cold": int(cold_M.sum()), "warm": int((~cold_M).sum())}}
    drawn = {}
    rng = np.random.default_rng(seed)
    for kind, positions in (("cold", np.flatnonzero(cold_M)), ("warm", np.flatnonzero(~cold_M))):
        drawn[kind] = np.sort(rng.permutation(positions)[:MAX_AGREEMENTS])
    category = find_category(catalog)
    vectors_MD = sample.vectors
    return {
        **report,
        "distance": None if vectors_MD is None else code_distances(vectors_MD, codes_ML[:, 0], cold_M, drawn),
        "agreement": None if category is None else category_agreement(category, codes_ML, sample, cold_M, drawn),
    }


def code_distances(
    vectors_MD: Tensor, first_M: np.ndarray, cold_M: np.ndarray, drawn: dict[str, np.ndarray]
) -> JsonObject | None:
    """Distance to the nearest first-level code, whose centre is the mean of the warm items that have it.

    A warm item is left out of its own centre: it would draw it near, as no cold item can.

    Args:
        vectors_MD: (M, D) vectors.
        first_M: (M,) first codes.
        cold_M: (M,) bool.
        drawn: Positions of the `cold` and `warm` items that are looked at.

    Returns:
        For `cold` and `warm`: quantiles of the Euclidean distance. mean_quantile: chance that a warm item lies nearer
        than a cold one, 0.5 where they are alike. None unless there are cold items and two warm ones.
    """
    if not len(drawn["cold"]) or (~cold_M).sum() < 2:
        return None
    codes, code_M = np.unique(first_M[~cold_M], return_inverse=True)
    counts_K = torch.from_numpy(np.bincount(code_M))
    sums_KD = torch.zeros(len(codes), vectors_MD.shape[1]).index_add_(0, torch.from_numpy(code_M), vectors_MD[~cold_M])
    own_M = np.full(len(first_M), -1)
    own_M[~cold_M] = code_M
    found = {}
    for kind, positions in drawn.items():
        nearest = []
        for block in blocks(positions, len(codes)):
            distance_BK = torch.cdist(vectors_MD[block], sums_KD / counts_K[:, None])
            if kind == "warm":  # without an item, a centre of n moves to n / (n - 1) times its distance
                own, at = torch.from_numpy(own_M[block]), torch.arange(len(block))
                n = counts_K[own].float()
                distance_BK[at, own] = torch.where(n > 1, distance_BK[at, own] * n / (n - 1), torch.inf)
            nearest.append(distance_BK.amin(dim=1))
        found[kind] = torch.cat(nearest).double().numpy()
    # The only warm item of the only code has no other centre.
    cold, warm = found["cold"], np.sort(found["warm"][np.isfinite(found["warm"])])
    nearer = (np.searchsorted(warm, cold, "left") + np.searchsorted(warm, cold, "right")) / (2 * len(warm))
    quantiles = {
        kind: {name: float(np.quantile(values, q)) for name, q in QUANTILES.items()}
        for kind, values in (("cold", cold), ("warm", warm))
    }
    return {**quantiles, "mean_quantile": float(nearer.mean())}


def category_agreement(
    category: Category, codes_ML: np.ndarray, sample: Sample, cold_M: np.ndarray, drawn: dict[str, np.ndarray]
) -> JsonObject | None:
    """How far the warm items with the longest common prefix share an item's category.

    Agreement of two items is the Jaccard index of their values: 1 or 0 where each has one. Items without a value are
    left out.

    Args:
        category: What is compared.
        codes_ML: (M, L) codes.
        sample: Items that are looked at.
        cold_M: (M,) bool.
        drawn: Positions of the `cold` and `warm` items whose neighbours are read.

    Returns:
        field: column. For `cold` and `warm`: mean agreement with the items of the longest common prefix (`prefix`) and
        with all warm items (`random`); None without such items. None as a whole where no item can be compared.
    """
    values = category.values[sample.rows]
    sizes = np.asarray(values.sum(axis=1)).ravel()
    candidates = np.flatnonzero(~cold_M & (sizes > 0))
    if len(candidates) < 2:
        return None
    lengths, report = common_prefixes(codes_ML), {"field": category.name}
    for kind, positions in drawn.items():
        positions = positions[sizes[positions] > 0]
        near, random = [], []
        for block in blocks(positions, len(candidates)):
            shared = (values[block] @ values[candidates].T).toarray()
            agreement = shared / (sizes[block][:, None] + sizes[candidates] - shared)
            length = lengths(block)[:, candidates].numpy()
            others = block[:, None] != candidates
            length[~others] = -1
            longest = length == length.max(axis=1, keepdims=True)
            near.append((agreement * longest).sum(axis=1) / longest.sum(axis=1))
            random.append((agreement * others).sum(axis=1) / others.sum(axis=1))
        found = len(positions) > 0
        report[kind] = {
            "prefix": float(np.concatenate(near).mean()) if found else None,
            "random": float(np.concatenate(random).mean()) if found else None,
        }
    return report
