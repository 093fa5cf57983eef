"""Warnings of choices that spoil a run: each where it is due, with its remedy, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmrec.cli import main
from llmrec.configs import SftConfig
from llmrec.evaluation.learning import NDCG
from llmrec.model.checkpoint import SidConfig
from llmrec.model.origin import base_is_random, is_untrained
from llmrec.runtime.manifest import read_manifest
from llmrec.training import validation
from llmrec.training.regime import warning_of_rate, warnings_of
from tests.conftest import tiny_llm
from tests.support.extended import fine_tune, write_llm, write_sid

RANDOM, PRETRAINED = {"base_is_random": True}, {"base_is_random": False}
IN_FULL, LORA = {"sft": {"train": "full"}, "counts": {}}, {"sft": {"train": "lora"}, "counts": {}}


def sft(**options) -> SftConfig:
    return SftConfig(out="out", catalog="catalog", model="model", **options)


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "mistral", "qwen2", "gemma2"])
def test_random_weights_are_known_by_their_norms(architecture):
    """Gemma's norms start with 0, Qwen2 has biases; one step of training moves them."""
    model = tiny_llm(40, architecture)
    assert is_untrained(model)
    ids = torch.arange(8).unsqueeze(0)
    model(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not is_untrained(model)


def test_a_model_without_norms_to_judge_by_counts_as_trained():
    model = tiny_llm(40)
    for module in model.modules():
        if getattr(module, "weight", None) is not None and module.weight.dim() == 1:
            module.weight = None
    assert not is_untrained(model)


def test_older_checkpoints_say_it_by_the_name_of_the_base():
    assert base_is_random({"base_model": "micro"})
    assert not base_is_random({"base_model": "HuggingFaceTB/SmolLM2-135M"}) and not base_is_random({})
    assert not base_is_random({"base_model": "micro", "base_is_random": False})


@pytest.mark.parametrize(
    ("options", "details", "phases", "found"),
    [
        ({"train": "full", "dropout": 0.1}, PRETRAINED, [], ["dropout is 0.1 on pretrained weights"]),
        ({"train": "lora", "dropout": 0.1}, PRETRAINED, [LORA], ["dropout is 0.1 on pretrained weights"]),
        ({"train": "full", "dropout": 0.1}, RANDOM, [IN_FULL], []),
        ({"train": "full"}, PRETRAINED, [], []),
        ({"train": "lora"}, PRETRAINED, [], []),
        ({"train": "lora"}, RANDOM, [], ["all but LoRA and the embeddings of the SID tokens stays random"]),
        ({"train": "sid_tokens"}, RANDOM, [LORA], ["all but the embeddings of the SID tokens stays random"]),
        ({"train": "lora", "dropout": 0.1}, RANDOM, [LORA, IN_FULL], []),
    ],
    ids=str,
)
def test_warnings_are_given_where_they_are_due(options, details, phases, found):
    warnings = warnings_of(sft(**options), details, phases)
    assert len(warnings) == len(found)
    for warning, text in zip(warnings, found, strict=True):
        assert text in warning and ("Set dropout to 0" in warning or "Set train to full" in warning)


def test_extend_tells_sft_whether_its_base_is_random(capsys, tmp_path, sid_table, toy):
    """The same directory twice: as it was initialised, and after its norms were trained."""
    llm = write_llm(tmp_path / "llm")
    for name, warned in (("random", "all but LoRA"), ("trained", "dropout is 0.1 on pretrained weights")):
        if name == "trained":
            model = AutoModelForCausalLM.from_pretrained(llm)
            model.model.norm.weight.data[0] = 1.5
            model.save_pretrained(llm)
        sid = write_sid(tmp_path / name / "sid", sid_table)
        argv = ["extend", "--sid", str(sid), "--model", str(llm), "--out", str(tmp_path / name / "base")]
        assert main(argv) == 0
        assert SidConfig.load(tmp_path / name / "base")[2]["base_is_random"] == (name == "random")
        capsys.readouterr()
        fine_tune(tmp_path / name / "sft", toy[0], tmp_path / name / "base", dropout=0.1, max_steps=1)
        told = [line for line in capsys.readouterr().err.splitlines() if "Set " in line]
        assert len(told) == 1 and told[0].startswith("sft: ") and warned in told[0]
        assert SidConfig.load(tmp_path / name / "sft")[2]["base_is_random"] == (name == "random")


@pytest.mark.parametrize(
    ("steps", "scheduler", "share", "warns"),
    [
        (20, "linear", 0.7, True),  # stopped at step 6 of 20, the rate having fallen by 6/20
        (7, "linear", 0.143, False),  # at step 6 of 7
        (6, "linear", None, False),  # at its end: nothing was cut off
        (20, "constant", 1.0, False),  # nothing would have fallen
    ],
)
def test_patience_that_cuts_a_schedule_off_is_told_and_recorded(
    monkeypatch, capsys, tmp_path, toy, tuned, steps, scheduler, share, warns
):
    validate = validation.Validation.validate
    monkeypatch.setattr(
        validation.Validation, "validate", lambda self, state: {**validate(self, state), NDCG: 1 / state.global_step}
    )
    options = {"eval_steps": 2, "patience": 2, "max_steps": steps, "scheduler": scheduler, "batch_size": 8}
    counts = fine_tune(tmp_path / "sft", toy[0], tuned, train="full", **options)
    assert (counts["steps"], counts["best_step"]) == (6, 2)
    assert counts.get("stopped_at_rate") == share == read_manifest(tmp_path / "sft")["counts"].get("stopped_at_rate")
    told = [line for line in capsys.readouterr().err.splitlines() if "patience ended the run" in line]
    assert len(told) == warns
    assert not warns or (told[0].startswith("sft: ") and "at 70% of the peak" in told[0] and "max_steps 6" in told[0])
    assert SidConfig.load(tmp_path / "sft")[2]["counts"].get("stopped_at_rate") == share


def test_a_fifth_of_the_peak_is_low_enough():
    config = sft(scheduler="cosine")
    assert warning_of_rate(config, 0.2, 10) is None and warning_of_rate(config, None, 10) is None
    assert "at 21% of the peak learning rate" in warning_of_rate(config, 0.21, 10)
