"""Packing: properties of bins, rows by hand, and the loss of unpacked rows on every architecture."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.training.sft.examples import build_dataset
from llmrec.training.sft.losses import IGNORED
from llmrec.training.sft.packing import check_packing, first_fit
from tests.conftest import tiny_llm
from tests.training.sft.test_examples import make_collator, summed_loss

ARCHITECTURES = ["qwen3", "qwen2", "llama", "mistral", "gemma2", "gemma3_text", "phi3", "gpt2"]


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(0, 20))
def test_bins_hold_every_sequence_once_and_overflow_nowhere(lengths, extra):
    capacity = max(lengths) + extra
    bins = first_fit(lengths, capacity)
    assert sorted(place for places in bins for place in places) == list(range(len(lengths)))
    filled = [sum(lengths[place] for place in places) for places in bins]
    assert max(filled) <= capacity
    # No two rows could be one: the first sequence of a later row found no room in any row before it.
    assert all(a + lengths[bins[j][0]] > capacity for i, a in enumerate(filled) for j in range(i + 1, len(bins)))


def test_a_packed_batch_by_hand(tokenizer, sid_table, vocabulary, monkeypatch):
    monkeypatch.setattr("llmrec.training.sft.packing.ROW_STEP", 5)  # the longest has 10 tokens
    collator = make_collator(tokenizer, sid_table, vocabulary)
    collator.packing, collator.prefix = True, [4]
    batch = collator(
        [{"rows": [1], "num_context": 0}, {"rows": [3, 7, 1], "num_context": 1}, {"rows": [7], "num_context": 0}]
    )
    one, three, seven = (collator.encoder.encode_history([row]).tolist() for row in (1, 3, 7))
    assert batch["input_ids"].tolist() == [[4, *three, *seven, *one], [4, *one, 4, *seven, 0, 0]]
    assert batch["position_ids"].tolist() == [list(range(10)), [0, 1, 2, 3, 0, 1, 2, 3, 0, 0]]
    nothing = [IGNORED]
    assert batch["labels"].tolist() == [nothing * 4 + seven + one, nothing + one + nothing + seven + nothing * 2]
    assert batch.keys() == {"input_ids", "position_ids", "labels"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("normalize_over", ["level", "vocabulary"])
def test_packed_rows_have_the_loss_of_unpacked_ones(tokenizer, sid_table, vocabulary, architecture, normalize_over):
    model = tiny_llm(len(tokenizer), architecture)
    sequences = [np.random.default_rng(i).integers(0, 12, size) for i, size in enumerate((1, 9, 3, 2, 14, 5, 1))]
    dataset = build_dataset(sequences, 20, "every_item")
    collator = make_collator(tokenizer, sid_table, vocabulary)
    unpacked = summed_loss(model, vocabulary, collator, dataset, normalize_over)
    collator.packing = True
    assert summed_loss(model, vocabulary, collator, dataset, normalize_over) == pytest.approx(unpacked, rel=1e-5)
    check_packing(model)


def test_packed_gradients_are_those_of_unpacked_rows(llm, tokenizer, sid_table, vocabulary):
    from llmrec.training.sft.losses import sid_loss_in_forward

    dataset = build_dataset([np.arange(size) for size in (2, 12, 5, 3)], 20, "every_item")
    collator, gradients = make_collator(tokenizer, sid_table, vocabulary), []
    for collator.packing in (False, True):
        llm.zero_grad()
        with sid_loss_in_forward(llm, vocabulary, "level"):
            llm(**collator(list(dataset))).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in llm.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_a_model_that_mixes_packed_sequences_is_refused():
    model = tiny_llm(30, "mamba")
    with pytest.raises(ValueError, match="MambaForCausalLM does not keep packed sequences apart; set packing to false"):
        check_packing(model)


@pytest.mark.parametrize("is_training", [True, False])
def test_the_packing_check_switches_dropout_off_and_restores_the_mode(is_training):
    model = tiny_llm(30, "gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5).train(is_training)
    check_packing(model)
    assert all(module.training == is_training for module in model.modules())
