"""Captured steps of heads, words and pieces have the losses and gradients of eager ones, also by real CUDA graphs."""

from __future__ import annotations

import pytest
import torch

from llmrec.model.heads.choice import make_head
from llmrec.model.new_rows import add_rows
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.sft.captured_step import CapturedLoss
from llmrec.training.sft.item_loss import ItemLoss
from llmrec.training.sft.losses import IGNORED
from tests.conftest import CODES, tiny_llm, word_tokenizer
from tests.model.test_heads import KINDS, scene
from tests.support.extended import extended, fine_tune, losses, sft_config
from tests.support.pieces import piece_table
from tests.support.titles import byte_level_bpe
from tests.training.distil.test_distillation import collator_of, distillation_of, examples_of
from tests.training.sft.test_captured_step import Eager, assert_equal, gradients, no_graphs  # noqa: F401 (a fixture)


def losses_of(kind: str, captured: bool, device: str = "cpu", loss_by: str = "softmax"):
    """Losses and gradients of two batches, each taken twice, and the captured steps if there are any."""
    one = scene(kind)
    one.model.to(device)
    head = make_head(one.model, one.encoder, one.vocabulary, torch.device(device), loss_by)
    item_loss = ItemLoss.of(sft_config("", "", ""), one.vocabulary, head)
    collate, batches = collator_of(one.table, one.vocabulary, packing=True), []
    for targets in ("every_item", "last_item"):
        batch = collate(examples_of(targets=targets))
        queries = {name: tensor.to(device) for name, tensor in batch.pop("queries").items()}
        rest = {name: part.to(device) if isinstance(part, torch.Tensor) else part for name, part in batch.items()}
        batches.append({**rest, "queries": queries})
    labels_per_item = 1 if one.vocabulary.head.by_codes else one.vocabulary.num_levels
    steps = CapturedLoss(one.model, labels_per_item, (0, 0, IGNORED)) if captured else None
    torch.manual_seed(0)
    return gradients(one.model, one.vocabulary, batches * 2, steps, item_loss=item_loss), steps


@pytest.mark.parametrize("kind", KINDS)
def test_captured_steps_have_the_gradients_of_eager_ones(no_graphs, kind):  # noqa: F811 (the fixture)
    found, steps = losses_of(kind, captured=True)
    assert len(steps.graphs.shapes) == 4
    assert_equal(found, losses_of(kind, captured=False)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_replays_have_the_gradients_of_eager_calls(kind):
    found, steps = losses_of(kind, captured=True, device="cuda")
    assert steps.graphs.graphs
    assert_equal(found, losses_of(kind, captured=False, device="cuda")[0], tolerance=1e-4)


@pytest.mark.gpu
def test_replays_of_the_cosine_loss_draw_other_items():
    (curve, _), _ = losses_of("projection", captured=True, device="cuda", loss_by="cosine")
    assert curve == losses_of("projection", captured=True, device="cuda", loss_by="cosine")[0][0]
    assert len(set(curve)) == 4, "each batch comes twice"


def losses_in(kind: str, captured: bool, device: str = "cpu", with_teacher: bool = False):
    """Losses and gradients of batches of items in words or pieces, each taken twice, and the captured steps."""
    if kind == "words":
        tokenizer, lengths = byte_level_bpe(), [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3]
        ends = [[20 + row, *range(40, 39 + length), 5] for row, length in enumerate(lengths)]
        table = SidTable.of_tokens([f"item-{row}" for row in range(12)], ends, tokenizer)
        vocabulary, normalize_over = SidVocabulary.of_words(table.words, tokenizer.eos_token_id), "vocabulary"
    else:
        table, tokenizer, normalize_over = piece_table(), word_tokenizer(), "level"
        vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes, segmentations=2)
    model = tiny_llm(len(tokenizer), max_position_embeddings=512)
    if table.pieces is not None:
        add_rows(model, vocabulary, 0, None, table.pieces)
    model.to(device)
    collate, batches = collator_of(table, vocabulary, packing=True), []
    for targets in ("every_item", "last_item") if kind == "words" else ("last_item", "last_item"):
        batch = collate(examples_of(targets=targets))
        queries = {name: tensor.to(device) for name, tensor in batch.pop("queries").items()}
        rest = {name: part.to(device) if isinstance(part, torch.Tensor) else part for name, part in batch.items()}
        batches.append({**rest, **({"queries": queries} if with_teacher else {})})
    teach = distillation_of(table, vocabulary).teach if with_teacher else None
    steps = CapturedLoss(model, 1, (0, 0, IGNORED)) if captured else None
    found = gradients(model, vocabulary, batches * 2, steps, normalize_over=normalize_over, teach=teach)
    return found, steps


