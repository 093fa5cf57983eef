"""Strata: test rows that are alike in how known the target is, or in how much is known of the user.

`popularity` splits rows by the training interactions of the target. Its deciles are tenths of the interactions, not of
the items: on a long tail, tenths of the items would put most test rows into the last one and next to none into the
others. Items of equal count stay together, at the decile in which the middle of their interactions falls, so that no
order of ties matters; where one count holds more than a tenth of all interactions a decile may stay empty. An item
without training interactions is `cold`. Training is then nearly uniform over the deciles, so that what a system shows
in each of them is its popularity bias.

`history` splits rows by the items of the history, as `prepare` capped it.

Shapes: n rows, N items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from llmrec.data.examples import Examples
from llmrec.evaluation.bootstrap import interval
from llmrec.evaluation.ranking import UNFILLED
from llmrec.runtime.manifest import JsonObject

DECILES = 10
COLD = 0  # bin of the items without training interactions; decile d is bin d
HISTORY_FROM = (0, 1, 3, 5, 10, 20, 50)  # shortest history of each bin

Values = dict[tuple[str, str], dict[str, np.ndarray]]  # (system, column) -> metric -> (n,)


class Stratum(NamedTuple):
    """Rows that belong together.

    Attributes:
        family: popularity or history; the strata of a family share out all rows.
        name: Unique within the family.
        least: Smallest count of training interactions, or shortest history.
        most: The largest or longest.
        rows: Positions of its rows, ascending, not empty.
    """

    family: str
    name: str
    least: int
    most: int
    rows: np.ndarray


def popularity_bin(training: np.ndarray) -> np.ndarray:
    """(N,) decile of each item, 1 the least popular to 10 the most, 0 a cold item.

    Args:
        training: (N,) training interactions of each item.
    """
    ordered = np.sort(training)
    until = np.concatenate([[0], np.cumsum(ordered)])  # interactions of the i least popular items
    below, upto = (until[np.searchsorted(ordered, training, side=side)] for side in ("left", "right"))
    decile = DECILES * (below + upto) // (2 * max(int(until[-1]), 1)) + 1  # integers: no rounding at the cuts
    return np.where(training == 0, COLD, decile)


def find_strata(rows: Examples, training: np.ndarray) -> list[Stratum]:
    """Strata of both families that have a row, least popular or shortest first.

    Args:
        rows: The n rows that were evaluated.
        training: (N,) training interactions of each item.
    """
    lengths = np.diff(rows.offsets)
    return [
        *_family("popularity", popularity_bin(training)[rows.targets], training[rows.targets], _popularity_name),
        *_family("history", history_bin(lengths), lengths, _history_name),
    ]


def history_bin(lengths: np.ndarray) -> np.ndarray:
    """(n,) position in HISTORY_FROM of the bin of each history."""
    return np.searchsorted(HISTORY_FROM, lengths, side="right") - 1


def stratify(
    strata: list[Stratum], values: Values, user_ids: list[str], k: int, samples: int, seed: int
) -> list[JsonObject]:
    """Recall and NDCG of every system within each stratum, with intervals over its users.

    Args:
        strata: Of the rows of `values`.
        values: Metrics of every row.
        user_ids: (n,) user of each row.
        k: Cut-off.
        samples: Resamples of users.
        seed: Of the resampling.

    Returns:
        Per stratum: family, name, least, most, num_rows, num_users, and systems[system][column][metric] with mean, low
        and high.
    """
    users = np.asarray(user_ids)
    names = [(system, column, name) for system, column in values for name in (f"recall@{k}", f"ndcg@{k}")]
    matrix = np.stack([values[system, column][name] for system, column, name in names], axis=1)
    found = []
    for stratum in strata:
        chosen = users[stratum.rows]
        systems: JsonObject = {system: {} for system, _ in values}
        estimates = interval(matrix[stratum.rows], chosen, samples, seed)
        for (system, column, name), mean, low, high in zip(names, *estimates, strict=True):
            entry = systems[system].setdefault(column, {})
            entry[name] = {"mean": float(mean), "low": float(low), "high": float(high)}
        facts = {"num_rows": len(stratum.rows), "num_users": len(np.unique(chosen)), "systems": systems}
        found.append({**stratum._asdict(), **facts})
        del found[-1]["rows"]
    return found


def exposure(training: np.ndarray, targets: np.ndarray, slots: dict[tuple[str, str], np.ndarray]) -> list[dict]:
    """How training, targets and what each system shows are spread over the items by their popularity.

    Args:
        training: (N,) training interactions of each item.
        targets: (n,) item rows.
        slots: (system, column) -> (n, k) item rows of what it showed.

    Returns:
        Per bin that has items: name, least and most training interactions, num_items, training_share, target_share, and
        slot_share[system][column].
    """
    bins = popularity_bin(training)
    training_share = _shares(bins, training)
    target_share = _shares(bins[targets])
    shown = {key: _shares(bins[items[items != UNFILLED]]) for key, items in slots.items()}
    found = []
    for number in np.unique(bins):
        counts = training[bins == number]
        share: dict[str, dict[str, float]] = {}
        for (system, column), by_bin in shown.items():
            share.setdefault(system, {})[column] = float(by_bin[number])
        facts = {"name": _popularity_name(number), "least": int(counts.min()), "most": int(counts.max())}
        shares = {"training_share": float(training_share[number]), "target_share": float(target_share[number])}
        found.append({**facts, "num_items": len(counts), **shares, "slot_share": share})
    return found


def _family(family: str, bins: np.ndarray, amounts: np.ndarray, name: Callable[[int], str]) -> list[Stratum]:
    found = []
    for number in np.unique(bins):
        rows = np.flatnonzero(bins == number)
        least, most = int(amounts[rows].min()), int(amounts[rows].max())
        found.append(Stratum(family, name(number), least, most, rows))
    return found


def _shares(bins: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """(11,) share of each popularity bin; zeros where there is nothing to share."""
    total = np.bincount(bins, weights=weights, minlength=DECILES + 1)
    return total / max(total.sum(), 1)


def _popularity_name(number: int) -> str:
    return "cold" if number == COLD else f"decile {number}"


def _history_name(number: int) -> str:
    first = HISTORY_FROM[number]
    if number + 1 == len(HISTORY_FROM):
        return f"{first}+"
    last = HISTORY_FROM[number + 1] - 1
    return str(first) if first == last else f"{first}-{last}"
