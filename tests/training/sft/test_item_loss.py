"""The loss of item rows: against a slow computation, with and without a teacher, packed, padded and captured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.baselines.queries import Queries
from llmrec.model.backbone import causal_lm, run_backbone
from llmrec.model.heads.item_rows import ItemRows
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.distil.batch import BatchQueries
from llmrec.training.sft.captured_step import CapturedLoss
from llmrec.training.sft.examples import build_dataset
from llmrec.training.sft.item_decay import ItemDecay
from llmrec.training.sft.item_loss import ItemLoss
from llmrec.training.sft.losses import IGNORED, sid_loss_in_forward
from llmrec.training.trainer import SID_ROWS, build_optimizer
from llmrec.training.weights import add_adapter
from tests.conftest import tiny_llm, word_tokenizer
from tests.support.extended import extended, fine_tune, losses, sft_config
from tests.training.distil.test_distillation import (
    PAD,
    PREFIX,
    SEQUENCES,
    SMOOTHING,
    collator_of,
    distillation_of,
    examples_of,
    ragged,
)
from tests.training.sft.test_captured_step import Eager

WEIGHT = 0.7


@pytest.fixture(params=["equal", "cut short"])
def table(request, sid_table):
    return sid_table if request.param == "equal" else ragged()


@pytest.fixture
def with_items(tokenizer, sid_table) -> SidVocabulary:
    return SidVocabulary.add_to(tokenizer, sid_table.level_sizes, num_items=12)


def loss_of(vocabulary, **options) -> ItemLoss:
    config = sft_config("", "", "", item_weight=WEIGHT, label_smoothing=SMOOTHING, teacher_weight=0.4, **options)
    return ItemLoss.of(config, vocabulary)


@torch.no_grad()
def slow_loss(model, table, vocabulary, distillation, examples) -> float:
    """Sum over the targets of the item's cross-entropy, one prompt after another, by the definition."""
    encoder, items, total = SidHistoryEncoder(table, vocabulary), vocabulary.items, 0.0
    rows_ND = model.get_input_embeddings().weight[items.start : items.start + items.num_items]
    for example in examples:
        rows = example["rows"]
        for place in range(example["num_context"], len(rows)):
            ids = [*PREFIX, *encoder.encode_history(np.array(rows[:place], int))]
            state = run_backbone(model, input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
            log_probs = (rows_ND @ state).log_softmax(0)
            own = -(1 - SMOOTHING) * log_probs[rows[place]] - SMOOTHING * log_probs.mean()
            if distillation is not None:
                one = torch.tensor([0])
                queries = Queries(torch.tensor([rows]), one, torch.tensor([place]), one, one)
                taught = distillation.teacher.probabilities(queries, True, distillation.temperature)[0]
                own = 0.6 * own - 0.4 * (taught * log_probs)[taught > 0].sum()
            total += float(own)
    return total


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("has_teacher", [True, False])
@pytest.mark.parametrize("drawn_answers", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_loss_equals_the_definition(tokenizer, table, with_items, packing, has_teacher, drawn_answers, tied):
    """It is added to the loss of SIDs, times the levels of a SID and the weight, under the same divisor."""
    if drawn_answers and not has_teacher:
        pytest.skip("nobody draws")
    model = tiny_llm(len(tokenizer), tied=tied)
    distillation = distillation_of(table, with_items) if has_teacher else None
    teach = distillation and distillation.teach
    batch = collator_of(table, with_items, packing, drawn_answers)(examples_of())
    values = []
    for item_loss in (None, loss_of(with_items)):
        torch.manual_seed(0)  # of the draws
        with (
            torch.no_grad(),
            sid_loss_in_forward(model, with_items, "level", SMOOTHING, teach=teach, item_loss=item_loss),
        ):
            values.append(float(model(**batch, num_items_in_batch=10).loss))
    expected = WEIGHT * 3 * slow_loss(model, table, with_items, distillation, examples_of()) / 10
    assert values[1] - values[0] == pytest.approx(expected, rel=1e-4)


def test_places_are_those_before_the_first_code_and_drawn_answers_have_none(table, with_items):
    batch = collator_of(table, with_items, drawn_answers=True)(examples_of())
    queries = BatchQueries(**batch["queries"])
    targets = loss_of(with_items).targets(queries, None)
    assert len(targets.places) == len(queries.answers) - 4 == sum(map(len, SEQUENCES))
    ids, first = batch["input_ids"].flatten(), with_items.block(0)
    assert ((ids[targets.places + 1] >= first.start) & (ids[targets.places + 1] < first.stop)).all()
    before = ids[targets.places]
    assert ((before >= with_items.items.start) | (before == PREFIX[-1])).all()


def test_law_9_one_pass_has_the_loss_of_one_row_per_target(tokenizer, table, with_items):
    model, losses = tiny_llm(len(tokenizer)), []
    for targets in ("every_item", "last_item"):
        batch = collator_of(table, with_items)(build_dataset(SEQUENCES, 20, targets).to_list())
        with torch.no_grad(), sid_loss_in_forward(model, with_items, "level", item_loss=loss_of(with_items)):
            losses.append(float(model(**batch).loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("has_teacher", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_captured_steps_have_the_same_gradients(monkeypatch, tokenizer, table, with_items, architecture, has_teacher):
    """The arguments of a captured step, run without a graph; they have the same shapes for another batch."""
    monkeypatch.setattr("llmrec.training.sft.captured_step.CudaGraphs", Eager)
    batches = [collator_of(table, with_items)(examples_of(size)) for size in (5, 4)]
    results = []
    for is_captured in (False, True):
        model = tiny_llm(len(tokenizer), architecture).train()
        captured = CapturedLoss(model, 2, (PAD, 0, IGNORED)) if is_captured else None
        teach = distillation_of(table, with_items).teach if has_teacher else None
        with sid_loss_in_forward(
            model, with_items, "level", SMOOTHING, captured, teach=teach, item_loss=loss_of(with_items)
        ):
            losses = [model(**batch, num_items_in_batch=torch.tensor(42)).loss for batch in batches]
            sum(losses).backward()
        results.append((float(sum(losses).detach()), model.get_input_embeddings().weight.grad))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1])
    assert captured is not None and captured.graphs.shapes[0] == captured.graphs.shapes[1]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("train", ["lora", "sid_tokens"])
def test_an_adapter_trains_every_item_row_in_the_embedding_alone(tokenizer, sid_table, with_items, tied, train):
    model = add_adapter(tiny_llm(len(tokenizer), tied=tied), sft_config("", "", "", train=train), with_items)
    batch = collator_of(sid_table, with_items)(examples_of())
    with sid_loss_in_forward(model, with_items, "level", item_loss=loss_of(with_items)):
        model(**batch).loss.backward()
    rows = {name: p for name, p in model.named_parameters() if SID_ROWS in name}
    sizes = sorted(len(parameter) for parameter in rows.values())
    assert sizes == ([25] if tied else [12, 25])
    embedding = next(p for p in rows.values() if len(p) == 25)
    assert (embedding.grad[13:].abs().sum(dim=1) > 0).all(), "items that are no target are pushed away, too"


def test_without_item_rows_or_weight_there_is_no_loss(vocabulary):
    with_items = SidVocabulary.add_to(word_tokenizer(), [4, 4, 4], num_items=12)
    assert ItemLoss.of(sft_config("", "", ""), vocabulary) is None
    assert ItemLoss.of(sft_config("", "", "", item_weight=0.0), with_items) is None
    found = ItemLoss.of(sft_config("", "", "", item_weight=0.5), with_items)
    assert found == ItemLoss(ItemRows(with_items.items), 1.5, 0.0, 0.5)


def test_a_teacher_without_weight_changes_nothing(tokenizer, sid_table, with_items):
    """The distribution that a teacher of weight 0 leaves is the smoothed next item."""
    model, values = tiny_llm(len(tokenizer)), []
    batch = collator_of(sid_table, with_items)(examples_of())
    item_loss = ItemLoss(ItemRows(with_items.items), 1.0, SMOOTHING, 0.0)
    for teach in (None, distillation_of(sid_table, with_items, 0.0).teach):
        with (
            torch.no_grad(),
            sid_loss_in_forward(model, with_items, "level", SMOOTHING, teach=teach, item_loss=item_loss),
        ):
            values.append(float(model(**batch).loss))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize("drawn_answers", [True, False])
def test_hidden_item_tokens_change_neither_places_nor_targets(sid_table, with_items, drawn_answers):
    collators = [collator_of(sid_table, with_items, drawn_answers=drawn_answers) for _ in range(2)]
    collators[1].item_dropout = 0.5
    plain, hidden = (collator(examples_of(20)) for collator in collators)
    assert torch.equal(plain["labels"], hidden["labels"])
    assert all(torch.equal(plain["queries"][name], hidden["queries"][name]) for name in plain["queries"])
    items, changed = with_items.items, plain["input_ids"] != hidden["input_ids"]
    assert (plain["input_ids"][changed] >= items.start).all()
    assert (hidden["input_ids"][changed] == items.stand_in).all()
    num_tokens = int((plain["input_ids"] >= items.start).sum())
    assert 0.2 * num_tokens < int(changed.sum()) < 0.8 * num_tokens


def test_items_are_hidden_at_their_rate_anew_in_every_epoch(sid_table, with_items):
    collator = collator_of(sid_table, with_items)
    collator.item_dropout = 0.3
    examples = build_dataset([np.arange(12)] * 200, 20, "every_item").to_list()
    ids = []
    for epoch in (0, 0, 1):
        collator.epoch = epoch
        ids.append(collator(examples)["input_ids"])
    assert torch.equal(ids[0], ids[1]) and not torch.equal(ids[0], ids[2])
    assert (ids[0] == with_items.items.stand_in).sum() / (200 * 12) == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_decay_shrinks_item_rows_alone_at_the_rate_of_the_step(tokenizer, with_items, train):
    model = tiny_llm(len(tokenizer))
    if train == "lora":
        model = add_adapter(model, sft_config("", "", "", train=train), with_items)
    config = sft_config("", "", "", train=train, learning_rate=0.1, sid_learning_rate=0.2)
    optimizer = build_optimizer(model, config)
    weight = causal_lm(model).get_input_embeddings().weight
    before = weight.detach().clone()
    ItemDecay(with_items.items, 0.5).on_optimizer_step(None, None, None, model=model, optimizer=optimizer)
    after, rate = causal_lm(model).get_input_embeddings().weight, 0.2 if train == "lora" else 0.1
    expected = before.clone()
    expected[with_items.items.block] *= 1 - rate * 0.5
    torch.testing.assert_close(after, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("train", ["lora", "full"])
def test_captured_sft_has_the_losses_of_eager_sft(tmp_path, toy, sid_table, train, monkeypatch):
    base = extended(tmp_path, sid_table, item_rows=True)
    options = {"train": train, "max_steps": 12, "precision": "float32", "device": "auto", "item_decay": 0.1}
    fine_tune(tmp_path / "captured", toy[0], base, **options)
    monkeypatch.setattr(CapturedLoss, "of", lambda *arguments: None)
    fine_tune(tmp_path / "eager", toy[0], base, **options)
    assert losses(tmp_path / "captured") == pytest.approx(losses(tmp_path / "eager"), rel=1e-4)
