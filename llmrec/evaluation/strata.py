"""Strata: examples that are alike in target, history or both, or in what the beam of the LLM found.

`popularity` groups examples by the training interactions of the target. Its deciles are tenths of the interactions, not
of the items: with a long tail, tenths of the items would put nearly all examples into the last one. Items of equal
count stay together, in the decile that holds the middle of their interactions, so the order of ties does not matter. A
decile can stay empty if one count holds more than a tenth of all interactions. An item without training interactions is
`cold`. Training interactions are nearly uniform over the deciles, so the shares of the deciles in what a system shows
are its popularity bias.

`history` groups examples by the number of items in the history, as `prepare` capped it.

`transition` groups them by the step from the last item of the history to the target: seen in training, composable of
two steps seen in training, or neither (transitions.py).

`beam` groups them by whether the beam search of the LLM found the target at any place. Outside, the LLM cannot score,
and what a baseline scores there is lost to the width of the beam. The beam of each column is another.

Shapes: n examples, N items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from llmrec.data.examples import NONE, Examples
from llmrec.evaluation.bootstrap import interval
from llmrec.evaluation.metrics import MISS, SHOWN
from llmrec.evaluation.ranking import UNFILLED
from llmrec.evaluation.transitions import Transitions
from llmrec.runtime.manifest import JsonObject

DECILES = 10
COLD = 0  # bin of items without training interactions; decile d is bin d
HISTORY_FROM = (0, 1, 3, 5, 10, 20, 50)  # shortest history of each bin
TRANSITIONS = ("seen", "composable", "never seen", "no history")
BEAM = ("within", "outside")

Values = dict[tuple[str, str], dict[str, np.ndarray]]  # (system, column) -> metric -> (n,)


class Stratum(NamedTuple):
    """Examples that are alike.

    Attributes:
        family: popularity, history, transition or beam; every example is in one stratum of each family.
        name: Unique within the family, and within the column if it has one.
        least: Smallest amount among its examples: training interactions of the target, items of the history, times that
            the transition was seen in training, or items ranked before the target, -1 if it was not found.
        most: Largest amount.
        examples: Ascending positions of its examples; not empty.
        column: The column whose beam is meant; None for strata of all columns.
    """

    family: str
    name: str
    least: int
    most: int
    examples: np.ndarray
    column: str | None = None


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


def find_strata(
    examples: Examples, training: np.ndarray, transitions: Transitions, starts: Mapping[str, np.ndarray]
) -> list[Stratum]:
    """Non-empty strata of all families, the least popular, shortest, or best known first.

    Args:
        examples: The n examples that were evaluated.
        training: (N,) training interactions of each item.
        transitions: Transitions of the training sequences.
        starts: Column -> (n,) items that the LLM ranks before the target, -1 if its beam has not found it.
    """
    lengths, counts = np.diff(examples.offsets), training[examples.targets]
    bins, times = transition_bin(examples, transitions)
    return [
        *_family("popularity", popularity_bin(training)[examples.targets], counts, _popularity_name),
        *_family("history", history_bin(lengths), lengths, _history_name),
        *_family("transition", bins, times, TRANSITIONS.__getitem__),
        *(
            stratum._replace(column=column)
            for column, start in starts.items()
            for stratum in _family("beam", (start == MISS).astype(int), start, BEAM.__getitem__)
        ),
    ]


def transition_bin(examples: Examples, transitions: Transitions) -> tuple[np.ndarray, np.ndarray]:
    """(n,) position in TRANSITIONS of each example, and (n,) times that its transition was seen in training."""
    last = examples.last_items()
    bins, times = np.full(len(examples), TRANSITIONS.index("no history")), np.zeros(len(examples), np.int64)
    filled = np.flatnonzero(last != NONE)
    times[filled] = transitions.counts(last[filled], examples.targets[filled])
    bins[filled] = TRANSITIONS.index("seen")
    new = filled[times[filled] == 0]
    is_composable = transitions.are_composable(last[new], examples.targets[new])
    bins[new] = np.where(is_composable, TRANSITIONS.index("composable"), TRANSITIONS.index("never seen"))
    return bins, times


def history_bin(lengths: np.ndarray) -> np.ndarray:
    """(n,) position in HISTORY_FROM of the bin of each history."""
    return np.searchsorted(HISTORY_FROM, lengths, side="right") - 1


def stratify(
    strata: list[Stratum], values: Values, starts: Mapping[str, np.ndarray], user_ids: list[str], k: int, seed: int
) -> list[JsonObject]:
    """The shown metrics of every system within each stratum, with intervals over its users.

    Args:
        strata: Strata of the n examples.
        values: Metrics of every example.
        starts: Column -> (n,) items that the LLM ranks before the target, -1 if its beam has not found it.
        user_ids: (n,) user of each example.
        k: Cut-off.
        seed: Seed of the resampling.

    Returns:
        Per stratum: family, name, least, most, column, num_examples, num_users, in_beam[column], the share of its
        targets that the LLM's beam found, and systems[system][column][metric] with mean, low and high. A stratum of
        one column has only that one.
    """
    users = np.asarray(user_ids)
    names = [(system, column, name) for system, column in values for name in (f"{metric}@{k}" for metric in SHOWN)]
    matrix = np.stack([values[system, column][name] for system, column, name in names], axis=1)
    result = []
    for stratum in strata:
        stratum_users = users[stratum.examples]
        systems: JsonObject = {system: {} for system, _ in values}
        estimates = interval(matrix[stratum.examples], stratum_users, seed=seed)
        for (system, column, name), mean, low, high in zip(names, *estimates, strict=True):
            if stratum.column in (None, column):
                of_column = systems[system].setdefault(column, {})
                of_column[name] = {"mean": float(mean), "low": float(low), "high": float(high)}
        entry = {name: value for name, value in stratum._asdict().items() if name != "examples"}
        counts = {"num_examples": len(stratum.examples), "num_users": len(np.unique(stratum_users))}
        in_beam = {
            column: float((start[stratum.examples] != MISS).mean())
            for column, start in starts.items()
            if stratum.column in (None, column)
        }
        result.append({**entry, **counts, "in_beam": in_beam, "systems": systems})
    return result


def exposure(training: np.ndarray, targets: np.ndarray, slots: dict[tuple[str, str], np.ndarray]) -> list[JsonObject]:
    """Shares of the popularity bins in training interactions, in targets, and in what each system shows.

    Args:
        training: (N,) training interactions of each item.
        targets: (n,) item rows of the targets.
        slots: (system, column) -> (n, k) item rows that it shows.

    Returns:
        Per non-empty bin: name, least and most training interactions, num_items, training_share, target_share, and
        slot_share[system][column].
    """
    bins = popularity_bin(training)
    training_share = _shares(bins, training)
    target_share = _shares(bins[targets])
    shown = {key: _shares(bins[items[items != UNFILLED]]) for key, items in slots.items()}
    result: list[JsonObject] = []
    for number in np.unique(bins):
        counts = training[bins == number]
        share: dict[str, dict[str, float]] = {}
        for (system, column), by_bin in shown.items():
            share.setdefault(system, {})[column] = float(by_bin[number])
        facts = {"name": _popularity_name(number), "least": int(counts.min()), "most": int(counts.max())}
        shares = {"training_share": float(training_share[number]), "target_share": float(target_share[number])}
        result.append({**facts, "num_items": len(counts), **shares, "slot_share": share})
    return result


def _family(family: str, bins: np.ndarray, amounts: np.ndarray, name: Callable[[int], str]) -> list[Stratum]:
    strata = []
    for number in np.unique(bins):
        examples = np.flatnonzero(bins == number)
        least, most = int(amounts[examples].min()), int(amounts[examples].max())
        strata.append(Stratum(family, name(number), least, most, examples))
    return strata


def _shares(bins: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """(11,) share of each popularity bin; zeros if all weights are 0."""
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
