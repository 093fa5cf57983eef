"""The loss inside forward: a value by hand, agreement with transformers, scaling, and a restored model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.sft.examples import build_dataset
from llmrec.training.sft.losses import IGNORED, sid_cross_entropy, sid_loss_in_forward
from tests.conftest import tiny_llm
from tests.training.sft.test_examples import make_collator


@pytest.fixture
def batch(tokenizer, sid_table, vocabulary):
    dataset = build_dataset([np.arange(5), np.arange(2), np.arange(9)], 4, "every_item")
    return make_collator(tokenizer, sid_table, vocabulary)(list(dataset))


@torch.no_grad()
def scoring_model(llm, vocabulary) -> torch.Tensor:
    """Make the output matrix so that a unit hidden state gives level 0 the scores 0, ln 2, ln 3, ln 4; all else 0."""
    weight = llm.get_output_embeddings().weight.requires_grad_(False)
    weight.zero_()
    weight[vocabulary.block(0), 0] = torch.tensor([1.0, 2.0, 3.0, 4.0]).log()
    return torch.eye(weight.shape[1])[:1]


def test_loss_by_hand(llm, vocabulary):
    hidden = scoring_model(llm, vocabulary)
    target = torch.tensor([vocabulary.starts[0] + 2])
    rows = llm.get_output_embeddings().weight.shape[0]
    level = sid_cross_entropy(llm, hidden, target, vocabulary, "level")
    assert float(level) == pytest.approx(math.log(10 / 3))  # exp scores 1 + 2 + 3 + 4, target 3
    full = sid_cross_entropy(llm, hidden, target, vocabulary, "vocabulary")
    assert float(full) == pytest.approx(math.log((10 + rows - 4) / 3))  # every other row has exp score 1
    smooth = sid_cross_entropy(llm, hidden, target, vocabulary, "level", label_smoothing=0.2)
    uniform = math.log(10) - math.log(24) / 4  # mean of -log(1/10), -log(2/10), -log(3/10), -log(4/10)
    assert float(smooth) == pytest.approx(0.8 * math.log(10 / 3) + 0.2 * uniform)


@torch.no_grad()
def test_loss_sums_the_levels(llm, vocabulary):
    """A state of zeros is uniform everywhere: ln 4 for each of three codes, ln V over the vocabulary."""
    hidden = torch.zeros(3, llm.config.hidden_size)
    targets = torch.tensor([start + 1 for start in vocabulary.starts])
    rows = llm.get_output_embeddings().weight.shape[0]
    assert float(sid_cross_entropy(llm, hidden, targets, vocabulary, "level")) == pytest.approx(3 * math.log(4))
    assert float(sid_cross_entropy(llm, hidden, targets, vocabulary, "vocabulary")) == pytest.approx(3 * math.log(rows))


@torch.no_grad()
def test_loss_with_exact_upper_bounds_is_equal(llm, vocabulary):
    """Three SIDs and two words; larger bounds give the same loss."""
    sids = [start + code for code in range(3) for start in vocabulary.starts]
    targets = torch.tensor([IGNORED, vocabulary.token_range.start - 1, *sids, IGNORED, 4])
    hidden = torch.randn(len(targets), llm.config.hidden_size, generator=torch.Generator().manual_seed(0))
    expected = float(sid_cross_entropy(llm, hidden, targets, vocabulary, "level"))
    for most in ((3, 2), (5, 7), (100, 100)):
        found = sid_cross_entropy(llm, hidden, targets, vocabulary, "level", most=most)
        assert float(found) == pytest.approx(expected, rel=1e-6)


@torch.no_grad()
def test_spare_rows_take_no_share_of_a_level(tokenizer):
    """Uniform scores cost ln 4 with four codes in use, however many spare tokens follow them."""
    vocabulary = SidVocabulary.add_to(tokenizer, [4, 4], spare_codes=3)
    model = tiny_llm(len(tokenizer))
    targets = torch.tensor(vocabulary.starts)
    loss = sid_cross_entropy(model, torch.zeros(2, model.config.hidden_size), targets, vocabulary, "level")
    assert float(loss) == pytest.approx(2 * math.log(4))


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "mistral", "qwen2", "gemma2"])
@pytest.mark.parametrize("tied", [True, False])
def test_loss_over_the_vocabulary_is_that_of_transformers(tokenizer, vocabulary, batch, architecture, tied):
    model = tiny_llm(len(tokenizer), architecture, tied)
    expected = model(**batch).loss
    expected.backward()
    gradient = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    with sid_loss_in_forward(model, vocabulary, "vocabulary"):
        ours = model(**batch).loss
    ours.backward()
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(model.get_input_embeddings().weight.grad, gradient, rtol=1e-4, atol=1e-6)


def test_smoothing_over_the_vocabulary_is_that_of_torch(llm, vocabulary, batch):
    with sid_loss_in_forward(llm, vocabulary, "vocabulary", label_smoothing=0.1):
        ours = llm(**batch).loss
    logits = llm(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].flatten(0, 1)
    targets = batch["labels"][:, 1:].flatten()
    expected = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, label_smoothing=0.1)
    torch.testing.assert_close(ours, expected)


def test_scaling_by_the_number_of_targets(llm, vocabulary, batch):
    targets = int((batch["labels"] != IGNORED).sum())
    with sid_loss_in_forward(llm, vocabulary, "level"):
        mean = llm(**batch).loss
        torch.testing.assert_close(llm(**batch, num_items_in_batch=1).loss, mean * targets)
        torch.testing.assert_close(llm(**batch, num_items_in_batch=torch.tensor(2 * targets)).loss, mean / 2)
        parts = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(len(batch["labels"]))]
        accumulated = sum(llm(**part, num_items_in_batch=targets).loss for part in parts)
        torch.testing.assert_close(accumulated, mean)


def test_calls_without_labels_and_the_model_afterwards_are_untouched(llm, vocabulary, batch):
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    before, forward = llm(**inputs).logits, type(llm).forward
    with sid_loss_in_forward(llm, vocabulary, "level"):
        assert torch.equal(llm(**inputs).logits, before)
        assert torch.equal(llm(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits, before)
        assert not hasattr(llm(**batch), "past_key_values") or llm(**batch).past_key_values is None
    assert llm.forward.__func__ is forward and "forward" not in vars(llm)
    assert torch.equal(llm(**inputs).logits, before)


def test_forward_is_restored_after_an_exception(llm, vocabulary):
    with pytest.raises(KeyboardInterrupt), sid_loss_in_forward(llm, vocabulary, "level"):
        raise KeyboardInterrupt
    assert "forward" not in vars(llm)


def test_an_own_forward_of_the_model_is_restored(llm, vocabulary):
    """For example, mixed precision of accelerate puts a forward of its own on the model."""
    own = llm.forward
    llm.forward = lambda **inputs: own(**inputs)
    wrapped = llm.forward
    with sid_loss_in_forward(llm, vocabulary, "level"):
        assert llm.forward is not wrapped
    assert llm.forward is wrapped
