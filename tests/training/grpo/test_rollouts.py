"""Roll-outs: what each way draws, whose SIDs they are, injected targets, and the policy's probabilities."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch

from llmrec.decoding.beam_search import tree_beam_search
from llmrec.decoding.ranker import SidRanker
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.checkpoint import SidConfig, load_model, load_tokenizer
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.sid.table import SidTable
from llmrec.training.grpo.advantages import group_advantages
from llmrec.training.grpo.groups import GroupSampler
from llmrec.training.grpo.rewards import build_rewards
from llmrec.training.grpo.rollouts import roll_out, target_log_probs
from llmrec.training.preference.shared_prompt import sibling_scores_in_forward
from tests.conftest import CODES

WAYS = pytest.mark.parametrize("way", ["sampled", "distinct", "beams"])
SEQUENCES = [np.array(rows) for rows in ([1, 2, 3], [0, 7], [4, 5, 6, 9], [11, 0, 7])]


@pytest.fixture
def ranker(tuned):
    sid_config, table, _ = SidConfig.load(tuned)
    model = load_model(tuned).eval()
    with sibling_scores_in_forward(model, sid_config.vocabulary, SidTrie(table), "children"):
        yield SidRanker(model, table, sid_config, sid_config.prompt.prefix(load_tokenizer(tuned)), capture=False)


def sampler(ranker, way, num_generations=5, inject_target=False):
    config = types.SimpleNamespace(
        rollouts=way, num_generations=num_generations, inject_target=inject_target, loss="grpo"
    )
    return GroupSampler(ranker, SEQUENCES, build_rewards(["rule", "rank"], [1.0, 1.0], None), config)


def draw(found: GroupSampler, examples=(0, 1, 2, 3), seed=0):
    return found.draw(examples, torch.Generator().manual_seed(seed))


def sids(group) -> list[tuple[int, ...]]:
    return [tuple(sid) for sid in group.completions.tolist()]


@WAYS
def test_every_roll_out_is_an_item_after_the_prompt_of_its_example(ranker, way):
    found = sampler(ranker, way)
    groups = draw(found)
    tokens = SidHistoryEncoder(ranker.table, ranker.sid_config.vocabulary).tokens_NL
    legal = {tuple(sid) for sid in tokens.tolist()}
    for group, sequence in zip(groups, SEQUENCES, strict=True):
        assert len(group.completions) == 5 and set(sids(group)) <= legal
        prompt = found.batch([group])["input_ids"][0].tolist()
        assert prompt == [*ranker.prefix_ids.tolist(), *tokens[sequence[:-1]].flatten().tolist()]
        assert group.num_distinct == len(set(sids(group)))
        hits = [sid == tuple(tokens[sequence[-1]]) for sid in sids(group)]
        assert group.rewards["rule"].tolist() == hits and group.is_hit == any(hits)
        assert group.is_idle == (len(set(hits)) == 1)


def test_long_histories_are_cut_as_the_checkpoint_says(ranker):
    found = sampler(ranker, "beams")
    found.sequences = [np.arange(12)]
    ids = found.batch(draw(found, [0]))["input_ids"]
    assert ids.shape[1] == len(ranker.prefix_ids) + 3 * min(11, ranker.sid_config.max_history)


@pytest.mark.parametrize("way", ["distinct", "beams"])
def test_roll_outs_without_replacement_differ(ranker, way):
    assert all(group.num_distinct == 5 for group in draw(sampler(ranker, way)))


def test_beams_are_the_best_of_the_policy(ranker):
    ids, mask = ranker.encode([sequence[:-1] for sequence in SEQUENCES])
    vocabulary = ranker.sid_config.vocabulary
    beams = tree_beam_search(ranker.model, ids, mask, ranker.trie, vocabulary, 5, "children", None, ranker.prefix_ids)
    expected = vocabulary.token_ids(beams.codes.numpy()).tolist()
    assert [group.completions.tolist() for group in draw(sampler(ranker, "beams"))] == expected


@pytest.mark.parametrize("way", ["sampled", "distinct"])
def test_the_seed_decides_the_draws(ranker, way):
    found = sampler(ranker, way)
    assert [sids(g) for g in draw(found, seed=1)] == [sids(g) for g in draw(found, seed=1)]
    assert [sids(g) for g in draw(found, seed=1)] != [sids(g) for g in draw(found, seed=2)]


def test_as_many_as_the_catalogue_has_weigh_their_probabilities(ranker):
    """The 12 items have 11 SIDs; all of them drawn, nothing is left to chance."""
    for group in draw(sampler(ranker, "distinct", num_generations=11)):
        assert group.num_distinct == 11
        assert group.weights.sum() / 11 == pytest.approx(1, abs=1e-5)
        reward = group.rewards["rule"] + group.rewards["rank"]
        assert group.expected_reward == pytest.approx((group.weights / 11) @ reward)


@WAYS
def test_advantages_and_weights(ranker, way):
    for group in draw(sampler(ranker, way)):
        rewards = torch.from_numpy(group.rewards["rule"] + group.rewards["rank"])[None]
        if way == "distinct":
            assert len(set(group.weights.round(6))) > 1
        else:
            np.testing.assert_allclose(group.advantages, group_advantages(rewards)[0].numpy(), atol=1e-9)
            assert (group.weights == 1).all()


@WAYS
def test_an_injected_target_is_in_every_group_once(ranker, way):
    """Also where two prompts have one target: examples 1 and 3."""
    found = sampler(ranker, way, num_generations=3, inject_target=True)
    before = draw(sampler(ranker, way, num_generations=3))
    groups = draw(found)
    for group, old in zip(groups, before, strict=True):
        assert group.rewards["rule"].sum() >= 1
        if way != "sampled":
            assert group.num_distinct == 3 and group.rewards["rule"].sum() == 1
        if way != "distinct":  # the last gives way, and only where the target was not drawn
            assert sids(group)[:2] == sids(old)[:2]
            assert (sids(group) == sids(old)) == old.is_hit
    assert [group.is_hit for group in groups] == [group.is_hit for group in before]
    assert not all(group.is_hit for group in groups)


def test_the_target_that_is_always_taken_weighs_its_probability(ranker):
    """By the decoder's own score of it, among all 11."""
    every = sampler(ranker, "distinct", num_generations=11)
    for group, all_of_them in zip(draw(sampler(ranker, "distinct", 3, True)), draw(every), strict=True):
        place = sids(all_of_them).index(sids(group)[-1])
        assert group.weights[-1] / 3 == pytest.approx(all_of_them.weights[place] / 11, rel=1e-4)


