"""Catalogues that change: what is shown, unknown items, users without a history, and places for new items."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pyarrow as pa
import pytest

from llmrec.data.catalog import Catalog
from llmrec.recommender import Recommender
from llmrec.sid.catalogs.catalog_record import KEY, CatalogRecord
from tests.conftest import TITLES
from tests.support.prepared import write_catalog

IDS = [f"item-{row}" for row in range(12)]
HISTORIES = [["item-3"], ["item-8", "item-9", "item-10", "item-11"], ["item-1", "item-2"]]


@pytest.fixture(scope="module")
def recommender(tuned):
    return Recommender.from_pretrained(tuned, device="cpu")


@pytest.fixture(scope="module")
def later(toy, tuned, tmp_path_factory) -> Recommender:
    """A later catalogue: items 0 and 10 are gone, n-1 is new."""
    kept = [row for row in range(12) if row not in (0, 10)]
    ids, titles = [IDS[row] for row in kept] + ["n-1"], [TITLES[row] for row in kept] + ["mate"]
    split = pa.table({"user_id": ["u"], "split": ["test"], "history": [ids[:2]], "target": ["n-1"]})
    catalog = write_catalog(tmp_path_factory.mktemp("later") / "catalog", pa.table({"item_id": ids, "title": titles}),
                            split)  # fmt: skip
    return Recommender.from_pretrained(tuned, device="cpu", catalog=catalog.source)


def test_only_items_of_the_given_catalogue_are_recommended(later, recommender):
    found, scores = later.recommend(HISTORIES, k=12)
    everything, all_scores = recommender.recommend(HISTORIES, k=12)
    for answer, points, before, theirs in zip(found, scores, everything, all_scores, strict=True):
        kept = [pair for pair in zip(before, theirs, strict=True) if pair[0] not in ("item-0", "item-10")]
        assert answer == [item_id for item_id, _ in kept]
        assert points == pytest.approx([score for _, score in kept], rel=1e-4, abs=1e-5)
    assert later.given.counts == {"shown": 10, "gone": 2, "new": 1, "retitled": 0}


def test_the_given_catalogue_and_allow_lists_both_hold(later):
    assert [set(answer) for answer in later.recommend(HISTORIES, k=12, allow=["item-0", "item-4", "item-7"])[0]] == [
        {"item-4", "item-7"}
    ] * 3
    own = later.recommend(HISTORIES, k=12, allow=[["item-10"], None, ["item-5", "item-10"]])[0]
    assert own[0] == [] and len(own[1]) == 7 and own[2] == ["item-5"]
    assert later.recommend([["item-10", "item-0"]], k=1)[0][0]  # items that are gone may stand in a history


def test_its_own_catalogue_restricts_nothing(tuned, toy, recommender):
    own = Recommender.from_pretrained(tuned, device="cpu", catalog=Catalog.load(toy[0]))
    assert own.given.notes() == [] and own.recommend(HISTORIES, k=5) == recommender.recommend(HISTORIES, k=5)


def test_another_catalogue_is_refused_before_the_weights_are_read(tuned, monkeypatch):
    monkeypatch.setattr("llmrec.recommender.load_model", lambda *_, **__: pytest.fail("weights were read"))
    split = pa.table({"user_id": ["u"], "split": ["test"], "history": [IDS[:2]], "target": [IDS[2]]})
    stranger = Catalog(pa.table({"item_id": IDS, "title": [f"film {row}" for row in range(12)]}), split, "films")
    with pytest.raises(ValueError, match="catalogue 'films' is of other items"):
        Recommender.from_pretrained(tuned, device="cpu", catalog=stranger)


def test_unknown_items_are_refused_or_left_out(recommender):
    asked = [["item-3", "gone"], ["item-1"], ["gone", "lost"]]
    with pytest.raises(ValueError, match=r"history 0 names .* \['gone'\]; history 2 names .* \['gone', 'lost'\]"):
        recommender.recommend(asked)
    answers = recommender.recommend(asked, k=3, unknown="skip", exclude=["nowhere", "item-4"])
    assert answers.unknown == [["gone"], [], ["gone", "lost"]] and answers.unknown_filters == ["nowhere"]
    assert answers.is_fallback == [False, False, True]
    assert answers.item_ids[:2] == recommender.recommend([["item-3"], ["item-1"]], k=3, exclude=["item-4"])[0]
    assert pickle.loads(pickle.dumps(answers)).unknown == answers.unknown


def test_users_without_a_history_get_popular_items(recommender, toy):
    counts = Catalog.load(toy[0]).training_counts
    answers = recommender.recommend([[], ["item-3"], []], k=4, exclude=[None, None, [IDS[counts.argmax()]]])
    order = np.argsort(-counts, kind="stable")
    assert answers.item_ids[0] == [IDS[row] for row in order[:4]]
    assert answers.item_ids[2] == [IDS[row] for row in order[1:5]]
    assert answers.is_fallback == [True, False, True]
    assert answers.scores[0] == pytest.approx(np.log((counts[order[:4]] + 1) / (counts.sum() + 12)))
    assert answers.item_ids[1] == recommender.recommend([["item-3"]], k=4, exclude=None)[0][0]


def test_popular_items_obey_filters_and_the_catalogue(later, recommender):
    assert set(later.recommend([[]], k=12).item_ids[0]) == set(IDS) - {"item-0", "item-10"}
    assert set(recommender.recommend([[]], k=12, allow=["item-7", "item-2"]).item_ids[0]) == {"item-7", "item-2"}
    found = later.recommend([[], []], k=12, allow=["item-7", "item-0", "item-2"], exclude=[["item-2"], None]).item_ids
    assert found[0] == ["item-7"] and set(found[1]) == {"item-7", "item-2"}
    assert recommender.recommend([[]], k=3, allow=[[]]).item_ids == [[]]


def test_a_checkpoint_without_a_record_refuses_what_needs_it(recommender):
    plain = Recommender(recommender.model, recommender.tokenizer, recommender.table, recommender.sid_config)
    assert plain.recommend(HISTORIES, k=3) == recommender.recommend(HISTORIES, k=3)
    with pytest.raises(ValueError, match="History 1 is empty, but the checkpoint does not tell how often"):
        plain.recommend([["item-1"], []])
    with pytest.raises(ValueError, match="min_new is 2, but the checkpoint does not tell how often"):
        plain.recommend([["item-1"]], min_new=2)


def test_a_record_travels_with_the_checkpoint(recommender, tmp_path, tuned):
    recommender.save_pretrained(tmp_path / "saved")
    again = Recommender.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.recommend([[]], k=5) == recommender.recommend([[]], k=5)
    details = json.loads((tuned / "llmrec.json").read_text())["details"]
    assert again.details[KEY] == details[KEY]


@pytest.fixture(scope="module")
def with_new(recommender) -> Recommender:
    """The same model, of which items 2, 7 and 9 are said to be new."""
    counts = np.arange(12)[::-1] + 1
    counts[[2, 7, 9]] = 0
    record = CatalogRecord(recommender.record.title_hashes, counts)
    parts = (recommender.model, recommender.tokenizer, recommender.table, recommender.sid_config)
    return Recommender(*parts, record=record)


NEW = {"item-2", "item-7", "item-9"}


@pytest.mark.parametrize("min_new", [0, 1, 2, 3])
@pytest.mark.parametrize("k", [3, 5, 12])
def test_new_items_take_the_last_places_where_there_are_too_few(with_new, min_new, k):
    histories = [["item-3"], ["item-10", "item-11"], []]
    plain, plain_scores = with_new.recommend(histories, k=k, exclude=None)
    everything = zip(*with_new.recommend(histories, k=12, exclude=None), strict=True)
    full = [dict(zip(*pair, strict=True)) for pair in everything]
    found, scores = with_new.recommend(histories, k=k, exclude=None, min_new=min_new)
    for answer, points, before, score_of in zip(found, scores, plain, full, strict=True):
        assert len(set(answer)) == len(answer) == k and len(NEW & set(answer)) >= min_new
        assert points == pytest.approx([score_of[item_id] for item_id in answer], rel=1e-4, abs=1e-5)
        assert points == sorted(points, reverse=True)
        old = [item_id for item_id in before if item_id not in NEW]
        missing = max(0, min_new - len(NEW & set(before)))
        assert [item_id for item_id in answer if item_id not in NEW] == old[: len(old) - missing]
    if min_new == 0:
        assert (found, scores) == (plain, plain_scores)


def test_new_items_that_are_excluded_or_not_allowed_take_no_place(with_new):
    (answer,), _ = with_new.recommend([["item-3"]], k=4, min_new=3, exclude=[["item-2", "item-7"]])
    assert NEW & set(answer) == {"item-9"} and len(answer) == 4
    (answer,), _ = with_new.recommend([["item-3"]], k=2, min_new=2, allow=["item-4", "item-5", "item-7"])
    assert set(answer) == {"item-7", "item-4"} or set(answer) == {"item-7", "item-5"}
    with pytest.raises(ValueError, match="min_new is 4, more than k = 3; give 3 or less"):
        with_new.recommend([["item-3"]], k=3, min_new=4)
