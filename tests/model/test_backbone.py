"""The two halves give the logits of the whole, whatever the architecture does to them and whatever PEFT wraps."""

import subprocess
import sys

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from llmrec.model.backbone import causal_lm, check_halves, logits, output_rows, run_backbone
from tests.conftest import tiny_llm

VOCABULARY = 40
IDS = torch.tensor([[5, 6, 7, 8], [9, 5, 33, 39]])
ARCHITECTURES = ["qwen3", "qwen2", "llama", "mistral", "gemma2", "cohere", "granite", "phi3", "olmo2", "gpt_neox"]


def assert_halves_equal_whole(model):
    with torch.no_grad():
        inner = causal_lm(model)
        hidden = run_backbone(inner, input_ids=IDS).last_hidden_state
        whole = model(IDS).logits
        assert torch.allclose(logits(inner, hidden), whole, atol=1e-5)
        assert torch.allclose(logits(inner, hidden, slice(10, 14)), whole[..., 10:14], atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_backbone_and_projection_equal_the_model(architecture, tied):
    model = tiny_llm(VOCABULARY, architecture, tied)
    for name, value in {"logit_scale": 0.3, "logits_scaling": 7.0, "final_logit_softcapping": 2.0}.items():
        if hasattr(model.config, name):
            setattr(model.config, name, value)
        if hasattr(model, name):
            setattr(model, name, value)
    assert_halves_equal_whole(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_without_more_than_a_projection_pass_the_trial(architecture, dtype):
    check_halves(tiny_llm(VOCABULARY, architecture).to(dtype))


def test_a_new_model_with_dropout_passes_the_trial():
    """Architectures make models in training mode, which the trial leaves them in."""
    model = tiny_llm(VOCABULARY, attention_dropout=0.5).train()
    check_halves(model)
    assert model.training


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("modernbert-decoder", {}), ("llama4_text", {}), ("falcon_h1", {"lm_head_multiplier": 2.0})],
)
def test_models_with_more_than_a_projection_are_refused(architecture, options):
    with pytest.raises(ValueError, match="does not multiply its last hidden states by its output matrix alone"):
        check_halves(tiny_llm(VOCABULARY, architecture, **options))


def test_an_output_bias_is_added():
    model = tiny_llm(VOCABULARY, "phi", tied=False)  # Phi's output layer has a bias
    torch.nn.init.normal_(model.lm_head.bias)
    assert_halves_equal_whole(model)


PEFT = {
    "lora": {},
    "lora and trained rows, tied": {"trainable_token_indices": [10, 11, 12]},
    "lora and trained rows, untied": {"trainable_token_indices": {"embed_tokens": [10, 11], "lm_head": [10, 11]}},
    "lora and a copy of the output matrix": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("name", PEFT)
def test_backbone_and_projection_equal_the_model_under_peft(name):
    base = tiny_llm(VOCABULARY, tied=", tied" in name)
    plain = base(IDS).logits
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False, **PEFT[name])
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in parameter_name or "modules_to_save" in parameter_name:
                parameter += 0.5
    assert_halves_equal_whole(model)
    assert not torch.allclose(model(IDS).logits, plain, atol=1e-2)
    with model.disable_adapter():
        assert_halves_equal_whole(model)


def test_a_lora_on_the_output_matrix_is_refused():
    model = get_peft_model(tiny_llm(VOCABULARY, tied=False), LoraConfig(r=4, target_modules=["lm_head"]))
    with pytest.raises(ValueError, match="leave lm_head out of target_modules"):
        output_rows(causal_lm(model))


def test_decoding_loads_no_peft():
    code = "import sys, llmrec.recommender; assert not {'peft', 'bitsandbytes'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bfloat16_models_give_float32_logits():
    model = tiny_llm(VOCABULARY).to(torch.bfloat16)
    hidden = run_backbone(model, input_ids=IDS).last_hidden_state
    assert hidden.dtype == torch.bfloat16
    assert logits(model, hidden).dtype == torch.float32


def test_causal_lm_of_a_plain_model_is_itself():
    model = tiny_llm(VOCABULARY)
    assert causal_lm(model) is model


def test_contract_base_model_is_the_model_without_its_head():
    for architecture in ("qwen3", "gemma2", "gpt_neox"):
        model = tiny_llm(VOCABULARY, architecture)
        message = f"PreTrainedModel.base_model changed in transformers {transformers.__version__} ({architecture})"
        assert model.base_model is not model, message
        assert hasattr(model.base_model(IDS), "last_hidden_state"), message
        assert not hasattr(model.base_model(IDS), "logits"), message
