"""The content of metrics.json: metrics with intervals, within strata, and as differences to the baselines."""

from __future__ import annotations

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.data.examples import Examples
from llmrec.evaluation.bootstrap import interval, paired_difference
from llmrec.evaluation.metrics import (
    SHOWN,
    invalid_rate,
    per_example,
    per_slots,
    unfilled,
)
from llmrec.evaluation.protocol import COLUMNS, Outcome, seen_targets
from llmrec.evaluation.ranking import UNFILLED
from llmrec.evaluation.strata import Values, exposure, find_strata, stratify
from llmrec.evaluation.transitions import Transitions
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.groups import entropy_bits
from llmrec.sid.table import EMPTY, SidTable

OURS = "ours"  # the model or the mixture; without one, the first baseline is the reference
DRAWN, LATEST = 3, 5  # examples of the page, and items of their histories
Outcomes = dict[tuple[str, str], Outcome]  # (system, column) -> outcome


def summarise(
    outcomes: Outcomes,
    examples: Examples,
    cutoffs: list[int],
    training: np.ndarray,
    transitions: Transitions,
    seed: int = 0,
) -> JsonObject:
    """Metrics of every system in both columns, with intervals, within strata, and as differences to the baselines.

    Args:
        outcomes: Outcomes of the same examples. The first system is the reference: ours, or without a model the first
            baseline.
        examples: The examples that were evaluated.
        cutoffs: Every k of the metrics.
        training: (N,) training interactions of each item of the catalogue.
        transitions: Transitions of the training sequences.
        seed: Seed of the resampling of users.

    Returns:
        systems[system][column]: metric -> value, and `intervals`: metric -> [low, high].
        differences[system][column][metric]: mean, low, high of the reference - another system at the largest cut-off.
        strata: result of `stratify` at the largest cut-off; exposure: result of `exposure`.
    """
    values = {key: per_example(outcome.position, cutoffs) for key, outcome in outcomes.items()}
    starts = {column: outcomes[OURS, column].position.start for column in COLUMNS if (OURS, column) in outcomes}
    strata = find_strata(examples, training, transitions, starts)
    names = [(key, name) for key in values for name in values[key]]
    matrix = np.stack([values[key][name] for key, name in names], axis=1)
    systems: JsonObject = {system: {} for system, _ in outcomes}
    for (system, column), outcome in outcomes.items():
        systems[system][column] = {"intervals": {}, **_of_slots(outcome, cutoffs, training)}
    for (key, name), *estimate in zip(names, *interval(matrix, examples.user_ids, seed=seed), strict=True):
        mean, low, high = map(float, estimate)
        systems[key[0]][key[1]][name] = mean
        systems[key[0]][key[1]]["intervals"][name] = [low, high]
    return {
        "num_examples": len(examples),
        "num_users": len(set(examples.user_ids)),
        "num_items": len(training),
        "k": sorted(cutoffs),
        "target_in_history": float(seen_targets(examples).mean()),
        "systems": systems,
        "differences": _differences(values, examples, max(cutoffs), seed),
        "strata": stratify(strata, values, starts, examples.user_ids, max(cutoffs), seed),
        "exposure": exposure(training, examples.targets, {key: outcome.items for key, outcome in outcomes.items()}),
    }


def sample_of(outcomes: Outcomes, num_held_out: int, cutoffs: list[int], seed: int) -> JsonObject | None:
    """Facts about a sample of the held-out examples; None if all were evaluated.

    Args:
        outcomes: Outcomes of the n examples.
        num_held_out: Number of examples that they were drawn from.
        cutoffs: Every k of the metrics.
        seed: Seed of the draw.

    Returns:
        of: examples that were drawn from. seed. standard_error[column][metric]: that of the first system at the largest
        cut-off, for the examples that were not drawn: s / sqrt(n) sqrt(1 - n / of).
    """
    reference, k = next(iter(outcomes))[0], max(cutoffs)
    errors: JsonObject = {}
    for column in COLUMNS:
        values = per_example(outcomes[reference, column].position, [k])
        n = len(next(iter(values.values())))
        if n == num_held_out:
            return None
        share_left = 1 - n / num_held_out
        names = [f"{metric}@{k}" for metric in SHOWN]
        errors[column] = {name: float(values[name].std(ddof=min(1, n - 1)) * (share_left / n) ** 0.5) for name in names}
    return {"of": num_held_out, "seed": seed, "standard_error": errors}