@WAYS
def test_a_sid_that_items_share_is_a_hit_of_each(ranker, way):
    """Items 4 and 5 share one."""
    found = sampler(ranker, way, num_generations=11)
    found.sequences = [np.array([3, 4]), np.array([3, 5])]
    for group in draw(found, [0, 1]):
        tokens = tuple(ranker.encoder.tokens_NL[4])
        assert group.rewards["rule"].tolist() == [sid == tokens for sid in sids(group)]


def test_any_sid_of_a_target_is_a_hit():
    """Item 0 has the SIDs (0, 1) and (1, 0); the first in the order of the trie stands for it."""
    table = SidTable(["a", "b"], np.array([[1, 0], [0, 1], [1, 1]]), item_rows=np.array([0, 0, 1]))
    trie = SidTrie(table)
    found = GroupSampler.__new__(GroupSampler)
    found.trie = trie
    drawn = types.SimpleNamespace(leaves=torch.tensor([[0, 1, 2]]), log_probs=torch.zeros(1, 3))
    groups = found.describe([np.array([1])], np.array([0]), drawn)
    assert groups.hits.tolist() == [[True, True, False]] and groups.items.tolist() == [[0, 0, 1]]
    assert groups.target_codes.tolist() == [[0, 1]] and groups.codes.tolist() == [[[0, 1], [1, 0], [1, 1]]]


def test_probabilities_of_all_items_sum_to_one(ranker):
    """Law of the constrained policy, by the forward that training runs; entropies are those of its first code."""
    sid_tokens = torch.from_numpy(np.unique(ranker.encoder.tokens_NL, axis=0))
    ids = torch.tensor([[*ranker.prefix_ids.tolist(), *ranker.encoder.encode_history([1, 2]).tolist()]])
    with torch.no_grad():
        found = ranker.model(input_ids=ids, completions=sid_tokens.unsqueeze(0))
    assert found.log_probs.sum(dim=2).exp().sum().item() == pytest.approx(1, abs=1e-5)
    first = {int(sid[0]): float(p) for sid, p in zip(sid_tokens, found.log_probs[0, :, 0].exp(), strict=True)}
    entropy = -sum(p * np.log(p) for p in first.values())
    assert found.entropies[0, :, 0].tolist() == pytest.approx([entropy] * len(sid_tokens), abs=1e-5)


def test_training_scores_what_was_drawn_as_it_was_drawn(ranker):
    """Two routes: the decoder's scores, level by level, and one pass over all completions."""
    histories = [sequence[:-1] for sequence in SEQUENCES]
    with torch.no_grad():
        drawn = roll_out(ranker, histories, None, 5, "distinct", torch.Generator().manual_seed(0))
        again = target_log_probs(ranker, histories, drawn.leaves)
    torch.testing.assert_close(drawn.log_probs, again, rtol=1e-4, atol=1e-4)


def test_the_fixture_has_what_these_tests_need():
    assert len(np.unique(CODES, axis=0)) == 11
