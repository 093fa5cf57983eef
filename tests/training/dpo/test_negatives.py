"""Mined negatives: never the target nor anything the user has taken, whatever the table; shares, order, determinism."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.configs import DpoConfig
from llmrec.configs.dpo import NEGATIVE_SOURCES
from llmrec.decoding.ranker import SidRanker
from llmrec.evaluation.ranking import Ranking
from llmrec.model.checkpoint import SidConfig
from llmrec.model.prompts import Prompt
from llmrec.sid.table import SidTable
from llmrec.training.dpo import negatives
from llmrec.training.dpo.negatives import Pool, mine
from llmrec.training.preference.policy import Prompts, training_prompts


def dpo_config(**options) -> DpoConfig:
    return DpoConfig(**{"out": "", "catalog": "", "model": "", "negatives": 4, "micro_batch_size": 2, **options})


def prompts_of(sequences: list[list[int]]) -> Prompts:
    """Each sequence asked for its last item but one, so that an item comes after the target."""
    rows = [np.array(sequence) for sequence in sequences]
    histories, targets = [row[:-2] for row in rows], np.array([row[-2] for row in rows])
    return Prompts([str(i) for i in range(len(rows))], histories, targets, rows)


class Backwards:
    """A ranker that lists what is not excluded from the last item to the first."""

    def __init__(self, num_items: int):
        self.num_items = num_items

    def rank_batches(self, batches, k):
        for histories, excluded in batches:
            items = np.full((len(histories), self.num_items), -1)
            for row, barred in enumerate(excluded):
                left = np.setdiff1d(np.arange(self.num_items), barred)[::-1]
                items[row, : len(left)] = left
            slots = np.broadcast_to(np.arange(self.num_items), items.shape)
            yield Ranking(items, slots, np.zeros(items.shape))


@st.composite
def cases(draw):
    """A table of up to 20 items, in which SIDs may be shared and of several lengths, users and options."""
    num_items = draw(st.integers(3, 20))
    codes = np.array(draw(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=num_items, max_size=num_items)))
    codes[:, 2] -= draw(st.integers(0, 1))
    table = SidTable([f"item-{row}" for row in range(num_items)], codes)
    item = st.integers(0, num_items - 1)
    sequences = draw(st.lists(st.lists(item, min_size=3, max_size=8), min_size=1, max_size=6))
    sources = draw(st.permutations(NEGATIVE_SOURCES))[: draw(st.integers(1, 4))]
    return table, sequences, sources, draw(st.integers(1, 6)), draw(st.integers(0, 9))


@settings(max_examples=150, deadline=None)
@given(cases())
def test_no_negative_has_the_sid_of_the_target_or_of_anything_taken(case):
    table, sequences, sources, count, seed = case
    prompts, config = prompts_of(sequences), dpo_config(negative_sources=list(sources), negatives=count, seed=seed)
    counts = np.bincount(np.concatenate(sequences), minlength=table.num_items)
    found = mine(prompts, table, counts, config, Backwards(table.num_items))
    sids = [tuple(codes) for codes in table.codes(np.arange(table.num_items))]
    kept = iter(zip(found.prompts.user_ids, found.negatives, found.sources, found.ranks, strict=True))
    for user, sequence in enumerate(sequences):
        free = set(sids) - {sids[row] for row in sequence}
        if not free:
            continue
        user_id, rows, names, ranks = next(kept)
        drawn = [sids[row] for row in rows]
        assert user_id == str(user) and set(drawn) <= free and len(set(drawn)) == len(drawn)
        assert len(drawn) == min(count, len(free)) == len(names) == len(ranks)
        assert set(names) <= {*sources, "random"} and all(
            (r >= 0) == (n == "beam") for r, n in zip(ranks, names, strict=True)
        )
    assert next(kept, None) is None


def test_each_source_by_hand(sid_table):
    """Items 0 1 2 3 begin with code 0, 4 5 6 with 1 (4 and 5 share a SID), 7 8 with 2, 9 10 11 with 3."""
    pool, rng = Pool(sid_table, np.array([0, 9, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0])), np.random.default_rng(0)
    assert sorted(pool.sharing_sids(np.array([5, 0]))) == [0, 4, 5]
    taken = set(pool.sids.of[[0]].tolist())

    def weighted(source: str, count: int) -> list[int]:
        own = set(taken)
        return pool.take(pool.weighted(source, count, own, rng), count, own)

    assert pool.take(pool.siblings(0, rng), 1, set(taken)) == [1], "0 and 1 share two codes, 2 and 3 one"
    assert sorted(pool.take(pool.siblings(0, rng), 9, set(taken))) == [1, 2, 3]
    assert sorted(weighted("popular", 9)) == [1, 7], "nothing that no one took"
    assert len(weighted("random", 99)) == 10, "4 and 5 count once"
    # Three of four: a sibling exhausted is made up for at random.
    prompts = prompts_of([[7, 0, 1]])
    config = dpo_config(negative_sources=["sibling"], negatives=5)
    found = mine(prompts, sid_table, np.ones(12), config, None)
    assert found.sources == [["sibling", "sibling", "random", "random", "random"]]
    assert set(found.negatives[0][:2]) == {2, 3}


def first_of(pool, source, barred, rng) -> int:
    return pool.take(pool.weighted(source, 1, barred, rng), 1, barred)[0]


def test_popular_and_random_are_drawn_by_their_weights(sid_table):
    """Item 1 is taken three times as often as item 7; both alike at random. 2000 draws, four standard errors."""
    pool, draws = Pool(sid_table, np.bincount([1, 1, 1, 7], minlength=12)), 2000
    for source, share in (("popular", 0.75), ("random", 0.5)):
        barred = set(pool.sids.of.tolist()) - set(pool.sids.of[[1, 7]].tolist())
        found = Counter(first_of(pool, source, set(barred), np.random.default_rng([3, i])) for i in range(draws))
        assert found[1] + found[7] == draws
        assert abs(found[1] / draws - share) < 4 * (share * (1 - share) / draws) ** 0.5


@pytest.mark.parametrize("sources", [["beam", "random"], ["beam", "sibling", "popular", "random"]])
def test_sources_have_equal_shares(sources):
    """Of 3 negatives each source gives a prompt one of the two nearest whole numbers, and its share on average."""
    config = dpo_config(negative_sources=sources, negatives=3)
    counts = np.array([negatives.shares(config, prompt) for prompt in range(2000)])
    assert (counts.sum(axis=1) == 3).all()
    assert (np.abs(counts - 3 / len(sources)) < 1).all()
    np.testing.assert_allclose(counts.mean(axis=0), 3 / len(sources), atol=0.05)


def test_beams_are_the_models_best_unseen_items_in_their_order(llm, sid_table, vocabulary):
    """Two routes: the ranker asked for everything, and what is barred crossed out afterwards."""
    ranker = SidRanker(llm, sid_table, SidConfig(vocabulary, Prompt(), 5, "vocabulary"), [4, 5])
    prompts = prompts_of([[0, 3, 7, 2], [9, 1, 4], [2, 2, 11]])
    found = mine(prompts, sid_table, np.ones(12), dpo_config(negative_sources=["beam"], negatives=3), ranker)
    for place, rows in enumerate(found.negatives):
        every = ranker.rank([prompts.histories[place]], 12).items[0]
        taken = [*prompts.sequences[place].tolist(), *({4, 5} if 4 in prompts.sequences[place] else ())]
        left = [row for row in every if row not in taken and row != 5]
        assert rows.tolist() == left[:3]
        assert found.ranks[place].tolist() == sorted(found.ranks[place].tolist()) and found.ranks[place][0] == 0


def test_a_user_who_has_taken_everything_is_left_out(llm, sid_table, vocabulary):
    """Also where the decoder is asked for beams, of which none is legal."""
    ranker = SidRanker(llm, sid_table, SidConfig(vocabulary, Prompt(), 5, "vocabulary"), [4, 5])
    prompts = prompts_of([[*range(12)], [0, 1, 2], [*range(11)]])
    found = mine(prompts, sid_table, np.ones(12), dpo_config(), ranker)
    assert found.prompts.user_ids == ["1", "2"] and found.negatives[1].tolist() == [11]


@torch.no_grad()
def test_mining_depends_on_the_seed_and_on_no_batch(monkeypatch, llm, sid_table, vocabulary, catalog):
    ranker = SidRanker(llm, sid_table, SidConfig(vocabulary, Prompt(), 5, "vocabulary"), [4, 5])

    def mined(**options):
        config = dpo_config(negative_sources=list(NEGATIVE_SOURCES), **options)
        prompts = training_prompts(catalog, config)
        found = mine(prompts, sid_table, catalog.training_counts, config, ranker)
        return [rows.tolist() for rows in found.negatives], found.sources

    assert mined() == mined(micro_batch_size=5)
    assert mined()[0] != mined(seed=1)[0]
    # Two processes, each with its share, give together what one gives.
    alone, parts = mined(), []
    monkeypatch.setattr(negatives.processes, "count", lambda: 2)
    monkeypatch.setattr(negatives.processes, "gather", lambda own: parts.append(own) or own)
    for rank in (0, 1):
        monkeypatch.setattr(negatives.processes, "rank", lambda rank=rank: rank)
        mined()
    both = sorted((each for part in parts for each in part), key=lambda each: each.prompt)
    assert [each.items for each in both] == alone[0] and len(parts[0]) and len(parts[1])


def test_law_1_prompts_hold_training_items_alone(catalog):
    """Users of the fixture have five items, the last two held out: sequences of three."""
    last = training_prompts(catalog, dpo_config())
    every = training_prompts(catalog, dpo_config(targets="every_item"))
    assert len(last) == 6 and len(every) == 12
    for prompts in (last, every):
        for user, history, target, sequence in zip(
            prompts.user_ids, prompts.histories, prompts.targets, prompts.sequences, strict=True
        ):
            trained = catalog.train.sequence(catalog.train.user_ids.index(user)).tolist()
            assert sequence.tolist() == trained and [*history, target] == trained[: len(history) + 1]
