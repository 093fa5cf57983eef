"""Recommender: item ids in and out, filters, shared SIDs, saving, and the same answers through plain transformers."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmrec.decoding.beam_search import tree_beam_search
from llmrec.decoding.decoder import SidDecoder
from llmrec.decoding.generate import sid_generation_config
from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.checkpoint import SidConfig
from llmrec.recommender import Recommender
from llmrec.sid.table import SidTable
from tests.conftest import CODES

HISTORIES = [["item-3"], ["item-8", "item-9", "item-10", "item-11"], ["item-1", "item-2"]]
ALL = {f"item-{row}" for row in range(12)}


@pytest.fixture(scope="module")
def recommender(tuned):
    return Recommender.from_pretrained(tuned, device="cpu")


def test_a_trained_model_recommends_the_next_item(recommender):
    """Users walk round the catalogue: after 9 comes 10. Items 4 and 5 share their SID, so 4 and 5 follow 3 together."""
    items, scores = recommender.recommend([["item-8", "item-9"], ["item-2", "item-3"]], k=3)
    assert items[0][0] == "item-10" and set(items[1][:2]) == {"item-4", "item-5"}
    assert scores[1][0] == scores[1][1]
    assert all(found == sorted(found, reverse=True) for found in scores)


def test_more_than_the_catalogue_gives_every_item_once(recommender):
    items, scores = recommender.recommend(HISTORIES, k=100, exclude=None)
    for found, score in zip(items, scores, strict=True):
        assert len(found) == len(score) == 12 and set(found) == ALL
    # Scores are log-probabilities over each level's codes; those of the 11 SIDs are at most 1 together.
    sids = [
        dict(zip(map(tuple, CODES[[int(i[5:]) for i in f]]), s, strict=True))
        for f, s in zip(items, scores, strict=True)
    ]
    assert all(len(sid) == 11 and 0 < np.exp(list(sid.values())).sum() <= 1 + 1e-5 for sid in sids)


def test_excluded_items_are_not_answered(recommender):
    for found, history in zip(recommender.recommend(HISTORIES, k=12)[0], HISTORIES, strict=True):
        assert set(found) == ALL - set(history)
    lists = [["item-4"], None, ["item-0", "item-11"]]
    found = recommender.recommend(HISTORIES, k=12, exclude=lists)[0]
    assert [set(items) for items in found] == [ALL - {"item-4"}, ALL, ALL - {"item-0", "item-11"}]


def test_excluded_items_take_no_beam(recommender):
    """They are masked during the search: three beams still find three SIDs after the best three are excluded."""
    best = recommender.recommend(HISTORIES, k=3, exclude=None)[0]
    found = recommender.recommend(HISTORIES, k=3, exclude=best, num_beams=3)[0]
    assert all(len(items) == 3 and not set(items) & set(barred) for items, barred in zip(found, best, strict=True))


def test_the_beam_is_wider_than_k(recommender):
    """Law 10: min(items, max(50, 5k)) beams, so even for one item all are ranked here."""
    assert recommender.ranker.rank([np.array([2, 3])], k=1).items.shape == (1, 12)


def test_a_shared_sid_is_barred_with_its_last_item(recommender):
    """Items 4 and 5 share a SID: excluding one leaves the other, allowing one leaves that one alone."""
    history = [["item-2", "item-3"]]
    assert recommender.recommend(history, k=1, exclude=[["item-4"]])[0] == [["item-5"]]
    found = recommender.recommend(history, k=12, exclude=[["item-4", "item-5"]])[0][0]
    assert set(found) == ALL - {"item-4", "item-5"}
    assert recommender.recommend(history, k=12, allow=["item-5", "item-7"], exclude=None)[0][0] == ["item-5", "item-7"]
    assert recommender.recommend(history, k=12, allow=["item-5"], exclude=[["item-5"]])[0] == [[]]
    ranking = recommender.ranker.rank([np.array([2, 3])], k=3)
    slots = [list(ranking.items[0]).index(item) for item in (4, 5)]
    assert ranking.groups[0, slots[0]] == ranking.groups[0, slots[1]]


def test_allow_lists_are_shared_or_per_user(recommender):
    shared = recommender.recommend(HISTORIES, k=5, allow=["item-0", "item-1", "item-7"])[0]
    assert [set(found) for found in shared] == [
        {"item-0", "item-1", "item-7"},
        {"item-0", "item-1", "item-7"},
        {"item-0", "item-7"},
    ]
    own = recommender.recommend(HISTORIES, k=12, allow=[["item-0"], None, []])[0]
    assert own[0] == ["item-0"] and set(own[1]) == ALL - set(HISTORIES[1]) and own[2] == []
    with pytest.raises(ValueError, match="allow is empty, so that no item can be recommended"):
        recommender.recommend(HISTORIES, allow=[])


def test_an_empty_allow_list_of_one_user_changes_no_other_answer(recommender):
    items, scores = recommender.recommend(HISTORIES, k=4, exclude=[["item-1"], list(ALL), None])
    others, their_scores = recommender.recommend(HISTORIES, k=4, exclude=[["item-1"], None, None])
    assert items == [others[0], [], others[2]] and scores[1] == []
    assert scores[0] == pytest.approx(their_scores[0]) and scores[2] == pytest.approx(their_scores[2])


def test_filters_do_not_change_scores(recommender):
    items, scores = (found[0] for found in recommender.recommend(HISTORIES[:1], k=12, exclude=None))
    before = dict(zip(items, scores, strict=True))
    items, scores = (found[0] for found in recommender.recommend(HISTORIES[:1], k=12, allow=["item-6", "item-1"]))
    assert scores == pytest.approx([before[item] for item in items], rel=1e-5)


def test_an_answer_does_not_depend_on_its_batch(recommender):
    together = recommender.recommend(HISTORIES, k=6)
    alone = [recommender.recommend([history], k=6) for history in HISTORIES]
    assert together[0] == [items[0] for items, _ in alone]
    for found, (_, scores) in zip(together[1], alone, strict=True):
        assert found == pytest.approx(scores[0], rel=1e-4, abs=1e-5)
    assert recommender.recommend(HISTORIES, k=6, batch_size=2)[0] == together[0]
    assert recommender.recommend([]) == ([], [])


BATCHES = [
    ([np.array([3]), np.array([8, 9])], [np.array([0]), np.array([10])], [None, np.array([5, 10, 11])]),
    ([np.array([1, 2])],),
    ([np.array([4]), np.array([7]), np.array([0, 1])], None, [np.array([4, 5])] * 3),
]


def test_ranked_batches_are_those_ranked_alone(recommender):
    rankings = list(recommender.ranker.rank_batches(BATCHES, 3))
    for ranking, batch in zip(rankings, BATCHES, strict=True):
        alone = recommender.ranker.rank(batch[0], 3, *batch[1:])
        for name in ("items", "groups", "scores", "invalid"):
            assert np.array_equal(getattr(ranking, name), getattr(alone, name)), name
    assert list(recommender.ranker.rank_batches([], 3)) == []


def test_the_next_batch_runs_while_an_answer_is_read(recommender):
    asked = []

    def batches():
        for number, batch in enumerate(BATCHES):
            asked.append(number)
            yield batch

    rankings = recommender.ranker.rank_batches(batches(), 3)
    assert asked == [0]
    seen = []
    for _ in rankings:
        seen.append(list(asked))
    assert seen == [[0, 1], [0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize(("k", "num_beams", "message"), [(0, None, "k is 0"), (5, 2, "num_beams is 2, fewer than k")])
def test_wrong_k_and_num_beams_are_refused(recommender, k, num_beams, message):
    with pytest.raises(ValueError, match=message):
        recommender.ranker.rank([np.array([3])], k, num_beams=num_beams)


def test_more_beams_than_sids_are_as_many_as_sids(recommender):
    assert recommender.ranker.rank([np.array([3])], 12, num_beams=11).items.shape == (1, 12)  # 12 items, 11 SIDs
    assert recommender.ranker.rank([np.array([3])], 100, num_beams=500).items.shape == (1, 12)


def test_only_the_latest_items_are_read(recommender):
    cap = recommender.sid_config.max_history
    long = [f"item-{i % 12}" for i in range(cap + 5)]
    longer, capped = (recommender.recommend([h], k=5, exclude=None) for h in (long, long[-cap:]))
    assert longer == capped


def test_seen_items_before_the_latest_are_excluded_too(recommender):
    history = [f"item-{row}" for row in range(11)]
    assert len(history) > recommender.sid_config.max_history
    assert recommender.recommend([history], k=12)[0] == [["item-11"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"histories": [["item-1"], ["no", "nor"]]}, r"history 1 names .*\['no', 'nor'\].* 12 items, such as 'item-0'"),
        ({"histories": ["item-1"]}, "history 0 is 'item-1'; a list"),
        ({"histories": [None]}, "history 0 is None; a list"),
        ({"k": 0}, "k is 0; at least 1"),
        ({"k": 5, "num_beams": 3}, "num_beams is 3, fewer than k = 5; give 5 or more, or leave it out"),
        ({"k": 1, "num_beams": 0}, "num_beams is 0, fewer than k = 1; give 1 or more"),
        ({"exclude": [["item-1"]]}, "exclude needs one list of item_ids for each of the 3 histories"),
        ({"exclude": "all"}, "exclude is 'all'; one list of item_ids for all users, or one for each history"),
        ({"exclude": [[], [], ["x"]]}, "exclude 2 names items"),
        ({"allow": "item-1"}, "allow is 'item-1'; one list"),
        ({"allow": [["item-1"], None]}, "allow needs one list"),
        ({"allow": ["no"]}, "allow names items"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_recommend_are_refused(recommender, arguments, message):
    with pytest.raises(ValueError, match=message):
        recommender.recommend(**{"histories": HISTORIES, **arguments})


def test_a_saved_recommender_answers_the_same_after_loading(recommender, tmp_path):
    recommender.save_pretrained(tmp_path / "saved")
    again = Recommender.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.recommend(HISTORIES, k=7) == recommender.recommend(HISTORIES, k=7)
    assert again.details == recommender.details
    with pytest.raises(ValueError, match="Unknown precision 'float16'; choose auto, float32 or bfloat16"):
        Recommender.from_pretrained(tmp_path / "saved", device="cpu", precision="float16")
    half = Recommender.from_pretrained(tmp_path / "saved", device="cpu", precision="bfloat16")
    assert (
        half.model.dtype == torch.bfloat16
        and half.recommend(HISTORIES, k=1)[0] == recommender.recommend(HISTORIES, k=1)[0]
    )


def test_plain_transformers_greedy_is_the_tree_beam_of_one(tuned):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tuned), AutoTokenizer.from_pretrained(tuned)
    sid_config, table, _ = SidConfig.load(tuned)
    sids = "".join(sid_config.vocabulary.token(level, code) for row in (7, 8) for level, code in enumerate(CODES[row]))
    prompt = tokenizer(sid_config.prompt.instruction + sids, return_tensors="pt")
    trie, length = SidTrie(table), prompt.input_ids.shape[1]
    config = sid_generation_config(sid_config.vocabulary)
    processor = SidLogitsProcessor(trie, sid_config.vocabulary, length)
    tokens = model.generate(
        input_ids=prompt.input_ids, attention_mask=prompt.attention_mask,
        logits_processor=[processor], generation_config=config,
    ).sequences[0, length:]  # fmt: skip
    beams = tree_beam_search(model.eval(), prompt.input_ids, None, trie, sid_config.vocabulary, num_beams=1)
    assert [*sid_config.vocabulary.token_ids(beams.codes[0, 0].numpy()), tokenizer.eos_token_id] == tokens.tolist()
    assert table.rows(beams.codes[0, 0].tolist()).tolist() == [9]


def test_a_checkpoint_with_another_table_is_refused(tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "copy")
    (tmp_path / "copy" / "manifest.json").unlink()
    SidTable([f"item-{row}" for row in range(12)], CODES[::-1], level_sizes=[4, 4, 4]).save(tmp_path / "copy")
    with pytest.raises(ValueError, match="is not the table this checkpoint was trained on"):
        Recommender.from_pretrained(tmp_path / "copy", device="cpu")


def test_a_changed_weight_is_refused(tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors was changed since `llmrec sft` wrote it; run"):
        Recommender.from_pretrained(tmp_path / "copy", device="cpu")


def test_a_model_without_the_rows_is_refused(recommender):
    from tests.conftest import tiny_llm

    with pytest.raises(ValueError, match=r"The model has 30 token rows but the SID tokens end at 42"):
        Recommender(tiny_llm(30), recommender.tokenizer, recommender.table, recommender.sid_config)


def test_several_sids_of_an_item_count_at_the_best_one(recommender):
    """An alias in a free place of the trie: the item is answered once, with the better of its two scores."""
    codes, rows = np.vstack([CODES, [[3, 0, 0]]]), np.append(np.arange(12), 9)
    table = SidTable(recommender.table.item_ids, codes, item_rows=rows, level_sizes=[4, 4, 4])
    aliased = Recommender(recommender.model, recommender.tokenizer, table, recommender.sid_config)
    items, scores = aliased.recommend(HISTORIES, k=12, exclude=None)
    assert all(len(found) == 12 and set(found) == ALL for found in items)
    plain = recommender.recommend(HISTORIES, k=12, exclude=None)
    for found, score, *before in zip(items, scores, *plain, strict=True):
        assert dict(zip(found, score, strict=True))["item-9"] >= dict(zip(*before, strict=True))["item-9"] - 1e-5


def test_beams_whose_codes_are_no_item_are_counted_as_invalid(tuned, monkeypatch):
    recommender = Recommender.from_pretrained(tuned, device="cpu")
    history = [np.array([0, 1])]
    assert recommender.ranker.rank(history, 3).invalid.tolist() == [0]
    search = SidDecoder.search

    def corrupted(*arguments):
        beams, states = search(*arguments)
        beams.codes[0, :2, 0] = (beams.codes[0, :2, 0] + 1) % 2  # of the first two beams
        return beams, states

    monkeypatch.setattr(SidDecoder, "search", corrupted)
    assert recommender.ranker.rank(history, 3).invalid.tolist() == [2]
