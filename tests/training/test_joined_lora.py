"""Joined LoRA: values and gradients are those of PEFT's own layers, switched on, off and merged."""

import copy

import peft
import pytest
import torch

from llmrec.model.linear_layers import use_onednn
from llmrec.training.joined_lora import _First, join_lora
from llmrec.training.weights import lora_config
from tests.conftest import tiny_llm
from tests.support.extended import sft_config

ARCHITECTURES = {"qwen3": 2, "llama": 2, "qwen2": 2, "gemma2": 2, "phi3": 0}  # groups of a layer


def adapted(architecture, base_dtype=torch.float32):
    """A model with a LoRA that is not zero, and the same with joined projections."""
    model = tiny_llm(40, architecture).to(base_dtype)
    plain = peft.get_peft_model(model, lora_config(sft_config("", "", "", lora_rank=4, lora_alpha=12))).train()
    for name, parameter in plain.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter.data, std=0.2)
            parameter.data = parameter.data.float()
    joined = copy.deepcopy(plain)
    join_lora(joined)
    return plain, joined


def run(model):
    model.zero_grad()
    ids = torch.arange(24).view(2, 12)
    logits = model(input_ids=ids, use_cache=False).logits.float()
    logits.log_softmax(dim=-1)[..., 3].sum().backward()
    return logits, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_and_gradients_are_those_of_peft(architecture):
    plain, joined = adapted(architecture)
    kinds = [type(module).__name__ for module in joined.modules()]
    assert kinds.count("_First") == 2 * ARCHITECTURES[architecture]
    (expected, own), (found, joint) = run(plain), run(joined)
    hint = f"PEFT {peft.__version__} changed what a LoRA layer computes; adapt llmrec/training/joined_lora.py."
    assert torch.allclose(found, expected, atol=1e-5), hint
    assert own.keys() == joint.keys()
    for name, gradient in own.items():
        assert torch.allclose(joint[name], gradient, atol=1e-5 * float(gradient.abs().max())), f"{name}: {hint}"


def test_rounding_in_bfloat16_is_no_worse_than_that_of_peft():
    plain, joined = adapted("qwen3", torch.bfloat16)
    exact = run(copy.deepcopy(plain).float())[0]
    with torch.autocast("cpu", torch.bfloat16):
        errors = [float((run(model)[0] - exact).norm()) for model in (plain, joined)]
    assert 0 < errors[1] < 1.5 * errors[0]


def test_a_lora_that_is_off_or_merged_acts_as_in_peft():
    plain, joined = adapted("qwen3")
    ids = torch.arange(12).view(1, 12)
    with plain.disable_adapter(), joined.disable_adapter():
        assert torch.equal(joined(input_ids=ids).logits, plain(input_ids=ids).logits)
    on = joined(input_ids=ids).logits
    assert plain.state_dict().keys() == joined.state_dict().keys()
    merged = joined.merge_and_unload()
    assert not any(type(module).__name__ in ("_First", "_Later") for module in merged.modules())
    assert torch.allclose(merged(input_ids=ids).logits, on, atol=1e-4)


def test_without_gradients_the_products_are_those_of_peft():
    plain, joined = adapted("qwen3")
    ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        assert torch.equal(joined(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_no_copy_of_the_frozen_weights_is_kept_for_the_gradient():
    _, joined = adapted("qwen3")
    mlp = joined.base_model.model.model.layers[0].mlp
    own = {parameter.untyped_storage().data_ptr() for parameter in joined.parameters()}
    kept = []

    def note(tensor):
        kept.append((tensor.untyped_storage().data_ptr() in own, tuple(tensor.shape)))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        joined(input_ids=torch.arange(24).view(2, 12), use_cache=False)
    width, inner = mlp.gate_proj.out_features, mlp.gate_proj.in_features
    assert (True, (width, inner)) in kept and (False, (2 * width, inner)) not in kept


def test_a_model_that_a_cpu_has_decoded_with_is_joined_too():
    model = tiny_llm(40, "qwen3")
    use_onednn(model)
    adapter = peft.get_peft_model(model, lora_config(sft_config("", "", "", lora_rank=4, lora_alpha=12)))
    join_lora(adapter)
    assert sum(isinstance(module, _First) for module in adapter.modules()) == 4  # two groups of two layers
