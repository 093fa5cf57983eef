"""Rows that train, read without the vocabulary around them: PEFT's own values and gradients, and none of its copies."""

import numpy as np
import peft
import pytest
import torch

from llmrec.model.backbone import causal_lm, output_rows
from llmrec.model.trained_rows import trained_block
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.weights import add_adapter
from tests.conftest import tiny_llm
from tests.support.extended import sft_config

VERSION = f"changed in peft {peft.__version__}"


def adapted(tokenizer, table, tied=True, architecture="qwen3"):
    """A model whose SID rows have moved away from the base's, and the positions of its vocabulary."""
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes)
    model = add_adapter(tiny_llm(len(tokenizer), architecture, tied), sft_config("", "", "", train="lora"), vocabulary)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.eval(), vocabulary


def wrappers(model):
    base = causal_lm(model)
    return base.get_input_embeddings(), base.get_output_embeddings()


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3_text"])  # the second scales its embedding
@pytest.mark.parametrize("tied", [True, False])
def test_contract_values_and_gradients_are_those_of_peft(tokenizer, sid_table, tied, architecture):
    model, _ = adapted(tokenizer, sid_table, tied, architecture)
    wrapper, _ = wrappers(model)
    adapter, ids = wrapper.token_adapter, torch.arange(len(tokenizer)).repeat(2).view(2, -1)
    trained = trained_block(wrapper)[1]
    weights = torch.randn(2, len(tokenizer), trained.shape[1], generator=torch.Generator().manual_seed(0))
    found = wrapper(ids)
    expected = type(adapter).forward(adapter, ids)
    assert torch.allclose(found, expected, atol=1e-6), f"TrainableTokensLayer.forward: {VERSION}"
    gradients = [torch.autograd.grad((values * weights).sum(), trained)[0] for values in (found, expected)]
    assert torch.allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_contract_output_rows_are_those_of_peft(tokenizer, sid_table, tied):
    model, vocabulary = adapted(tokenizer, sid_table, tied)
    _, head = wrappers(model)
    for rows in (vocabulary.block(1), slice(vocabulary.starts[0], vocabulary.token_range.stop)):
        weight, bias = output_rows(causal_lm(model), rows)
        assert torch.equal(weight, head.weight[rows]) and bias is None, f"TrainableTokensWrapper.weight: {VERSION}"
    first, last = vocabulary.starts[0], vocabulary.token_range.stop
    for rows in (slice(first - 1, first + 2), slice(last - 1, last + 5), slice(None), slice(0, 4)):
        assert torch.equal(output_rows(causal_lm(model), rows)[0], head.weight[rows])


def test_nothing_copies_the_vocabulary(tokenizer, sid_table, monkeypatch):
    model, vocabulary = adapted(tokenizer, sid_table)
    wrapper, _ = wrappers(model)

    def refuse(*arguments):
        raise AssertionError("the whole matrix was put together")

    monkeypatch.setattr(type(wrapper.token_adapter), "get_merged_weights", refuse)
    wrapper(torch.tensor([[1, vocabulary.starts[0]]]))
    output_rows(causal_lm(model), vocabulary.block(0))


def test_disabled_or_merged_rows_are_left_to_peft(tokenizer, sid_table):
    model, vocabulary = adapted(tokenizer, sid_table)
    wrapper, _ = wrappers(model)
    ids, trained = torch.tensor([vocabulary.starts[1]]), wrapper(torch.tensor([vocabulary.starts[1]]))
    with model.disable_adapter():
        assert trained_block(wrapper) is None
        assert not torch.allclose(wrapper(ids), trained)  # the base's row
    wrapper.token_adapter.merge()
    assert trained_block(wrapper) is None
    assert torch.allclose(wrapper(ids), trained)


def test_rows_that_are_scattered_are_left_to_peft():
    model = tiny_llm(30)
    lora = peft.LoraConfig(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3, 9, 12]})
    wrapper, _ = wrappers(peft.get_peft_model(model, lora))
    assert trained_block(wrapper) is None
    assert np.isfinite(output_rows(model, slice(3, 10))[0].detach().numpy()).all()
