"""Filters and splits of an interaction log: k-core, leave-one-out, global temporal, and the checks for leaks.

An example is (user, split, history, target, position), where `position` is the place of the target in the user's
sequence. It distinguishes a held-out interaction from an earlier visit to the same item, and is dropped when the split
is written.

Departures from common practice: a training example is a user's whole training sequence, because one pass trains every
item of it, so there is one training example per user; `max_history` cuts validation and test histories only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import polars as pl

from llmrec.data.columns import HISTORY, ITEM_ID, SPLIT, TARGET, TIMESTAMP, USER_ID

POSITION = "position"
DIFFER = "differ from the interactions"
CHECKED_AT_A_TIME = 50_000  # examples


def with_codes(log: pl.DataFrame) -> pl.DataFrame:
    """Write the ids of users and items as codes of four bytes, which have the order of the ids.

    >>> log = pl.DataFrame({"user_id": ["b", "a", "b"], "item_id": ["x", "x", "y"]})
    >>> with_codes(log)["user_id"].to_physical().to_list(), with_codes(log)["user_id"].to_list()
    ([1, 0, 1], ['b', 'a', 'b'])
    """
    return log.with_columns(log[name].cast(pl.Enum(different(log[name]).sort())) for name in (USER_ID, ITEM_ID))


def with_texts(log: pl.DataFrame) -> pl.DataFrame:
    """Write ids that are codes as texts again; others stay."""
    return log.with_columns(pl.col(USER_ID, ITEM_ID).cast(pl.String))


def different(ids: pl.Series) -> pl.Series:
    """Different ids of a column as texts, in the order of their first rows."""
    return ids.unique(maintain_order=True).cast(pl.String)


def numbers(ids: pl.Series) -> np.ndarray:
    """Number of each id among the distinct ones, which are in order: numbers count and sort faster than text.

    Args:
        ids: Texts, or codes, whose numbers are those among all ids that were coded.

    Returns:
        (len(ids),) uint32.
    """
    codes = ids if isinstance(ids.dtype, pl.Enum) else ids.cast(pl.Enum(ids.unique().sort()))
    return codes.to_physical().to_numpy()


def k_core(interactions: pl.DataFrame, k: int) -> pl.DataFrame:
    """Drop users and items with fewer than k interactions until none is left to drop.

    Args:
        interactions: One row per interaction; repeated (user, item) rows count each time.
        k: Smallest number of interactions; 0 and 1 keep all.

    Returns:
        The remaining interactions in their order; none if there is no k-core.
    """
    rounds = k_core_rounds(numbers(interactions[USER_ID]), numbers(interactions[ITEM_ID]), k)
    last = deque(rounds, maxlen=1)
    return interactions[last[0]] if last else interactions


def k_core_rounds(users: np.ndarray, items: np.ndarray, k: int) -> Iterator[np.ndarray]:
    """Positions of the interactions that are left after each round of `k_core`; no round if nothing is dropped.

    Args:
        users: `numbers` of the users.
        items: As many `numbers` of the items.
        k: Smallest number of interactions.

    Yields:
        Ascending positions; the last are those of the k-core.
    """
    rows = np.arange(len(users))
    while True:
        enough = (np.bincount(users)[users] >= k) & (np.bincount(items)[items] >= k)
        if enough.all():
            return
        rows, users, items = rows[enough], users[enough], items[enough]
        yield rows


def in_order(interactions: pl.DataFrame) -> pl.DataFrame:
    """Sort by user and time, ties in the order of the source."""
    return interactions[np.lexsort((interactions[TIMESTAMP].to_numpy(), numbers(interactions[USER_ID])))]


def suited_k_core(users: np.ndarray, items: np.ndarray) -> int:
    """Largest k of 5, 4, 3 and 2 whose k-core keeps half of the users that can be tested; 0 if none does.

    Items and users with few interactions are hard to learn and to judge, which is why 5 is usual; but a k-core of
    sparse data may drop nearly all of it. A user can be tested with three interactions.

    Args:
        users: `numbers` of the users.
        items: As many `numbers` of the items.
    """

    def testable(k: int) -> int:
        last = deque(k_core_rounds(users, items, k), maxlen=1)
        return int((np.bincount(users[last[0]] if last else users) >= 3).sum())

    enough = max(testable(0) / 2, 1)
    return next((k for k in (5, 4, 3, 2) if testable(k) >= enough), 0)


def in_sequence(interactions: pl.DataFrame) -> pl.DataFrame:
    """Sort by user and time, ties in the order of the source, and add the 0-based `position` in the user's sequence."""
    return with_positions(in_order(interactions))