def _of_slots(outcome: Outcome, cutoffs: list[int], training: np.ndarray) -> dict[str, float]:
    """Measures of the slots of a ranking, whatever the targets are."""
    items = outcome.items
    return {
        **per_slots(items, cutoffs, training),
        **{f"unfilled@{k}": unfilled(items, k) for k in sorted(cutoffs)},
        "invalid_rate": invalid_rate(items, outcome.invalid),
        "examples_per_s": len(items) / max(outcome.seconds, 1e-9),
    }


def drawn_examples(outcomes: Outcomes, examples: Examples, catalog: Catalog, seed: int = 0) -> list[JsonObject]:
    """Answers of the first system to a few examples, drawn at random.

    Args:
        outcomes: Outcomes of the examples.
        examples: The examples that were evaluated.
        catalog: Catalogue with the titles.
        seed: Seed of the draw.

    Returns:
        For each example: user_id, `history` (its latest items), `target`, and `recommended` of each column. Items are
        pairs of item_id and title.
    """
    reference = next(iter(outcomes))[0]
    drawn = np.random.default_rng(seed).choice(len(examples), min(DRAWN, len(examples)), replace=False)

    def items(rows: np.ndarray) -> list[list[str]]:
        return [[catalog.item_ids[row], catalog.titles[row]] for row in rows if row != UNFILLED]

    return [
        {
            "user_id": examples.user_ids[i],
            "history": items(examples.history(i)[-LATEST:]),
            "target": items(examples.targets[i : i + 1])[0],
            "recommended": {column: items(outcomes[reference, column].items[i]) for column in COLUMNS},
        }
        for i in drawn.tolist()
    ]


def sid_usage(table: SidTable, table_rows: np.ndarray, outcomes: Outcomes) -> list[JsonObject]:
    """Number of codes of each level in the catalogue, and in what the LLM shows.

    Args:
        table: SIDs of the model.
        table_rows: (N,) item row of each item of the catalogue in the table.
        outcomes: Outcomes, with those of `ours`.

    Returns:
        Per level: level, codebook_size, and for `catalog` and each column the number of codes used and the effective
        number, 2^entropy.
    """
    shown = {column: outcomes[OURS, column].items for column in COLUMNS}
    rows = {"catalog": np.arange(len(table_rows)), **{name: items[items != UNFILLED] for name, items in shown.items()}}
    codes = {name: table.codes(table_rows[of]) for name, of in rows.items()}  # (…, L) each
    levels = []
    for level, size in enumerate(table.level_sizes):
        entry: JsonObject = {"level": level, "codebook_size": size}
        for name, of in codes.items():
            counts = np.bincount(of[:, level][of[:, level] != EMPTY], minlength=size)
            entry[name] = {"used": int((counts > 0).sum()), "effective": 2 ** entropy_bits(counts)}
        levels.append(entry)
    return levels


def _differences(values: Values, examples: Examples, k: int, seed: int) -> JsonObject:
    """The shown metrics of the first system minus those of each other one, at one cut-off."""
    reference, *others = [system for system, column in values if column == COLUMNS[0]]
    keys = [(system, column, f"{metric}@{k}") for system in others for column in COLUMNS for metric in SHOWN]
    differences: JsonObject = {system: {column: {} for column in COLUMNS} for system in others}
    if not keys:
        return differences
    first = np.stack([values[reference, column][name] for _, column, name in keys], axis=1)
    theirs = np.stack([values[system, column][name] for system, column, name in keys], axis=1)
    estimates = paired_difference(first, theirs, examples.user_ids, seed=seed)
    for (system, column, name), mean, low, high in zip(keys, *estimates, strict=True):
        differences[system][column][name] = {"mean": float(mean), "low": float(low), "high": float(high)}
    return differences
