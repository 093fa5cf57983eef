"""Explanations, against the answers of the Recommender: paths, what stands beside them, and what leaving out does."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from llmrec.model.checkpoint import SidConfig
from llmrec.model.new_rows import add_rows
from llmrec.model.prompts import Prompt
from llmrec.recommender import Recommender
from llmrec.sid.aliases import aliases_of
from llmrec.sid.catalogs.catalog_record import CatalogRecord
from llmrec.sid.codes import EMPTY
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from tests.conftest import tiny_llm, word_tokenizer
from tests.model.test_heads import KINDS, scene
from tests.support.decoding import NORMALIZE_OVER, tables
from tests.support.pieces import piece_table
from tests.support.titles import byte_level_bpe

pytestmark = pytest.mark.usefixtures("one_thread")
MAX_HISTORY = 3
HISTORY = ["item-3", "item-8", "item-3", "item-6", "item-2"]


def recommender_of(table, normalize_over="level", rank="sid", has_rows=False, counts=None, **options):
    """A random model, whose instruction is one token."""
    tokenizer = word_tokenizer()
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes, num_items=table.num_items if has_rows else 0)
    sid_config = SidConfig(vocabulary, Prompt("red"), MAX_HISTORY, normalize_over, 0.3, **options)
    record = None if counts is None else CatalogRecord(np.ones(table.num_items, np.uint64), np.array(counts))
    return Recommender(tiny_llm(len(tokenizer)), tokenizer, table, sid_config, rank=rank, record=record)


def assert_explained(recommender, history, item_id, allow=None):
    """The score is the Recommender's, and changes are differences of two of its scores."""

    def score(history) -> float:
        number = len(recommender.table.all_codes)
        found = recommender.recommend([history], k=number, num_beams=number, exclude=None, allow=allow)
        return dict(zip(found.item_ids[0], found.scores[0], strict=True))[item_id]

    why, rank = recommender.explain(history, item_id, exclude=None, allow=allow), recommender.ranker.rank_by
    assert (why.item_id, why.rank) == (item_id, rank)
    assert why.scores[rank] == pytest.approx(score(history), abs=2e-5)
    shown = history[-recommender.sid_config.max_history :]
    assert [influence.item_id for influence in why.history] == list(dict.fromkeys(shown))
    for influence in why.history:
        without = [other for other in history if other != influence.item_id]
        if not without:
            assert influence.changes is None
        else:
            assert influence.changes[rank] == pytest.approx(score(history) - score(without), abs=4e-5)
    return why


@settings(max_examples=30, phases=[Phase.explicit, Phase.generate])  # to shrink takes minutes
@given(tables(), st.sampled_from(NORMALIZE_OVER), st.sampled_from([0.0, 0.7]), st.data())
def test_the_numbers_are_those_of_the_recommender(table, normalize_over, length_penalty, data):
    """Also where items share SIDs or have several, SIDs differ in length, items repeat or stand before max_history."""
    recommender = recommender_of(table, normalize_over, length_penalty=length_penalty)
    some = st.sampled_from(table.item_ids)
    allow = data.draw(st.none() | st.lists(some, min_size=1, max_size=4, unique=True))
    item_id = data.draw(some if allow is None else st.sampled_from(allow))
    history = data.draw(st.lists(some, min_size=1, max_size=6))
    if len(aliases_of(table)) > 1 and normalize_over == "children":
        allow = None  # aliases are scored without filters
    why = assert_explained(recommender, history, item_id, allow)
    if len(aliases_of(table)) > 1:
        assert why.path == []
        return
    path, probabilities = [fork.chosen.code for fork in why.path], [fork.chosen.probability for fork in why.path]
    length = len(path)
    own = table.all_codes[table.item_rows == table.row_of[item_id]].tolist()
    assert path + [EMPTY] * (table.num_levels - length) in own
    assert math.prod(probabilities) == pytest.approx(math.exp(why.scores["sid"] * length**length_penalty), rel=1e-4)
    assert [fork.mass for fork in why.path] == pytest.approx(np.cumprod(probabilities).tolist())


@pytest.mark.parametrize("rank", ["sid", "items", "mixture"])
def test_a_model_with_item_rows_explains_all_three_scores(sid_table, rank):
    recommender = recommender_of(sid_table, rank=rank, has_rows=True)
    why = assert_explained(recommender, HISTORY, "item-9")
    assert set(why.scores) == {"sid", "items", "mixture"}
    mixed = 0.7 * math.exp(why.scores["sid"]) + 0.3 * math.exp(why.scores["items"])
    assert math.exp(why.scores["mixture"]) == pytest.approx(mixed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_has_a_score_and_no_path(kind):
    one = scene(kind)
    recommender = Recommender(
        one.model, one.tokenizer, one.table, SidConfig(one.vocabulary, Prompt("red"), MAX_HISTORY, "level")
    )
    assert assert_explained(recommender, ["i3", "i7", "i3", "i9"], "i20").path == []


def test_merged_rankings_cannot_be_explained():
    table, tokenizer = piece_table(), word_tokenizer()
    model = tiny_llm(len(tokenizer))
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes, segmentations=5)
    add_rows(model, vocabulary, 0, None, table.pieces)
    recommender = Recommender(model, tokenizer, table, SidConfig(vocabulary, Prompt("red"), 3, "level"))
    with pytest.raises(ValueError, match="ranks that several ways of writing a history give"):
        recommender.explain(["item-1"], "item-2")


