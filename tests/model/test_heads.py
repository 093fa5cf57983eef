"""Heads that answer in one pass: scores and losses against their definitions, and by other routes."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, relu, silu

from llmrec.decoding.ranker import SidRanker
from llmrec.model.backbone import run_backbone
from llmrec.model.checkpoint import SidConfig
from llmrec.model.heads.choice import make_head
from llmrec.model.heads.codes import CodeHeads, ResidualHeads
from llmrec.model.heads.own_files import HEAD
from llmrec.model.heads.weights import add_head
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.model.new_rows import add_rows
from llmrec.model.prompts import Prompt
from llmrec.sid.answer_head import AnswerHead
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.distil.batch import BatchQueries
from llmrec.training.sft.item_loss import ItemLoss
from llmrec.training.sft.losses import sid_loss_in_forward
from llmrec.training.weights import add_adapter
from tests.conftest import tiny_llm, word_tokenizer
from tests.support.extended import sft_config
from tests.training.distil.test_distillation import collator_of, examples_of

LEVELS, CODES, ITEMS = 4, 5, 40
UNKNOWN = 12  # an item without a vector for `projection`
KINDS = ("codes", "vectors", "projection")
CPU = torch.device("cpu")


def scene(kind: str, architecture: str = "qwen3", tied: bool = True, temperature: float = 0.1) -> SimpleNamespace:
    """A model with a head, whose residual blocks are not at their start, and 40 items of which two share all codes."""
    rng = np.random.default_rng(0)
    codes = rng.integers(CODES, size=(ITEMS, LEVELS))
    codes[7] = codes[31]
    table = SidTable([f"i{row}" for row in range(ITEMS)], codes, level_sizes=[CODES] * LEVELS)
    tokenizer = word_tokenizer()
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes, spare_codes=1)
    vocabulary = dataclasses.replace(vocabulary, head=AnswerHead(kind, temperature))
    model = tiny_llm(len(word_tokenizer()), architecture, tied)
    add_rows(model, vocabulary, seed=0)
    vectors = torch.randn(ITEMS, 6, generator=torch.Generator().manual_seed(2))
    vectors[UNKNOWN] = 0
    add_head(model, vocabulary, vectors)
    for parameter in getattr(model, HEAD, torch.nn.Module()).parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    encoder = SidHistoryEncoder(table, vocabulary)
    head = make_head(model, encoder, vocabulary, CPU)
    return SimpleNamespace(
        table=table, codes=codes, vectors=vectors, tokenizer=tokenizer, vocabulary=vocabulary, model=model,
        encoder=encoder, head=head,
        states=torch.randn(3, 32, generator=torch.Generator().manual_seed(1)),
    )  # fmt: skip


def scores_by_hand(one, state: torch.Tensor) -> list[float]:
    """Score of each item by the definition, one item, level and code after another."""
    rows, heads, head = one.model.get_input_embeddings().weight, getattr(one.model, HEAD, None), one.vocabulary.head
    if head.kind == "vectors":
        means = [rows[[one.vocabulary.starts[level] + c for level, c in enumerate(sid)]].mean(0) for sid in one.codes]
        return torch.stack([cosine_similarity(state, mean, dim=0) / head.temperature for mean in means]).log_softmax(0)
    if head.kind == "projection":
        asked = heads.outer.weight @ relu(heads.inner.weight @ state + heads.inner.bias) + heads.outer.bias
        cosines = [cosine_similarity(asked, vector, dim=0) for vector in one.vectors]
        cosines[UNKNOWN] = torch.tensor(-1.0)
        return (torch.stack(cosines) / head.temperature).log_softmax(0)
    log_probs = []
    for level, start in enumerate(one.vocabulary.starts):
        own = state + silu(heads.weight[level] @ state + heads.bias[level, 0])
        cosines = [cosine_similarity(own, rows[start + code], dim=0) for code in range(CODES)]
        log_probs.append((torch.stack(cosines) / head.temperature).log_softmax(0))
    return torch.stack([sum(log_probs[level][c] for level, c in enumerate(sid)) / LEVELS for sid in one.codes])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_forty_items_by_hand(kind):
    one = scene(kind)
    by_hand = torch.stack([scores_by_hand(one, state) for state in one.states])
    torch.testing.assert_close(one.head.log_probs(one.model, one.states), by_hand, atol=1e-5, rtol=1e-5)
    assert by_hand.std(dim=1).min() > 0.1, "scores that tell items apart"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["codes", "vectors"])
def test_the_order_of_levels_means_nothing(kind):
    """Codes, token rows and residual blocks in another order of levels give the same scores."""
    one, order = scene(kind), [2, 0, 3, 1]
    before, rows = one.head.log_probs(one.model, one.states), one.model.get_input_embeddings().weight
    blocks = [rows[one.vocabulary.block(level)].clone() for level in order]
    for level, block in enumerate(blocks):
        rows[one.vocabulary.block(level)] = block
    for parameter in getattr(one.model, HEAD, torch.nn.Module()).parameters():
        parameter.copy_(parameter[order])
    table = SidTable(one.table.item_ids, one.codes[:, order], level_sizes=[CODES] * LEVELS)
    head = make_head(one.model, SidHistoryEncoder(table, one.vocabulary), one.vocabulary, CPU)
    torch.testing.assert_close(head.log_probs(one.model, one.states), before, atol=1e-6, rtol=1e-6)


def test_residual_blocks_start_as_the_identity():
    heads, states = ResidualHeads(16, 24), torch.randn(5, 24)
    assert torch.equal(heads(states), states.expand(16, -1, -1))


@torch.no_grad()
def test_equal_logits_cost_the_logarithm_of_the_codes():
    vocabulary = SidVocabulary((256, 256), (10, 266), (256, 256), 3, head=AnswerHead("codes", 0.03))
    model = tiny_llm(522)
    model.get_input_embeddings().weight[10:] = torch.randn(32)
    add_head(model, vocabulary)
    head = CodeHeads(torch.randint(256, (2, 7)), vocabulary, 0.03)
    loss = head.loss(model, torch.randn(5, 32), torch.tensor([0, 3, 6, 1, 1]))
    assert float(loss) / 5 == pytest.approx(math.log(256), abs=1e-5) == pytest.approx(5.5452, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_negative_score_of_the_targets(kind):
    one, targets = scene(kind), torch.tensor([5, 31, 0])
    scores = one.head.log_probs(one.model, one.states)
    own = scores[torch.arange(3), targets]
    assert float(one.head.loss(one.model, one.states, targets)) == pytest.approx(-float(own.sum()), abs=1e-4)
    unasked = torch.tensor([5, -100, 0])
    assert float(one.head.loss(one.model, one.states, unasked)) == pytest.approx(-float(own[[0, 2]].sum()), abs=1e-4)
    shares = torch.rand(3, ITEMS).softmax(dim=1)
    expected = -float((shares * scores).sum())
    assert float(one.head.loss(one.model, one.states, shares)) == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_smoothing_spreads_over_the_codes_of_each_level():
    one, targets = scene("codes"), torch.tensor([5, 31, 0])
    logits = one.head.logits(one.model, one.states)
    spread = -sum(float(level.log_softmax(1).mean(1).sum()) for level in logits) / LEVELS
    plain = float(one.head.loss(one.model, one.states, targets))
    smooth = float(one.head.loss(one.model, one.states, targets, label_smoothing=0.2))
    assert smooth == pytest.approx(0.8 * plain + 0.2 * spread, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_item_is_read_as_the_mean_of_its_codes(architecture, tied):
    one = scene("codes", architecture, tied)
    start = one.encoder.token_range.start
    assert one.encoder.encode_history([3, 31]).tolist() == [start + 3, start + 31]
    embedding = one.model.get_input_embeddings()
    vectors = embedding(torch.tensor([[1, start + 3, start + 31, 5]]))[0]
    words, scale = torch.tensor([1, 5]), float(getattr(embedding, "embed_scale", 1.0))
    torch.testing.assert_close(vectors[[0, 3]], embedding.weight[words] * scale)
    for place, row in ((1, 3), (2, 31)):
        tokens = one.vocabulary.token_ids(one.codes[row])
        torch.testing.assert_close(vectors[place], embedding.weight[tokens].mean(0) * scale)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3_text"])
def test_under_lora_items_are_read_and_scored_by_the_rows_that_train(architecture):
    one = scene("codes", architecture, tied=False)
    adapted = add_adapter(one.model, sft_config("", "", ""), one.vocabulary)
    head = make_head(adapted, one.encoder, one.vocabulary, CPU)
    ids = torch.tensor([[1, one.encoder.token_range.start + 3, one.encoder.token_range.start + 9]])
    states = run_backbone(one.model, input_ids=ids).last_hidden_state[0]
    head.loss(one.model, states, torch.tensor([2, 3, 4])).backward()
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    kinds = {next(kind for kind in ("lora", "trainable_tokens", HEAD) if kind in name) for name in trained}
    assert kinds == {"lora", "trainable_tokens", HEAD}
    rows = next(p for name, p in trained.items() if "trainable_tokens" in name)
    assert rows.shape == (one.vocabulary.num_tokens, 32) and rows.grad.abs().sum() > 0
    assert sum("trainable_tokens" in name for name in trained) == 1, "the output matrix, which nothing reads"
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in trained.items() if HEAD in name)


@torch.no_grad()
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_equals_a_row_for_each_target(kind, packing):
    """Law 9."""
    one = scene(kind)
    item_loss = ItemLoss.of(sft_config("", "", ""), one.vocabulary, one.head)
    totals = []
    for targets in ("every_item", "last_item"):
        collator = collator_of(one.table, one.vocabulary, packing=packing)
        with sid_loss_in_forward(one.model, one.vocabulary, "level", item_loss=item_loss):
            batch = collator(examples_of(targets=targets))
            totals.append(float(one.model(**batch, num_items_in_batch=1).loss))
    assert totals[0] == pytest.approx(totals[1], rel=1e-5) and totals[0] > 1


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_is_mixed_with_the_next_item_by_the_definition(kind):
    """(1 - w) of the next item, smoothed over items, and w of the teacher's distribution, each times the scores."""
    one, weight = scene(kind), 0.4
    config = sft_config("", "", "", label_smoothing=0.1, teacher_weight=weight)
    item_loss = ItemLoss.of(config, one.vocabulary, one.head)
    answers, taught = torch.tensor([5, 31, 0]), torch.rand(3, ITEMS).softmax(dim=1)
    nothing = torch.zeros(0, LEVELS, dtype=torch.long)
    queries = BatchQueries(*([answers] * 5), answers=answers, query_of=answers, drawn_places=nothing, alias=0 * answers,
                           places=torch.arange(1, 4))  # fmt: skip
    loss = item_loss.sum(one.model, one.states, item_loss.targets(queries, taught))
    scores = one.head.log_probs(one.model, one.states)
    own = 0.9 * scores[torch.arange(3), answers] + 0.1 * scores.mean(dim=1)
    expected = -((1 - weight) * own + weight * (taught * scores).sum(dim=1)).sum()
    labels_per_item = LEVELS if kind == "projection" else 1  # the trainer divides by the number of labels
    assert float(loss) == pytest.approx(labels_per_item * float(expected), abs=1e-4)


