"""Users and items of a log in numbers: how long histories are, how popular items are, how often users come back."""

from __future__ import annotations

import numpy as np
import polars as pl

from llmrec.data.columns import ITEM_ID, TIMESTAMP, USER_ID
from llmrec.data.split import numbers
from llmrec.runtime.manifest import JsonObject

CURVE_POINTS = 40
USERS_AT_A_TIME = 500_000
LENGTHS_FROM = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)  # shortest history of each bin
QUANTILES = {"least": 0.0, "quarter": 0.25, "median": 0.5, "three_quarters": 0.75, "most": 1.0}


def coded(ordered: pl.DataFrame) -> pl.DataFrame:
    """Users and items of a log as integers, on which the other functions are fast.

    Args:
        ordered: Interactions sorted by user and time.

    Returns:
        user (uint32, from 0), item (uint32) and timestamp, in the same order.
    """
    return ordered.select(
        pl.col(USER_ID).rle_id().alias("user"), pl.Series("item", numbers(ordered[ITEM_ID])), TIMESTAMP
    )


def behaviour_facts(log: pl.DataFrame) -> JsonObject:
    """Histories, popularity and repeat consumption of a log.

    Args:
        log: Result of `coded`; not empty.

    Returns:
        users, items, interactions; histories: quantiles, mean, share_of_longest, and bins (name, users); popularity:
        curve (share of the items, most popular first, and their share of the interactions), top_1, top_10, gini, once
        (items with one interaction); repeats: rows (interactions with an item that the user had before), share, users
        (share of users who have any).
    """
    per_user = log["user"].value_counts()["count"].to_numpy().astype(np.int64)
    per_item = np.sort(log["item"].value_counts()["count"].to_numpy().astype(np.int64))[::-1]
    return {
        "users": len(per_user),
        "items": len(per_item),
        "interactions": log.height,
        "histories": history_facts(per_user),
        "popularity": popularity_facts(per_item),
        "repeats": repeat_facts(log),
    }


def history_facts(lengths: np.ndarray) -> JsonObject:
    """Quantiles and bins of the number of interactions of each user.

    Args:
        lengths: (users,) interactions of each user.

    Returns:
        As `behaviour_facts` says.
    """
    bins = np.bincount(np.searchsorted(LENGTHS_FROM, lengths, side="right") - 1, minlength=len(LENGTHS_FROM))
    ends = [first - 1 for first in LENGTHS_FROM[1:]] + [None]
    names = [_bin_name(first, last) for first, last in zip(LENGTHS_FROM, ends, strict=True)]
    used = range(int(np.flatnonzero(bins)[0]), int(np.flatnonzero(bins)[-1]) + 1)
    return {
        **{name: float(np.quantile(lengths, at)) for name, at in QUANTILES.items()},
        "mean": float(lengths.mean()),
        "share_of_longest": float(lengths.max() / lengths.sum()),
        "bins": [{"name": names[i], "users": int(bins[i])} for i in used],
    }


def popularity_facts(counts: np.ndarray) -> JsonObject:
    """Shares of the interactions that the most popular items have.

    Args:
        counts: (items,) interactions of each item, the largest first.

    Returns:
        As `behaviour_facts` says.
    """
    number, total = len(counts), counts.sum()
    until = np.concatenate([[0], np.cumsum(counts)]) / total
    # Points are dense where the curve is steep, at the popular items.
    places = np.unique(np.round(number * np.linspace(0, 1, CURVE_POINTS) ** 3).astype(np.int64))
    ascending = counts[::-1]
    weight = 2 * np.arange(1, number + 1) - number - 1
    return {
        "curve": {"items": (places / number).tolist(), "interactions": until[places].tolist()},
        "top_1": float(until[max(1, round(number / 100))]),
        "top_10": float(until[max(1, round(number / 10))]),
        "gini": float(weight @ ascending / (number * total)),
        "once": int((counts == 1).sum()),
    }


def repeat_facts(log: pl.DataFrame) -> JsonObject:
    """Interactions with an item that the same user had before, at whatever time.

    Args:
        log: Result of `coded`.

    Returns:
        As `behaviour_facts` says.
    """
    user, item = log["user"].to_numpy(), log["item"].to_numpy().astype(np.uint64)
    lengths, again = np.bincount(user), np.zeros(int(user[-1]) + 1, np.int64)
    ends = np.cumsum(lengths)
    for first in range(0, len(lengths), USERS_AT_A_TIME):
        rows = slice(ends[first] - lengths[first], ends[min(first + USERS_AT_A_TIME, len(lengths)) - 1])
        pairs = np.sort(user[rows].astype(np.uint64) << 32 | item[rows])
        owners = pairs[1:][pairs[1:] == pairs[:-1]] >> 32
        again += np.bincount(owners.astype(np.int64), minlength=len(again))  # numpy 2.0 counts no uint64
    return {"rows": int(again.sum()), "share": float(again.sum() / log.height), "users": float((again > 0).mean())}


def _bin_name(first: int, last: int | None) -> str:
    return f"{first}+" if last is None else str(first) if first == last else f"{first}-{last}"