def with_positions(ordered: pl.DataFrame) -> pl.DataFrame:
    """Add the 0-based `position` in the user's sequence to interactions in order."""
    lengths = np.bincount(ordered[USER_ID].rle_id().to_numpy())
    position = np.arange(ordered.height) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return ordered.with_columns(pl.Series(POSITION, position, pl.Int64))


def exact_repeats(ordered: pl.DataFrame) -> pl.Series:
    """True for interactions that repeat user, item and time of an earlier row, as a log that was written twice does.

    Args:
        ordered: Output of `in_order`.

    Returns:
        As many values as there are rows.
    """
    same = [pl.col(name) == pl.col(name).shift() for name in (USER_ID, TIMESTAMP)]
    tied = ordered.select(pl.all_horizontal(same).fill_null(False)).to_series()
    of_a_tie = (tied | tied.shift(-1, fill_value=False)).arg_true()  # few rows of most logs
    is_first = ordered[of_a_tie].select(pl.struct(USER_ID, ITEM_ID, TIMESTAMP).is_first_distinct()).to_series()
    repeats = np.zeros(ordered.height, dtype=bool)
    repeats[of_a_tie.filter(~is_first).to_numpy()] = True
    return pl.Series(repeats)


def sample_users(interactions: pl.DataFrame, num_users: int, seed: int) -> pl.DataFrame:
    """Keep the interactions of `num_users` random users; all users stay if there are no more."""
    users = interactions[USER_ID].unique().sort()
    chosen = np.random.default_rng(seed).permutation(len(users))[:num_users]
    return interactions.filter(pl.col(USER_ID).is_in(users[chosen].implode()))