def test_what_stands_beside_a_path(sid_table):
    """By hand: SIDs are (0,0,0) (0,0,1) (0,1,0) (0,3,2) (1,0,0) twice, (1,2,3) (2,0,0) (2,0,3) (3,1,1) (3,1,2) (3,3,3).

    Item 2 is seen, so that below code 0 are items 0, 1 and 3, and after it codes 0 and 3 alone.
    """
    recommender = recommender_of(sid_table, counts=[1, 5, 9, 2, 0, 7, 0, 0, 3, 0, 0, 0])
    first, second, third = recommender.explain(["item-2"], "item-1", num_branches=2).path
    assert (first.chosen.code, first.chosen.token, first.chosen.num_items) == (0, "<a_0>", 3)
    assert first.chosen.examples == ["item-1", "item-3", "item-0"]
    others = {branch.code: (branch.num_items, branch.examples) for branch in first.others}
    by_hand = {1: (3, ["item-5", "item-4", "item-6"]), 2: (2, ["item-8", "item-7"]),
               3: (3, ["item-9", "item-10", "item-11"])}  # fmt: skip
    assert len(others) == 2 and others.items() <= by_hand.items()
    assert first.others[0].probability >= first.others[1].probability >= first.more_probability > 0
    assert first.num_more == 1
    listed = [first.chosen, *first.others]
    assert sum(branch.probability for branch in listed) + first.more_probability == pytest.approx(1)
    assert (second.chosen.code, second.chosen.num_items) == (0, 2)
    assert [(branch.token, branch.num_items) for branch in second.others] == [("<b_3>", 1)]
    assert second.num_more == 0 and second.more_probability == 0
    assert (third.chosen.code, [branch.code for branch in third.others]) == (1, [0])


def test_items_that_share_a_semantic_id_are_below_the_same_code(sid_table):
    path = recommender_of(sid_table).explain(["item-2"], "item-5").path
    assert path[-1].chosen.num_items == 2 and path[-1].chosen.examples == ["item-4", "item-5"]


def test_shared_levels(sid_table):
    recommender = recommender_of(sid_table)
    why = recommender.explain(["item-0", "item-2", "item-4"], "item-1", exclude=None)
    assert [influence.shared_levels for influence in why.history] == [2, 1, 0]
    why = recommender.explain(["item-4", "item-6"], "item-5")
    assert [influence.shared_levels for influence in why.history] == [3, 1]


def test_seen_items_are_barred_as_recommend_bars_them(sid_table):
    """Normalised over children, the scores of other items depend on what is barred."""
    recommender = recommender_of(sid_table, "children")
    item_ids, scores = recommender.recommend([HISTORY], k=12, exclude="seen")
    for item_id, score in zip(item_ids[0], scores[0], strict=True):
        assert recommender.explain(HISTORY, item_id).scores["sid"] == pytest.approx(score, abs=2e-5)
    barred = recommender.recommend([HISTORY], k=12, exclude=["item-1"])
    assert recommender.explain(HISTORY, "item-0", exclude=["item-1"]).scores["sid"] == pytest.approx(
        dict(zip(*(lists[0] for lists in barred), strict=True))["item-0"], abs=2e-5
    )


def test_more_histories_than_go_through_the_model_together(sid_table, monkeypatch):
    recommender = recommender_of(sid_table)
    expected = recommender.explain(HISTORY, "item-9")
    monkeypatch.setattr("llmrec.decoding.paths.explanation.HISTORIES_AT_ONCE", 2)
    found = recommender.explain(HISTORY, "item-9")
    assert [one.item_id for one in found.history] == [one.item_id for one in expected.history]
    for one, other in zip(found.history, expected.history, strict=True):
        assert one.changes["sid"] == pytest.approx(other.changes["sid"], abs=1e-5)
    assert found.scores["sid"] == pytest.approx(expected.scores["sid"], abs=1e-5)


def test_titles_are_a_path_of_words():
    tokenizer = byte_level_bpe()
    titles = [tokenizer(f" {text};")["input_ids"] for text in ("red apple", "red plum", "green tea")]
    table = SidTable.of_tokens(["a", "p", "t"], titles, tokenizer)
    vocabulary = SidVocabulary.of_words(table.words, tokenizer.eos_token_id)
    config = SidConfig(vocabulary, Prompt("red"), 3, "vocabulary")
    why = Recommender(tiny_llm(len(tokenizer)), tokenizer, table, config).explain(["t"], "p")
    assert "".join(fork.chosen.token for fork in why.path).replace(" ", "") == "redplum;"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"history": [], "item_id": "item-1"}, "No known item is in the history, so popular items"),
        ({"history": ["item-1"], "item_id": "item-1"}, "'item-1' is excluded, as it is in the history"),
        ({"history": ["item-1"], "item_id": "item-2", "allow": ["item-3"]}, "'item-2' is excluded, or not allowed"),
        ({"history": ["item-1"], "item_id": "mauve"}, "item_id names items that this checkpoint does not know"),
        ({"history": ["item-1"], "item_id": "item-2", "num_branches": -1}, "num_branches is -1; at least 0"),
        ({"history": ["mauve"], "item_id": "item-2"}, "history 0 names items"),
        ({"history": ["item-1"], "item_id": 5}, "item_id holds 5"),
    ],
)
def test_what_cannot_be_explained_is_refused(sid_table, asked, message):
    with pytest.raises(ValueError, match=message):
        recommender_of(sid_table).explain(**asked)


def test_unknown_items_of_a_history_may_be_skipped(sid_table):
    recommender = recommender_of(sid_table)
    skipped = recommender.explain(["mauve", "item-2"], "item-1", unknown="skip")
    assert dataclasses.asdict(skipped) == dataclasses.asdict(recommender.explain(["item-2"], "item-1"))


def test_scores_that_are_not_finite_are_refused(sid_table):
    recommender = recommender_of(sid_table)
    recommender.model.model.norm.weight.data[0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        recommender.explain(["item-2"], "item-1")
