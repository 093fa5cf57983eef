"""Law 5: what dpo starts from is the reference, of every kind of model; and what is no start is refused."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from llmrec.model.checkpoint import load_model
from llmrec.runtime.manifest import MANIFEST, content_hash, sha256_file
from tests.conftest import tiny_llm, word_tokenizer
from tests.stages.test_dpo import log_of, optimise
from tests.support.extended import fine_tune, losses, weights_of


@pytest.fixture(scope="session")
def tuned_untied(toy, untied, tmp_path_factory):
    """`tuned` with an output matrix of its own; only read."""
    out = tmp_path_factory.mktemp("tuned_untied") / "sft"
    fine_tune(out, toy[0], untied, train="full", max_steps=30, learning_rate=5e-3, batch_size=24, max_history=10)
    return out


WAYS = [{}, {"loss": "dpo"}, {"gradient_checkpointing": True}, {"normalize_over": "children"},
        {"normalize_over": "vocabulary"}, {"precision": "bfloat16"}]  # fmt: skip


@pytest.mark.parametrize(("options", "tied"), [*((way, True) for way in WAYS), ({}, False)], ids=str)
def test_law_5_the_first_loss_is_ln_2(tmp_path, toy, tuned, tuned_untied, tied, options):
    """The reference is what sft left: no margin, no drift; and only LoRA trains, SID rows do not."""
    start = tuned if tied else tuned_untied
    optimise(tmp_path / "dpo", toy[0], start, negatives=1, max_steps=2, **options)
    first, second = (entry for entry in log_of(tmp_path / "dpo") if "loss" in entry)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["drift"] == pytest.approx(0, abs=1e-5) and first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert second["drift"] > 1e-3, "the comparison means nothing if training changed nothing"
    before, after = weights_of(start), weights_of(tmp_path / "dpo")
    assert before.keys() == after.keys() and ("lm_head.weight" in after) != tied
    assert any(not torch.equal(before[name], after[name]) for name in before)
    if "precision" not in options:  # which rounds what is frozen
        same = [name for name in before if torch.equal(before[name], after[name])]
        assert all(("embed" in name or "lm_head" in name or "norm" in name) == (name in same) for name in before)


def test_law_5_with_many_negatives_the_first_loss_is_ln_of_all(tmp_path, toy, tuned):
    optimise(tmp_path / "dpo", toy[0], tuned, negatives=3, max_steps=1)
    assert losses(tmp_path / "dpo")[0] == pytest.approx(math.log(4), abs=1e-6)


def test_law_5_also_of_a_model_with_dropout(tmp_path, toy, tuned):
    """Dropout of attention functions is off during training, and the saved model has it as before."""
    shutil.copytree(tuned, tmp_path / "sft")
    config = json.loads((tmp_path / "sft" / "config.json").read_text())
    (tmp_path / "sft" / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.5}))
    manifest = json.loads((tmp_path / "sft" / MANIFEST).read_text())
    manifest["files"]["config.json"] = content_hash(tmp_path / "sft" / "config.json")
    (tmp_path / "sft" / MANIFEST).write_text(json.dumps(manifest))
    optimise(tmp_path / "dpo", toy[0], tmp_path / "sft", negatives=1, max_steps=1)
    assert losses(tmp_path / "dpo")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert load_model(tmp_path / "dpo").config.attention_dropout == 0.5


def test_an_adapter_is_no_start(tmp_path, toy):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is an adapter, not a merged model"):
        optimise(tmp_path / "dpo", toy[0], tmp_path / "sft")


def test_a_base_that_was_never_fine_tuned_is_no_start(tmp_path, toy):
    with pytest.raises(ValueError, match="the output of `llmrec sft` or `llmrec alternate` or"):
        optimise(tmp_path / "dpo", *toy)


def seal(directory):
    """Let a manifest have the hashes of its files as they are now."""
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"] = {name: sha256_file(directory / name) for name in manifest["files"]}
    (directory / "manifest.json").write_text(json.dumps(manifest))


def test_a_reference_on_another_vocabulary(tmp_path, toy, tuned):
    """A tokenizer that reads the tokens otherwise, and a model that has no rows for them."""
    shutil.copytree(tuned, tmp_path / "sft")
    word_tokenizer().save_pretrained(tmp_path / "sft")
    with pytest.raises(ValueError, match="was changed since `llmrec sft` wrote it"):
        optimise(tmp_path / "dpo", toy[0], tmp_path / "sft")
    seal(tmp_path / "sft")
    with pytest.raises(ValueError, match="it does not belong to this checkpoint"):
        optimise(tmp_path / "dpo", toy[0], tmp_path / "sft")
    shutil.copytree(tuned, tmp_path / "rows")
    tiny_llm(20).save_pretrained(tmp_path / "rows")
    seal(tmp_path / "rows")
    with pytest.raises(ValueError, match="The model has 20 token rows but the SID tokens end at"):
        optimise(tmp_path / "dpo", toy[0], tmp_path / "rows")
    assert not (tmp_path / "dpo").exists() and not (tmp_path / "dpo.partial").exists()


def test_an_oracle_needs_pairs(tmp_path, toy, tuned):
    row = {"history": ["item-0"], "target": "item-1", "negatives": ["item-7"], "oracle": [0.7]}
    (tmp_path / "file.jsonl").write_text("\n".join([json.dumps(row)] * 8))
    with pytest.raises(ValueError, match="set loss to dpo"):
        optimise(tmp_path / "dpo", toy[0], tuned, preferences=str(tmp_path / "file.jsonl"))
    optimise(tmp_path / "dpo", toy[0], tuned, preferences=str(tmp_path / "file.jsonl"), loss="dpo", max_steps=1)
    assert losses(tmp_path / "dpo")[0] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(("kind", "message"), [("FSDP", "dpo trains a LoRA alone"), ("DEEPSPEED", "use DeepSpeed")])
def test_weights_that_are_shared_out_are_refused(monkeypatch, tmp_path, toy, tuned, kind, message):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(ValueError, match=f"{message}.*recipes/accelerate/ddp.yaml"):
        optimise(tmp_path / "dpo", toy[0], tuned)