@pytest.mark.parametrize("with_teacher", [False, True])
@pytest.mark.parametrize("kind", ["words", "pieces"])
def test_captured_steps_in_words_and_pieces_have_the_gradients_of_eager_ones(no_graphs, kind, with_teacher):  # noqa: F811
    found, steps = losses_in(kind, captured=True, with_teacher=with_teacher)
    assert len(steps.graphs.shapes) == 4
    assert_equal(found, losses_in(kind, captured=False, with_teacher=with_teacher)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["words", "pieces"])
def test_replays_in_words_and_pieces_have_the_gradients_of_eager_calls(kind):
    found, steps = losses_in(kind, captured=True, device="cuda")
    assert steps.graphs.graphs
    assert_equal(found, losses_in(kind, captured=False, device="cuda")[0], tolerance=1e-4)


@pytest.mark.parametrize(
    ("options", "is_captured"),
    [
        ({}, True),
        ({"normalize_over": "vocabulary"}, True),
        ({"normalize_over": "vocabulary", "targets": "last_item"}, False),
        ({"targets": "last_item"}, True),
        ({"content_passes": 1}, False),
        ({"gradient_checkpointing": True}, False),
    ],
)
def test_which_steps_are_captured(monkeypatch, options, is_captured):
    monkeypatch.setattr("llmrec.training.sft.captured_step.CudaGraphs", Eager)
    steps = CapturedLoss.of(sft_config("", "", "", **options), tiny_llm(20), 1, (0, 0, IGNORED), torch.device("cuda"))
    assert (steps is not None) == is_captured


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["codes", "pieces"])
def test_captured_sft_has_the_losses_of_eager_sft(tmp_path, toy, kind, monkeypatch):
    table = piece_table() if kind == "pieces" else SidTable([f"item-{row}" for row in range(12)], CODES)
    base = extended(tmp_path, table, **({} if kind == "pieces" else {"head": "codes"}))
    targets = "last_item" if kind == "pieces" else "every_item"
    options = {"train": "full", "max_steps": 12, "precision": "float32", "device": "auto", "targets": targets}
    fine_tune(tmp_path / "captured", toy[0], base, **options)
    monkeypatch.setattr(CapturedLoss, "of", lambda *arguments: None)
    fine_tune(tmp_path / "eager", toy[0], base, **options)
    assert losses(tmp_path / "captured") == pytest.approx(losses(tmp_path / "eager"), rel=1e-4)


def test_answers_that_would_be_lost_are_refused(no_graphs):  # noqa: F811 (the fixture)
    one = scene("codes")
    item_loss = ItemLoss.of(
        sft_config("", "", ""), one.vocabulary, make_head(one.model, one.encoder, one.vocabulary, torch.device("cpu"))
    )
    batch = collator_of(one.table, one.vocabulary, packing=True)(examples_of())
    steps = CapturedLoss(one.model, batch["labels"].numel(), (0, 0, IGNORED))
    with pytest.raises(ValueError, match="answers do not fit"):
        gradients(one.model, one.vocabulary, [batch], steps, item_loss=item_loss)
