"""k-core, splits and leak checks: hand-computed cases, then properties over random logs."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.split import (
    POSITION,
    check_no_leak,
    in_sequence,
    k_core,
    leave_one_out,
    sample_users,
    shuffle_items,
    temporal,
    with_codes,
    with_texts,
)

PROPERTY = settings(derandomize=True, max_examples=25, deadline=None)


def log(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def sequences(**histories: str) -> pl.DataFrame:
    """One letter per item, times 0, 1, 2 … for every user."""
    return in_sequence(
        log([(user, item, time) for user, items in histories.items() for time, item in enumerate(items)])
    )


def rows_of(split: pl.DataFrame, name: str) -> list[tuple[str, str, str]]:
    chosen = split.filter(pl.col("split") == name).sort("user_id", POSITION)
    return [(row["user_id"], "".join(row["history"]), row["target"]) for row in chosen.iter_rows(named=True)]


random_logs = st.lists(
    st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcd"), st.integers(0, 8)), min_size=1, max_size=60
).map(log)


def test_k_core_drops_until_nothing_changes():
    # c is rare; without it u2 has one interaction left, and without u2 item b has one.
    rows = [
        ("u1", "a", 0),
        ("u1", "a", 1),
        ("u1", "b", 2),
        ("u2", "b", 0),
        ("u2", "c", 1),
        ("u3", "a", 0),
        ("u3", "a", 1),
    ]
    kept = k_core(log(rows), 2)
    assert kept.rows() == [("u1", "a", 0), ("u1", "a", 1), ("u3", "a", 0), ("u3", "a", 1)]


@PROPERTY
@given(random_logs, st.integers(0, 5))
def test_k_core_is_a_fixpoint_and_the_largest(interactions, k):
    kept = k_core(interactions, k)
    assert k_core(kept, k).equals(kept)
    for column in ("user_id", "item_id"):
        assert all(count >= k for count in kept[column].value_counts()["count"])
    if k <= 1:
        assert kept.equals(interactions)


def test_sequence_sorts_by_time_and_keeps_ties_in_file_order():
    ordered = in_sequence(log([("u2", "x", 5), ("u1", "b", 3), ("u1", "a", 3), ("u1", "c", 1)]))
    assert ordered.select("user_id", "item_id", POSITION).rows() == [
        ("u1", "c", 0),
        ("u1", "b", 1),
        ("u1", "a", 2),
        ("u2", "x", 0),
    ]


def test_leave_one_out():
    interactions = sequences(u1="abcde", u2="ab", u3="a", u4="abc")
    split = leave_one_out(interactions, max_history=2)
    assert rows_of(split, "train") == [("u1", "ab", "c"), ("u2", "a", "b"), ("u3", "", "a"), ("u4", "", "a")]
    assert rows_of(split, "valid") == [("u1", "bc", "d"), ("u4", "a", "b")]  # the cap keeps the latest two
    assert rows_of(split, "test") == [("u1", "cd", "e"), ("u4", "ab", "c")]
    check_no_leak(split, interactions)


def test_temporal_cuts_pairs_8_1_1_and_keeps_several_rows_per_user():
    # Ten pairs, at times 1 to 10: eight train, one validates, one tests.
    u1 = [("u1", item, time) for item, time in zip("abcdef", (0, 1, 2, 3, 9, 10), strict=True)]
    u2 = [("u2", item, time) for item, time in zip("ghijkl", (0, 4, 5, 6, 7, 8), strict=True)]
    u3 = [("u3", "m", 11)]
    interactions = in_sequence(log(u1 + u2 + u3))
    split = temporal(interactions, max_history=3)
    assert rows_of(split, "train") == [("u1", "abc", "d"), ("u2", "ghijk", "l")]
    assert rows_of(split, "valid") == [("u1", "bcd", "e")]
    assert rows_of(split, "test") == [("u1", "cde", "f")]
    check_no_leak(split, interactions, by_time=True)


def test_repeated_items_are_told_apart_by_position():
    interactions = sequences(u1="abab")
    split = leave_one_out(interactions, max_history=50)
    assert rows_of(split, "train") == [("u1", "a", "b")]
    assert rows_of(split, "test") == [("u1", "aba", "b")]
    check_no_leak(split, interactions)  # the held-out b is another visit than the one in training


@PROPERTY
@given(random_logs, st.integers(1, 4))
def test_leave_one_out_never_leaks(interactions, max_history):
    interactions = in_sequence(interactions)
    split = leave_one_out(interactions, max_history)
    check_no_leak(split, interactions)
    # Every interaction is a training item or a held-out target, exactly once.
    train = split.filter(pl.col("split") == "train")
    held_out = split.height - train.height
    assert train["history"].list.len().sum() + train.height + held_out == interactions.height
    assert split.filter(pl.col("split") != "train")["history"].list.len().is_between(1, max_history).all()


@PROPERTY
@given(random_logs, st.integers(1, 4))
def test_temporal_never_trains_on_the_future(interactions, max_history):
    interactions = in_sequence(interactions)
    split = temporal(interactions, max_history)
    check_no_leak(split, interactions, by_time=True)
    pairs = interactions.filter(pl.col(POSITION) > 0).height
    counts = [split.filter(pl.col("split") == name).height for name in ("valid", "test")]
    assert counts == [pairs * 9 // 10 - pairs * 8 // 10, pairs - pairs * 9 // 10]


def tampered(split: pl.DataFrame, row: dict, /, **changes) -> pl.DataFrame:
    return pl.concat([split, pl.DataFrame([{**row, **changes}], schema=split.schema)])


def test_leak_checks_raise():
    interactions = sequences(u1="abcdef")
    split = leave_one_out(interactions, max_history=50)
    train, valid, test = split.rows(named=True)
    with pytest.raises(ValueError, match="a second training example of their user"):
        check_no_leak(tampered(split, train), interactions)
    with pytest.raises(ValueError, match=r"held-out interaction in a training example.*u1"):
        check_no_leak(tampered(split[1:], test, split="train"), interactions)
    with pytest.raises(ValueError, match="twice"):
        check_no_leak(tampered(split, valid, split="test"), interactions)
    with pytest.raises(ValueError, match="differ from the interactions"):
        check_no_leak(tampered(split[:2], test, target="a"), interactions)
    with pytest.raises(ValueError, match="differ from the interactions"):
        check_no_leak(tampered(split[:2], test, history=list("abcd")), interactions)


def test_leave_one_out_is_refused_as_a_temporal_split():
    interactions = in_sequence(log([("u1", "a", 0), ("u1", "b", 1), ("u1", "c", 2)] + [("u2", i, 9) for i in "abc"]))
    with pytest.raises(ValueError, match="train target later than the first valid target"):
        check_no_leak(leave_one_out(interactions, 50), interactions, by_time=True)


def test_shuffle_and_sample_depend_on_the_seed_alone():
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(50)]})
    once, again, other = shuffle_items(items, 1), shuffle_items(items, 1), shuffle_items(items, 2)
    assert once.equals(again) and not once.equals(other) and not once.equals(items)
    assert once.sort("item_id").equals(items.sort("item_id"))
    interactions = sequences(u1="ab", u2="abc", u3="abcd")
    assert sample_users(interactions, 2, 0)["user_id"].n_unique() == 2
    assert sample_users(interactions, 9, 0).equals(interactions)


def test_codes_give_the_sequences_of_texts():
    """Codes have the order of the ids, which is not that of their first rows."""
    rng = np.random.default_rng(0)
    users, items = (pl.Series(rng.integers(0, 30, 400)).cast(pl.String) for _ in range(2))
    log = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": rng.integers(0, 50, 400), "weight": 1.0})
    of_texts, of_codes = in_sequence(log), in_sequence(with_codes(log))
    assert with_texts(of_codes).equals(of_texts)
    rows, coded = (leave_one_out(each, 5) for each in (of_texts, of_codes))
    assert coded.with_columns(
        pl.col("history").cast(pl.List(pl.String)), pl.col("target", "user_id").cast(pl.String)
    ).equals(rows)
    check_no_leak(coded, of_codes)
    swapped = coded.with_columns(target=pl.col("target").shift(-1).fill_null(pl.col("target").first()))
    with pytest.raises(ValueError, match="differ from the interactions"):
        check_no_leak(swapped, of_codes)