def shuffle_items(items: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Put the items in random order, so that an item row says nothing about when an item was first seen."""
    return items[np.random.default_rng(seed).permutation(items.height)]


def leave_one_out(interactions: pl.DataFrame, max_history: int) -> pl.DataFrame:
    """Split each user: the last interaction is a test target, the last but one a validation target, the rest train.

    Args:
        interactions: Output of `in_sequence`.
        max_history: Latest items kept in a valid or test history.

    Returns:
        Columns user_id, split, history, target, position; users with fewer than 3 interactions only train.
    """
    lengths = interactions.group_by(USER_ID, maintain_order=True).agg(pl.len().cast(pl.Int64).alias("n"))
    long = lengths.filter(pl.col("n") >= 3)
    rows = [
        _label(lengths, "train", pl.when(pl.col("n") >= 3).then(pl.col("n") - 3).otherwise(pl.col("n") - 1)),
        _label(long, "valid", pl.col("n") - 2),
        _label(long, "test", pl.col("n") - 1),
    ]
    return _with_histories(pl.concat(rows), interactions, max_history)


def temporal(interactions: pl.DataFrame, max_history: int) -> pl.DataFrame:
    """Split all (history, target) pairs of all users 8:1:1 by time.

    A user may own several validation and test examples. Pairs with the same time are ordered by user, so such a tie
    may lie on both sides of a cut; no user's later interaction is ever on the earlier side.

    Args:
        interactions: Output of `in_sequence`, with real times.
        max_history: Latest items kept in a valid or test history.

    Returns:
        Columns user_id, split, history, target, position. A user's training example ends at the
        last training target.
    """
    pairs = interactions.filter(pl.col(POSITION) > 0).sort(TIMESTAMP, maintain_order=True)
    first_valid, first_test = pairs.height * 8 // 10, pairs.height * 9 // 10
    train = pairs[:first_valid].group_by(USER_ID, maintain_order=True).agg(pl.col(POSITION).max())
    rows = [
        _label(train.sort(USER_ID), "train", pl.col(POSITION)),
        _label(pairs[first_valid:first_test], "valid", pl.col(POSITION)),
        _label(pairs[first_test:], "test", pl.col(POSITION)),
    ]
    return _with_histories(pl.concat(rows), interactions, max_history)


def _label(rows: pl.DataFrame, split: str, position: pl.Expr) -> pl.DataFrame:
    return rows.select(USER_ID, pl.lit(split).alias(SPLIT), position.alias(POSITION))


def _with_histories(rows: pl.DataFrame, interactions: pl.DataFrame, max_history: int) -> pl.DataFrame:
    """Add the target at each position and the items before it, outside training at most `max_history` of them."""
    sequences = interactions.group_by(USER_ID).agg(pl.col(ITEM_ID).alias("sequence"))
    position = pl.col(POSITION)
    start = pl.when(pl.col(SPLIT) == "train").then(0).otherwise(pl.max_horizontal(position - max_history, 0))
    return rows.join(sequences, on=USER_ID, how="left", maintain_order="left").select(
        USER_ID,
        SPLIT,
        pl.col("sequence").list.slice(start, position - start).alias(HISTORY),
        pl.col("sequence").list.get(position).alias(TARGET),
        POSITION,
    )


def check_no_leak(split: pl.DataFrame, interactions: pl.DataFrame, by_time: bool = False) -> None:
    """Prove from the finished examples that training cannot have seen a held-out interaction.

    Args:
        split: Examples with the columns of `leave_one_out`.
        interactions: Output of `in_sequence` that the examples were made from.
        by_time: Also require that training ends before validation begins, and validation before test.

    Raises:
        ValueError: If an example differs from its user's sequence, a user has two training examples, an interaction is
            held out twice or lies in a training example, or (`by_time`) the splits overlap in time.
    """
    _check_rows_are_sequences(split, interactions)
    train, held_out = split.filter(pl.col(SPLIT) == "train"), split.filter(pl.col(SPLIT) != "train")
    _refuse(train.filter(pl.col(USER_ID).is_duplicated()), "are a second training example of their user")
    _refuse(held_out.filter(pl.struct(USER_ID, POSITION).is_duplicated()), "hold one interaction out twice")
    ends = train.select(USER_ID, pl.col(POSITION).alias("end"))
    seen = held_out.join(ends, on=USER_ID).filter(pl.col(POSITION) <= pl.col("end"))
    _refuse(seen, "have a held-out interaction in a training example")
    if by_time:
        _check_time_order(split, interactions)


def _check_rows_are_sequences(split: pl.DataFrame, interactions: pl.DataFrame) -> None:
    """Compare items with interactions position by position; a comparison of sets would miss repeated items.

    The row of a position is the user's first row and the position; an outer join of all positions, which needs no order
    of the interactions, took 2 GB more for 10^7 of them.
    """
    starts = interactions[POSITION] == 0
    follows = (interactions[USER_ID] == interactions[USER_ID].shift()) & (interactions[POSITION].diff() == 1)
    users = (
        interactions.select(USER_ID, pl.int_range(pl.len()).alias("row"))
        .group_by(USER_ID)
        .agg(pl.col("row").min(), pl.len())
    )
    assert (starts | follows.fill_null(False)).all() and starts.sum() == users.height, "not the output of in_sequence"
    rows = split.join(users, on=USER_ID, how="left", maintain_order="left")
    begin = pl.col(POSITION) - pl.col(HISTORY).list.len().cast(pl.Int64)
    _refuse(rows.filter(((begin >= 0) & (pl.col(POSITION) < pl.col("len"))).ne_missing(True)), DIFFER)
    for some in rows.iter_slices(CHECKED_AT_A_TIME):
        steps = some.select(
            USER_ID,
            pl.concat_list(HISTORY, TARGET).alias("found"),
            pl.int_ranges(pl.col("row") + begin, pl.col("row") + pl.col(POSITION) + 1).alias("row"),
        ).explode("found", "row")
        truth = interactions[ITEM_ID].gather(steps["row"])
        _refuse(steps.filter(steps["found"].ne_missing(truth)), DIFFER)


def _check_time_order(split: pl.DataFrame, interactions: pl.DataFrame) -> None:
    times = split.join(interactions.select(USER_ID, POSITION, TIMESTAMP), on=(USER_ID, POSITION))
    for earlier, later in (("train", "valid"), ("valid", "test")):
        begin = pl.col(TIMESTAMP).filter(pl.col(SPLIT) == later).min()
        overlap = times.filter((pl.col(SPLIT) == earlier) & (pl.col(TIMESTAMP) > begin))
        _refuse(overlap, f"have a {earlier} target later than the first {later} target")


def _refuse(rows: pl.DataFrame, what: str) -> None:
    if not rows.is_empty():
        users = rows[USER_ID].unique(maintain_order=True).head(3).to_list()
        raise ValueError(f"The split leaks: {rows.height} examples {what}; first users: {users}.")
