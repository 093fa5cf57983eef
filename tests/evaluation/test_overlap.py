"""Items and examples by which a checkpoint is tested on another catalogue, without what it may have learned."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from llmrec.configs import PrepareConfig
from llmrec.data.catalog import Catalog
from llmrec.data.part import part_of
from llmrec.evaluation.overlap import Overlap, may_be_learned
from llmrec.sid.catalogs.catalog_record import CatalogRecord
from llmrec.sid.catalogs.given_catalog import match_catalog
from llmrec.sid.table import SidTable
from llmrec.stages import prepare
from tests.stages.test_prepare_append import START, write_log

ITEMS = ["a", "b", "c", "d", "e"]


def catalog_of(sequences: dict[str, str], items: list[str] = ITEMS, source: str = "later") -> Catalog:
    """Leave-one-out split of sequences whose letters are items; users with fewer than three items only train."""
    rows = []
    for user, letters in sequences.items():
        ids, held_out = list(letters), 2 if len(letters) > 2 else 0
        for name, end in (("train", len(ids) - 1 - held_out), ("valid", len(ids) - 2), ("test", len(ids) - 1)):
            if held_out or name == "train":
                rows.append({"user_id": user, "split": name, "history": ids[:end], "target": ids[end]})
    titles = [f"thing {item_id}" for item_id in items]
    return Catalog(pa.table({"item_id": items, "title": titles}), pa.Table.from_pylist(rows), source)


@pytest.mark.parametrize(
    ("before", "now", "is_learned"),
    [
        ("abcd", "abcde", False),  # the target is new
        ("abcd", "abcd", False),  # it was the target of the test then
        ("abcde", "abcd", True),  # it was that of the valid split, by which the weights are chosen
        ("abcdeb", "abcd", True),  # it was trained on
        ("ab", "abc", False),  # of two, both were trained on
        ("ab", "cab", True),  # items came later, with earlier times
        ("aaab", "aaaba", False),  # two were trained on, one validated: all three stand before the target
        ("aaabc", "aaca", True),  # three were trained on, and two stand before it
    ],
)
def test_a_target_is_left_out_unless_earlier_interactions_explain_what_was_trained(before, now, is_learned):
    own, later = catalog_of({"u": before, "v": "edc"}), catalog_of({"u": now})
    assert may_be_learned(later, own, "test").tolist() == [is_learned]
    of_another_user = catalog_of({"v": before, "w": "edc"})
    assert may_be_learned(later, of_another_user, "test").tolist() == [False]


def test_valid_targets_of_the_training_may_be_valid_targets_again():
    own, later = catalog_of({"u": "abcde"}), catalog_of({"u": "abcde", "v": "cba"})
    assert not may_be_learned(later, own, "valid").any()
    assert may_be_learned(catalog_of({"u": "abed"}), own, "test").all()


def overlap_of(own: Catalog, later: Catalog, split: str = "test") -> Overlap:
    table = SidTable(own.item_ids, [[i] for i in range(own.num_items)])
    given = match_catalog(later, table, CatalogRecord.of(own), {"catalog_sha256": "of own"})
    return Overlap.find(later, given, table, own, split)


def test_items_and_examples_of_both_by_hand():
    own = catalog_of({"u": "abcd", "v": "dcba", "w": "bdac"})
    later = catalog_of(
        {"u": "abcdz", "v": "dcbaea", "w": "bda", "x": "zbd", "y": "ybz", "n": "yzyc", "o": "abc"},
        ["y", "d", "a", "b", "z", "c", "e"],
    )
    found = overlap_of(own, later)
    # u and y: the target is unknown; w: "a" was validated on; n: nothing before the target is known.
    assert found.facts["examples"] == {
        "tested": 3, "unknown_target": 2, "no_known_history": 1, "target_may_be_learned": 1,
    }  # fmt: skip
    assert found.facts["items"] == {"shown": 5, "gone": 0, "new": 2, "retitled": 0}
    assert found.catalog.item_ids == ["d", "a", "b", "c", "e"] and found.rows.tolist() == [3, 0, 1, 2, 4]
    assert found.facts["shortened"] == found.facts["users_in_training"] == 1
    assert found.examples.user_ids == ["v", "x", "o"] and found.places.tolist() == [1, 3, 6]
    assert [found.catalog.item_ids[row] for row in found.examples.targets] == ["a", "d", "c"]


def test_histories_and_sequences_lose_unknown_items_alone():
    """Two routes: the items of both taken from the letters."""
    letters = {"u": "azbzc", "v": "zzzzz", "w": "zzbcz", "x": "czzba"}
    shared = part_of(catalog_of(letters, [*ITEMS, "z"]), np.array([True] * 5 + [False]))
    cut = [[ITEMS.index(item) for item in word[:3] if item != "z"] for word in letters.values()]
    assert [sequence.tolist() for sequence in shared.train.sequences()] == [ids for ids in cut if ids]
    test = shared.examples("test")
    known = {user: word for user, word in letters.items() if word[-1] != "z"}
    assert test.user_ids == list(known)
    for place, word in enumerate(known.values()):
        assert [ITEMS[row] for row in test.sequence(place)] == [item for item in word if item != "z"]


def test_what_no_example_can_test_is_refused_with_the_reason():
    own = catalog_of({"u": "abcde", "v": "bcdea"})
    with pytest.raises(ValueError, match=r"no example of 'later' can test.* 2 have a target that it may have learned"):
        overlap_of(own, catalog_of({"u": "abc", "v": "bcd"}))
    with pytest.raises(ValueError, match="1 have a target that the model does not know, 1 have no item"):
        overlap_of(own, catalog_of({"x": "aby", "y": "yyb"}, [*ITEMS, "y"]))
    with pytest.raises(ValueError, match=r"no example of 'later' can test.* 2 have a target that the model does not"):
        overlap_of(own, catalog_of({"x": "abcy", "y": "bcdy"}, [*ITEMS, "y"]))


def test_users_under_other_ids_are_pointed_at():
    own = catalog_of({"u": "abcde"})
    notes = " ".join(overlap_of(own, catalog_of({"u7": "abcde"})).facts["notes"])
    assert "None of the 1 user_ids is one that the model was trained on" in notes
    assert "None of" not in " ".join(overlap_of(own, catalog_of({"u": "abcde"})).facts["notes"])


@pytest.mark.parametrize("split", ["leave_one_out", "temporal"])
@pytest.mark.parametrize(("num_own", "num_later"), [(1000, 1200), (1200, 1200), (1200, 800)])
def test_no_interaction_of_the_training_is_tested(num_own, num_later, split, tmp_path):
    """Against the truth: each interaction of a random log is known by its time. Users repeat items often."""
    rng = np.random.default_rng(num_own)
    log = [(f"u{rng.integers(40)}", f"i{min(int(rng.pareto(1.0) * 3), 19)}", START + at) for at in range(1200)]
    for name, rows, how in (("own", log[:num_own], split), ("later", log[:num_later], "leave_one_out")):
        file = write_log(tmp_path / f"{name}.csv", rows)
        prepare.main(PrepareConfig(out=str(tmp_path / name), interactions=file, k_core=0, split=how, max_history=7))
    own, later = (Catalog.load(tmp_path / name) for name in ("own", "later"))
    tested, read, last = own.examples("test").user_ids, set(), {}
    for user in {user for user, _, _ in log}:
        rows = [row for row in log[:num_own] if row[0] == user]
        read |= set(rows[: len(rows) - tested.count(user)])  # in training or, by law, for validation
        last[user] = [row for row in log[:num_later] if row[0] == user][-1]
    is_read = [last[user] in read for user in later.examples("test").user_ids]
    assert may_be_learned(later, own, "test").tolist() == is_read
    assert any(is_read) == ((split == "temporal" and num_own == 1200) or num_later < num_own)
