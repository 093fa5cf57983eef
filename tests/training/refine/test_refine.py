"""Parts of refine: free semantic IDs, prompts of items, gains by hand, and the assignment against all possible ones."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmrec.data.catalog import Catalog
from llmrec.model.checkpoint import SidConfig, load_model, load_tokenizer
from llmrec.model.history.choice import make_history_encoder
from llmrec.sid.table import SidTable
from llmrec.training.refine.assign import assign, move_items
from llmrec.training.refine.evidence import CONTEXTS, Evidence
from llmrec.training.refine.free_sids import free_sids
from llmrec.training.refine.proposals import PROPOSALS, Proposals, Proposer

INF = np.inf


def test_free_sids_differ_in_the_last_code_alone():
    table = SidTable(["a", "b", "c"], [[0, 0], [0, 2], [1, 1]], level_sizes=[3, 3])
    assert free_sids(table).tolist() == [[0, 1], [1, 0], [1, 2]]
    assert free_sids(SidTable(["a", "b"], [[0], [2]], level_sizes=[4])).tolist() == [[1], [3]]
    assert free_sids(SidTable(["a", "b"], [[0], [1]])).shape == (0, 1)


@st.composite
def tables(draw):
    """Tables of up to 3 levels of 3 codes, whose semantic IDs may be shared and of different lengths."""
    sids = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=8))
    codes = [sid + [-1] * (3 - len(sid)) for sid in sids]
    return SidTable([str(row) for row in range(len(codes))], codes, level_sizes=[3, 3, 3])


@given(tables())
def test_a_table_with_all_free_sids_is_prefix_free_and_they_are_of_nobody(table):
    free = free_sids(table)
    ids = [str(row) for row in range(table.num_items + len(free))]
    every = SidTable(ids, np.concatenate([table.codes(range(table.num_items)), free]), level_sizes=table.level_sizes)
    assert every.level_sizes == table.level_sizes, "no terminal code was needed"
    owners = [every.rows(codes[codes >= 0]) for codes in every.all_codes]
    assert all(owned.tolist() == [row] for row, owned in enumerate(owners) if row >= table.num_items)


def proposals_of(sids, gains) -> Proposals:
    return Proposals(np.array(sids), np.array(gains, float))


def test_two_items_that_want_one_sid_share_the_gains_best():
    """Item 0 gains 3 by SID 7 or 2 by SID 8; item 1 gains 2 by SID 7 alone: together 4 by 8 and 7, not 3."""
    wanted = proposals_of([[7, 8], [7, -1], [9, -1]], [[3, 2], [2, -INF], [0.05, -INF]])
    chosen, gain = assign(wanted, max_churn=1, min_gain=0.1)
    assert chosen.tolist() == [8, 7, -1] and gain.tolist() == [2, 2, 0]
    chosen, gain = assign(wanted, max_churn=1, min_gain=0)
    assert chosen.tolist() == [8, 7, 9] and gain.tolist() == [2, 2, 0.05]


def test_the_largest_gains_are_taken_up_to_the_churn_and_none_below_the_least_gain():
    wanted = proposals_of([[0], [1], [2], [3], [-1]], [[1], [4], [2], [3], [-INF]])
    assert assign(wanted, max_churn=0.4, min_gain=0.1)[0].tolist() == [-1, 1, -1, 3, -1]
    assert assign(wanted, max_churn=0.39, min_gain=0.1)[0].tolist() == [-1, 1, -1, -1, -1]
    for nothing in ({"max_churn": 0, "min_gain": 0}, {"max_churn": 1, "min_gain": 5}):
        chosen, gain = assign(wanted, **nothing)
        assert (chosen == -1).all() and (gain == 0).all()
    losses = proposals_of([[0]], [[-1]])
    assert assign(losses, max_churn=1, min_gain=0)[0].tolist() == [-1]


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_the_assignment_is_the_best_of_all_and_never_loses(seed, max_churn):
    rng = np.random.default_rng(seed)
    sids = np.array([rng.permutation(5)[:3] for _ in range(4)])
    sids[rng.random(sids.shape) < 0.3] = -1
    gains = np.where(sids < 0, -INF, rng.normal(size=sids.shape).round(2))
    chosen, gain = assign(Proposals(sids, gains), 1.0, 0.1)
    gain_of = [{-1: 0.0, **dict(zip(row, of, strict=True))} for row, of in zip(sids.tolist(), gains, strict=True)]
    for row in gain_of:
        row.update({-1: 0.0})
    every = itertools.product(*([sid for sid, won in row.items() if sid < 0 or won >= 0.1] for row in gain_of))
    allowed = [each for each in every if len({sid for sid in each if sid >= 0}) == sum(sid >= 0 for sid in each)]
    best = max(sum(row[sid] for row, sid in zip(gain_of, each, strict=True)) for each in allowed)
    assert gain.sum() == pytest.approx(best) and (gain[chosen >= 0] >= 0.1).all()
    few, won = assign(Proposals(sids, gains), max_churn, 0.1)
    assert (few >= 0).sum() <= max_churn * 4 and won.sum() <= best + 1e-9
    assert len(set(few[few >= 0])) == (few >= 0).sum(), "no SID is taken twice"


@pytest.fixture(scope="module")
def loaded(toy, tuned):
    """Catalogue, SidConfig, table, tokenizer and model of the tuned checkpoint."""
    sid_config, table, _ = SidConfig.load(tuned)
    return Catalog.load(toy[0]), sid_config, table, load_tokenizer(tuned), load_model(tuned).eval()


def evidence_of(loaded, table=None, with_texts: bool = True, catalog=None, seed: int = 0) -> Evidence:
    own, sid_config, its_table, tokenizer, _ = loaded
    encoder = make_history_encoder(table or its_table, sid_config.vocabulary)
    prefix = sid_config.prompt.prefix(tokenizer)
    return Evidence.of(
        catalog or own, encoder, prefix, sid_config.max_history, tokenizer if with_texts else None, False, seed
    )


def test_prompts_are_titles_and_histories_of_the_training_data(loaded):
    catalog, sid_config, _, tokenizer, _ = loaded
    evidence, train = evidence_of(loaded), catalog.train.sequences()
    prompts = evidence.prompts([0, 5])
    assert evidence.most_prompts == CONTEXTS + 3 and np.bincount(prompts.owner).max() <= CONTEXTS + 3
    for place, row in enumerate((0, 5)):
        own = np.flatnonzero(prompts.owner == place)
        weight = prompts.weight[own]
        assert weight.sum() == pytest.approx(1) and weight[:3].sum() == pytest.approx(2 / 3)
        shown = [tokenizer.decode(prompts.tokens[each]) for each in own]
        assert all(catalog.titles[row] in text for text in shown[:3])
        before = [sequence[:at].tolist() for sequence in train for at in np.flatnonzero(sequence == row) if at]
        expected = {tuple(evidence._read(history[-sid_config.max_history :])) for history in before}
        assert {tuple(prompts.tokens[each]) for each in own[3:]} <= expected
    assert (
        len(evidence_of(loaded, with_texts=False).prompts([5]).tokens)
        == len(prompts.tokens) - np.sum(prompts.owner == 0) - 3
    )


def test_validation_and_test_interactions_are_not_read(loaded):
    catalog = loaded[0]
    split = catalog._split.to_table().to_pandas()
    is_held_out = split["split"] != "train"
    split.loc[is_held_out, "target"] = split.loc[is_held_out, "target"].to_numpy()[::-1].copy()
    other = Catalog(catalog.items, pa.Table.from_pandas(split, preserve_index=False))
    one, two = (evidence_of(loaded, catalog=each).prompts(range(12)) for each in (catalog, other))
    assert [tokens.tolist() for tokens in one.tokens] == [tokens.tolist() for tokens in two.tokens]


def test_an_item_without_title_and_past_has_no_prompt_and_keeps_its_sid(loaded):
    _, sid_config, table, _, model = loaded
    evidence = evidence_of(loaded, with_texts=False)
    evidence.places[3] = np.empty(0, np.int64)
    proposals = Proposer(model, table, free_sids(table), sid_config.vocabulary).propose(evidence, 64)
    assert (proposals.sids[3] == -1).all() and np.isneginf(proposals.gains[3]).all()
    assert assign(proposals, 1, 0)[0][3] == -1
    evidence.places[:] = [np.empty(0, np.int64)] * 12
    assert not len(evidence.prompts(range(12)).tokens)
    nothing = Proposer(model, table, free_sids(table), sid_config.vocabulary).propose(evidence, 64)
    assert (assign(nothing, 1, 0)[0] == -1).all()


@torch.no_grad()
def log_prob(model, vocabulary, prompt: np.ndarray, codes: np.ndarray) -> float:
    """Log-probability of codes after a prompt, each over its level, by one plain forward pass per code."""
    total, tokens = 0.0, prompt.tolist()
    for level, code in enumerate(codes[codes >= 0].tolist()):
        logits = model(torch.tensor([tokens])).logits[0, -1, vocabulary.block(level)]
        total += float(logits.log_softmax(0)[code])
        tokens.append(vocabulary.starts[level] + code)
    return total


def test_a_gain_is_the_difference_of_mean_log_probabilities(loaded):
    _, sid_config, table, _, model = loaded
    free, evidence = free_sids(table), evidence_of(loaded)
    proposals = Proposer(model, table, free, sid_config.vocabulary).propose(evidence, 64)
    prompts = evidence.prompts([7])
    for sid, gain in list(zip(proposals.sids[7], proposals.gains[7], strict=True))[::5]:
        means = [
            sum(
                weight * log_prob(model, sid_config.vocabulary, tokens, codes)
                for tokens, weight in zip(prompts.tokens, prompts.weight, strict=True)
            )
            for codes in (free[sid], table.codes([7])[0])
        ]
        assert gain == pytest.approx(means[0] - means[1], abs=1e-4)


def test_the_size_of_batches_changes_nothing(loaded):
    _, sid_config, table, _, model = loaded
    proposer = Proposer(model, table, free_sids(table), sid_config.vocabulary)
    one, two = (proposer.propose(evidence_of(loaded), size) for size in (1, 1000))
    assert one.sids.shape == (12, PROPOSALS)
    np.testing.assert_allclose(np.sort(one.gains), np.sort(two.gains), atol=1e-4)


def test_an_item_that_lost_the_sid_that_the_model_knows_gets_it_back(loaded):
    """The model was trained on [2, 0, 0] of item 7; the table has another, free one in its place."""
    _, sid_config, table, _, model = loaded
    codes = table.codes(range(12)).copy()
    known = codes[7].tolist()
    codes[7] = [2, 0, 1]
    lost = SidTable(table.item_ids, codes, level_sizes=table.level_sizes)
    free = free_sids(lost)
    assert known in free.tolist()
    proposals = Proposer(model, lost, free, sid_config.vocabulary).propose(
        evidence_of(loaded, lost, with_texts=False), 64
    )
    chosen, gain = assign(proposals, max_churn=1 / 12, min_gain=0.1)
    refined = move_items(lost, free, chosen)
    assert np.flatnonzero(chosen >= 0).tolist() == [7] and gain[7] > 1
    assert refined.codes([7]).tolist() == [known] and refined.sha256 == table.sha256