def ranker_of(one) -> SidRanker:
    sid_config = SidConfig(one.vocabulary, Prompt("red apple"), 5, "level")
    return SidRanker(one.model, one.table, sid_config, Prompt("red apple").prefix(one.tokenizer))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["codes", "vectors"])
def test_the_ranking_is_exact_and_colliding_items_share_credit(kind):
    one, histories = scene(kind), [np.array([3, 31, 5]), np.array([9])]
    ranking = ranker_of(one).rank(histories, k=ITEMS)
    for row, history in enumerate(histories):
        ids = [*Prompt("red apple").prefix(one.tokenizer), *one.encoder.encode_history(history)]
        state = run_backbone(one.model, input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        expected = scores_by_hand(one, state)
        assert sorted(ranking.items[row].tolist()) == list(range(ITEMS))
        np.testing.assert_allclose(ranking.scores[row], expected[ranking.items[row]], atol=1e-4)
        places = [ranking.items[row].tolist().index(item) for item in (7, 31)]
        assert abs(places[0] - places[1]) == 1
        assert ranking.groups[row][places[0]] == ranking.groups[row][places[1]]
        assert ranking.scores[row][places[0]] == ranking.scores[row][places[1]]
        assert len(set(ranking.groups[row].tolist())) == ITEMS - 1


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_filters_bar_items_and_not_those_that_share_their_codes(kind):
    one, history = scene(kind), [np.array([3])] * 3
    exclude = [np.array([31]), np.array([7, 31, 2]), np.array([], int)]
    ranking = ranker_of(one).rank(history, k=ITEMS, exclude=exclude, allow=[None, None, np.array([7, 9, 12])])
    found = [set(items[items >= 0].tolist()) for items in ranking.items]
    assert found == [set(range(ITEMS)) - {31}, set(range(ITEMS)) - {2, 7, 31}, {7, 9, 12}]


@pytest.mark.parametrize("values", [{"kind": "beams", "temperature": 0.1}, {"kind": "codes", "temperature": 0.0},
                                    {"kind": "projection", "temperature": math.nan}])  # fmt: skip
def test_a_wrong_head_is_refused(values):
    with pytest.raises(ValueError, match="head"):
        AnswerHead(**values)


def test_an_absent_head_changes_nothing_in_llmrec_json():
    vocabulary = SidVocabulary((4, 4), (100, 104), (4, 4), 2)
    assert "head" not in vocabulary.to_dict()
    with_head = dataclasses.replace(vocabulary, head=AnswerHead("codes", 0.03))
    assert SidVocabulary.from_dict(with_head.to_dict()) == with_head
