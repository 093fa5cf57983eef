"""Trainable weights of sft and merging them: law 4 for every way to train, with tied and untied embeddings.

Over `ways` x `tied`: gradients reach what is meant to train and nothing else changes, the merged model scores like what
was trained, and an interrupted run goes on as if it had not been.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from llmrec.model.backbone import causal_lm
from llmrec.model.checkpoint import SidConfig, load_model
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.runtime.stage_directory import SCRATCH
from llmrec.stages import sft as stage
from llmrec.training import weights
from llmrec.training.sft.examples import HistoryCollator, build_dataset
from llmrec.training.sft.losses import sid_loss_in_forward
from llmrec.training.trainer import SID_ROWS, build_optimizer
from tests.conftest import tiny_llm
from tests.support.extended import extended, fine_tune, losses, same_weights, sft_config, weights_of
from tests.training.test_checkpoints import OPTIONS, names, start_and_kill

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # all linear layers
WAYS = {
    "lora": {"train": "lora"},
    "sid_tokens": {"train": "sid_tokens"},
    "full": {"train": "full"},
    "nf4": {"train": "lora", "quantization": "nf4"},
    "nf4 sid_tokens": {"train": "sid_tokens", "quantization": "nf4"},
}
# Parameters of PEFT for each adapted module, of which tiny_llm has two of each name.
OF_A_MODULE = {"lora": 2, "sid_tokens": 0, "nf4": 2, "nf4 sid_tokens": 0}
NUM_ADAPTED = 2 * len(TARGETS)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request) -> bool:
    return request.param


@pytest.fixture(params=WAYS)
def way(request) -> str:
    if "nf4" in request.param:
        pytest.importorskip("bitsandbytes", reason="nf4 needs bitsandbytes")
    return request.param


@pytest.fixture
def base(toy, untied, tied):
    return toy[1] if tied else untied


def sid_rows(base) -> slice:
    rows = SidConfig.load(base)[0].vocabulary.token_range
    return slice(rows.start, rows.stop)


def quantised(base) -> dict[str, torch.Tensor]:
    """Tensors of a base after rounding to 4 bits, by the names of a saved model."""
    model = load_model(base, dtype=torch.float32, quantization_config=weights.nf4_config(torch.float32)).dequantize()
    return {name: tensor for name, tensor in model.state_dict().items() if name in weights_of(base)}


def two_steps(model, config, sid_config, table) -> tuple[set[str], set[str]]:
    """Names of the parameters that a gradient reaches, and of those that changed; of LoRA's A only in the second."""
    collator = HistoryCollator([4, 5], SidHistoryEncoder(table, sid_config.vocabulary), 0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer, reached = build_optimizer(model, config), set()
    with sid_loss_in_forward(model, sid_config.vocabulary, config.normalize_over):
        for _ in range(2):
            optimizer.zero_grad()
            model(**collator(list(build_dataset([np.arange(9)], 20, "every_item")))).loss.backward()
            reached |= {name for name, parameter in model.named_parameters() if parameter.grad is not None}
            optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    return reached, changed


def test_law_4_gradients_reach_what_trains_and_only_that_changes(base, tied, way):
    config = sft_config("", "", base, **WAYS[way], normalize_over="vocabulary", weight_decay=0.0)
    sid_config, table, _ = SidConfig.load(base)
    model = weights.load_trainable(config, sid_config.vocabulary, torch.float32)
    reached, changed = two_steps(model, config, sid_config, table)
    assert reached == changed
    if way == "full":
        assert reached == {name for name, _ in model.named_parameters()}
        return
    rows = {name for name in reached if SID_ROWS in name}
    assert len(rows) == (1 if tied else 2)
    assert all(model.get_parameter(name).shape == (sid_config.vocabulary.num_tokens, 32) for name in rows)
    assert len(reached - rows) == NUM_ADAPTED * OF_A_MODULE[way]
    assert all("lora_" in name and any(target in name for target in TARGETS) for name in reached - rows)


def test_law_4_the_saved_model_differs_in_what_trained(tmp_path, toy, base, tied, way):
    """Embeddings of ordinary tokens are equal bit for bit; a 4-bit base is saved as its 4 bits round it."""
    fine_tune(tmp_path / "sft", toy[0], base, **WAYS[way], normalize_over="vocabulary")
    before = quantised(base) if "nf4" in way else weights_of(base)
    after, rows = weights_of(tmp_path / "sft"), sid_rows(base)
    assert before.keys() == after.keys() and ("lm_head.weight" in after) != tied
    for name, old in before.items():
        new = after[name]
        if way != "full" and ("embed_tokens" in name or "lm_head" in name):
            assert not torch.isclose(new[rows], old[rows], atol=1e-6).all(dim=1).any(), f"an untrained row in {name}"
            new, old = (torch.cat([w[: rows.start], w[rows.stop :]]) for w in (new, old))
            assert torch.equal(new, old)
        else:
            adapted = WAYS[way]["train"] == "lora" and any(target in name for target in TARGETS)
            assert torch.equal(new, old) != (adapted or way == "full"), name
    model = load_model(tmp_path / "sft")
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert model.config.to_dict() == {**load_model(base).config.to_dict(), "_name_or_path": str(tmp_path / "sft")}


def trained_and_saved(monkeypatch, out, catalog, base, **options):
    """Logits of the trained and of the saved model, (2, 20, V) each, and the types of the trained parameters."""
    kept, merge = {}, weights.merge
    probe = torch.arange(4, 44).reshape(2, 20)

    def spying(model, config, dtype, scratch):
        # In training mode (no dropout): for inference on a CPU bitsandbytes repacks 4-bit weights, rounded again.
        kept["logits"] = model.train()(probe, attention_mask=torch.ones_like(probe)).logits.detach().float()
        kept["types"] = {p.dtype for p in model.parameters() if p.requires_grad}
        return merge(model, config, dtype, scratch)

    monkeypatch.setattr(stage, "merge", spying)
    fine_tune(out, catalog, base, learning_rate=1e-2, **options)
    with torch.no_grad():
        saved, before = (load_model(path).eval()(probe, attention_mask=torch.ones_like(probe)).logits
                         for path in (out, base))  # fmt: skip
    assert (saved - before).abs().max() > 0.1, "the comparison means nothing if training changed nothing"
    return kept["logits"], saved, kept["types"]


def test_law_4_merged_scores_like_what_was_trained(monkeypatch, tmp_path, toy, base, way):
    trained, saved, types = trained_and_saved(monkeypatch, tmp_path / "sft", toy[0], base, **WAYS[way])
    torch.testing.assert_close(saved, trained, rtol=1e-5, atol=1e-5)
    assert types == {torch.float32}
    assert "quantization_config" not in json.loads((tmp_path / "sft" / "config.json").read_text())
    assert load_model(tmp_path / "sft").dtype == torch.float32


@pytest.mark.parametrize("way", [name for name in WAYS if "nf4" in name])
def test_law_4_merged_scores_like_a_4_bit_base_under_bfloat16(monkeypatch, tmp_path, toy, way):
    """Products under autocast are rounded to 8 bits, those of the merged model are not."""
    pytest.importorskip("bitsandbytes", reason="nf4 needs bitsandbytes")
    options = {**WAYS[way], "precision": "bfloat16"}
    trained, saved, types = trained_and_saved(monkeypatch, tmp_path / "sft", *toy, **options)
    torch.testing.assert_close(saved, trained, rtol=0.1, atol=0.1)
    assert types == {torch.float32}, "Adam's steps are lost in bfloat16"


def test_an_interrupted_run_ends_as_if_it_had_not_been(monkeypatch, capsys, tmp_path, toy, base, way):
    fine_tune(tmp_path / "whole", toy[0], base, **OPTIONS, **WAYS[way])
    saved = start_and_kill(monkeypatch, tmp_path / "sft", (toy[0], base), 4, **WAYS[way])
    assert names(saved) == ["checkpoint-2", "checkpoint-4"]
    capsys.readouterr()
    fine_tune(tmp_path / "sft", toy[0], base, **OPTIONS, **WAYS[way])
    assert "continuing from checkpoint-4" in capsys.readouterr().err
    assert losses(tmp_path / "sft") == losses(tmp_path / "whole") and len(losses(tmp_path / "sft")) == 5
    assert same_weights(tmp_path / "sft", tmp_path / "whole")
    assert not (tmp_path / "sft" / SCRATCH).exists()


@pytest.mark.parametrize("train", ["lora", "sid_tokens"])
def test_sid_embeddings_get_gradients_if_embeddings_are_scaled_and_logits_capped(
    tokenizer, sid_table, vocabulary, train, tied
):
    config = sft_config("", "", "", train=train)
    model = weights.add_adapter(tiny_llm(len(tokenizer), "gemma2", tied), config, vocabulary)
    collator = HistoryCollator([4, 5], SidHistoryEncoder(sid_table, vocabulary), 0)
    with sid_loss_in_forward(model, vocabulary, "level"):
        model(**collator(list(build_dataset([np.arange(9)], 20, "every_item")))).loss.backward()
    rows = [parameter for name, parameter in model.named_parameters() if SID_ROWS in name]
    assert len(rows) == (1 if tied else 2) and all(parameter.grad.abs().sum() > 0 for parameter in rows)


def test_scale_of_lora_by_hand(tokenizer, vocabulary):
    config = sft_config("", "", "", lora_rank=4, lora_alpha=32)
    model = causal_lm(weights.add_adapter(tiny_llm(len(tokenizer)), config, vocabulary))
    assert model.model.layers[0].self_attn.q_proj.scaling == {"default": 32 / 4}


def test_a_bfloat16_base_stays_bfloat16(tmp_path, toy, sid_table):
    base = extended(tmp_path, sid_table, dtype=torch.bfloat16)
    for train in ("lora", "sid_tokens", "full"):
        fine_tune(tmp_path / train, toy[0], base, train=train)
        assert {tensor.dtype for tensor in weights_of(tmp_path / train).values()} == {torch.bfloat16}


def test_contract_peft_writes_trained_embeddings_when_it_merges(tokenizer, vocabulary):
    model = weights.add_adapter(tiny_llm(len(tokenizer)), sft_config("", "", ""), vocabulary)
    rows = next(p for name, p in model.named_parameters() if "trainable_tokens_delta" in name)
    torch.nn.init.ones_(rows)
    merged = causal_lm(model.merge_and_unload())
    weight = merged.get_output_embeddings().weight
    assert weight is merged.get_input_embeddings().weight
    assert (weight[vocabulary.token_range.start : vocabulary.token_range.stop] == 1).all()
