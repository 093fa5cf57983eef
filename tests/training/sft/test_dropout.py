"""Dropout by hooks: it acts in the right places, in training mode only, and leaves no trace."""

import pytest
import torch

from llmrec.model.backbone import causal_lm
from llmrec.training.sft.dropout import dropout_places, residual_dropout
from llmrec.training.weights import add_adapter
from tests.conftest import tiny_llm
from tests.support.extended import fine_tune, sft_config, weights_of

IDS = torch.arange(5, 13).unsqueeze(0)


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox"])
def test_contract_dropout_acts_on_the_embedding_and_two_blocks_of_each_layer(architecture):
    assert len(dropout_places(tiny_llm(30, architecture))) == 1 + 2 * 2


def test_dropout_acts_in_training_mode_only_and_leaves_no_hook():
    model = tiny_llm(30)
    expected = model(IDS).logits
    with residual_dropout(model, 0.5):
        assert torch.equal(model(IDS).logits, expected)
        first, second = (model.train()(IDS).logits for _ in range(2))
        assert not torch.allclose(first, expected) and not torch.allclose(first, second)
    assert torch.equal(model(IDS).logits, expected)


def test_elements_are_dropped_with_the_probability_and_the_rest_is_scaled():
    model = tiny_llm(30).train()
    seen = {}
    block = model.model.layers[0].mlp
    with residual_dropout(model, 0.25):
        block.register_forward_hook(lambda module, inputs, output: seen.update(output=output, input=inputs[0]))
        model(torch.randint(30, (16, 64)))
    clean = type(block).forward(block, seen["input"])
    kept = seen["output"] != 0
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(seen["output"][kept], clean[kept] / 0.75)


def test_probability_one_drops_everything(vocabulary, tokenizer):
    """With all embeddings and blocks dropped, the states are zero, with LoRA as well."""
    model = add_adapter(tiny_llm(len(tokenizer)), sft_config("", "", "", train="lora"), vocabulary).train()
    with residual_dropout(model, 1.0):
        states = causal_lm(model).base_model(IDS).last_hidden_state
    assert not states.any()


def test_sft_with_dropout_trains_other_weights(tmp_path, toy):
    catalog, base = toy
    fine_tune(tmp_path / "plain", catalog, base, train="full")
    fine_tune(tmp_path / "dropped", catalog, base, train="full", dropout=0.3)
    plain, dropped = weights_of(tmp_path / "plain"), weights_of(tmp_path / "dropped")
    assert plain.keys() == dropped.keys()
    assert any(not torch.equal(plain[name], dropped[name]) for name in plain)
