"""DPO and softmax-DPO: values by hand, extremes, law 5 over every way and tied and untied models, resuming, hooks."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import math

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import Trainer

from llmrec.cli import main
from llmrec.configs import DpoConfig
from llmrec.evaluation.learning import NDCG
from llmrec.model.checkpoint import SidConfig
from llmrec.recommender import Recommender
from llmrec.runtime.manifest import read_manifest, verify
from llmrec.runtime.stage_directory import SCRATCH
from llmrec.stages import dpo as stage
from llmrec.training import validation
from llmrec.training.dpo import trainer as trainer_file
from llmrec.training.dpo.trainer import SidDPOTrainer, preference_loss, target_nll
from tests.support.extended import losses, same_weights
from tests.training.test_checkpoints import names

VERSIONS = {name: importlib.metadata.version(name) for name in ("peft", "transformers", "accelerate")}
OPTIONS = {"batch_size": 8, "micro_batch_size": 4, "warmup_steps": 0, "logging_steps": 1, "max_steps": 4,
           "lora_rank": 4, "learning_rate": 1e-2, "save_steps": 1000, "device": "cpu"}  # fmt: skip
ONCE = torch.ones(1, 1, dtype=torch.bool)


def optimise(out, catalog, model, **options) -> dict:
    return stage.main(DpoConfig(out=str(out), catalog=str(catalog), model=str(model), **{**OPTIONS, **options}))


def log_of(out) -> list[dict]:
    return json.loads((out / "training_log.json").read_text())


def test_values_by_hand():
    """Target ahead by 1 of the first negative and by 2 of the second, beta 0.5: margins 0.5 and 1."""
    ratios, smoothing = torch.tensor([[1.0, 0.0, -1.0]]), torch.zeros(1, 2)
    both = torch.ones(1, 2, dtype=torch.bool)
    softmax, margins = preference_loss(ratios, both, smoothing, 0.5, "sdpo")
    assert margins.tolist() == [[0.5, 1.0]]
    assert float(softmax) == pytest.approx(math.log(1 + math.exp(-0.5) + math.exp(-1)))  # 0.6803
    pairs, _ = preference_loss(ratios, both, smoothing, 0.5, "dpo")
    assert float(pairs) == pytest.approx((math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-1))) / 2)
    unsure, _ = preference_loss(ratios, both, torch.tensor([[0.25, 0.0]]), 0.5, "dpo")
    first = 0.75 * math.log1p(math.exp(-0.5)) + 0.25 * math.log1p(math.exp(0.5))
    assert float(unsure) == pytest.approx((first + math.log1p(math.exp(-1))) / 2)
    one, _ = preference_loss(ratios, torch.tensor([[True, False]]), smoothing, 0.5, "sdpo")
    assert float(one) == pytest.approx(math.log1p(math.exp(-0.5))), "an absent negative counts nothing"


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_one_negative_makes_both_losses_equal_to_the_papers_formula(beta):
    ratios = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 5
    is_pair, smoothing = ONCE.expand(50, 1), torch.zeros(50, 1)
    softmax, pairs = (preference_loss(ratios, is_pair, smoothing, beta, name)[0] for name in ("sdpo", "dpo"))
    torch.testing.assert_close(softmax, pairs)
    torch.testing.assert_close(pairs, -torch.nn.functional.logsigmoid(beta * (ratios[:, 0] - ratios[:, 1])))
    written_out = -torch.log(torch.sigmoid(-torch.log(torch.exp(beta * (ratios[:, 1:] - ratios[:, :1])).sum(1))))
    torch.testing.assert_close(softmax, written_out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["sdpo", "dpo"])
@pytest.mark.parametrize("gap", [-1e4, -120.0, 0.0, 95.0, 1e4])
def test_extreme_margins_neither_overflow_nor_lose_their_gradient(loss, gap):
    """A negative ahead by 120 costs 120 and pulls with all of beta; one behind as far costs nothing."""
    ratios = torch.tensor([[gap, 0.0, 0.0]], requires_grad=True)
    value, _ = preference_loss(ratios, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2), 1.0, loss)
    value.sum().backward()
    assert value.isfinite().all() and ratios.grad.isfinite().all()
    if gap <= -120:
        assert float(value.detach()) == pytest.approx(-gap + (math.log(2) if loss == "sdpo" else 0), rel=1e-5)
        assert float(ratios.grad[0, 0]) == pytest.approx(-1, rel=1e-3)
    if gap >= 95:
        assert float(value.detach()) == pytest.approx(0, abs=1e-30)


def test_what_the_stage_leaves(capsys, tmp_path, toy, tuned):
    flags = ["--catalog", toy[0], "--model", str(tuned), "--out", str(tmp_path / "dpo"), "--device", "cpu"]
    options = ["--batch-size", "8", "--max-steps", "3", "--negative-sources", "beam", "sibling", "popular", "random",
               "--negatives", "4", "--logging-steps", "1"]  # fmt: skip
    assert main(["dpo", *flags, *options, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["steps"] == 3 and counts["prompts"] == 16, "21 users have a last item; two batches of 8"
    assert read_manifest(verify(tmp_path / "dpo", "dpo"))["counts"] == {k: v for k, v in counts.items() if k != "out"}
    sid_config, table, details = SidConfig.load(tmp_path / "dpo")
    assert sid_config == SidConfig.load(tuned)[0] and table.sha256 == SidConfig.load(tuned)[1].sha256
    assert [list(phase) for phase in details["earlier"]] == [["sft", "counts"]]
    assert "sft" not in details and details["dpo"]["negatives"] == 4
    card = (tmp_path / "dpo" / "README.md").read_text()
    assert "- stage: sft" in card and "- stage: dpo" in card
    figures = json.loads((tmp_path / "dpo" / "hardness.json").read_text())
    assert set(figures) <= {"beam", "sibling", "popular", "random"} and "beam_rank" in figures["beam"]
    entry = next(entry for entry in log_of(tmp_path / "dpo") if "loss" in entry)
    assert {"rewards/margins", "rewards/accuracies", "logps/chosen", "drift", "entropy"} <= set(entry)
    assert Recommender.from_pretrained(tmp_path / "dpo", device="cpu").recommend([["item-0"]], k=2)[0][0]
    evaluate = ["evaluate", "--catalog", toy[0], "--model", str(tmp_path / "dpo"), "--out", str(tmp_path / "eval")]
    assert main([*evaluate, "--device", "cpu", "--max-examples", "4", "--baselines"]) == 0


def test_margins_grow_where_there_is_something_to_learn(tmp_path, toy, tuned):
    optimise(tmp_path / "dpo", toy[0], tuned, targets="every_item", max_steps=12, beta=0.3)
    log = [entry for entry in log_of(tmp_path / "dpo") if "loss" in entry]
    assert np.mean([entry["rewards/margins"] for entry in log[-3:]]) > 0.1
    assert np.mean([entry["loss"] for entry in log[-3:]]) < log[0]["loss"] - 0.1


@pytest.mark.parametrize("loss", ["sdpo", "dpo"])
def test_the_likelihood_of_the_target_is_added_with_its_weight(monkeypatch, tmp_path, toy, tuned, loss):
    """The first loss is ln (1 + 3) or ln 2, and twice the mean -log p of three codes; weight 0 computes nothing."""
    options = {"loss": loss, "max_steps": 3, "micro_batch_size": 8}
    optimise(tmp_path / "weighted", toy[0], tuned, sft_weight=2.0, **options)
    monkeypatch.setattr(trainer_file, "target_nll", None)
    for name, weight in (("off", {"sft_weight": 0.0}), ("default", {})):
        optimise(tmp_path / name, toy[0], tuned, **weight, **options)
    weighted, off = ([e for e in log_of(tmp_path / name) if "loss" in e] for name in ("weighted", "off"))
    assert weighted[0]["nll_loss"] == pytest.approx(-weighted[0]["logps/chosen"] / 3, rel=1e-5)
    assert weighted[0]["nll_loss"] > 0.01 and not any("nll_loss" in entry for entry in off)
    assert off[0]["loss"] == pytest.approx(math.log(4 if loss == "sdpo" else 2), rel=1e-5)
    assert weighted[0]["loss"] == pytest.approx(off[0]["loss"] + 2 * weighted[0]["nll_loss"], rel=1e-5)
    assert weighted[-1]["logps/chosen"] > off[-1]["logps/chosen"], "targets gain more than without it"
    assert losses(tmp_path / "off") == losses(tmp_path / "default")
    assert same_weights(tmp_path / "off", tmp_path / "default")


def test_the_likelihood_of_sids_of_several_lengths_by_hand():
    """Means of three codes and of two; the gradient of a code is one over the length of its SID."""
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -0.5, 0.0]], requires_grad=True)
    nll = target_nll(log_probs, torch.tensor([[True, True, True], [True, True, False]]))
    assert nll.tolist() == [2.0, 0.75]
    nll.sum().backward()
    assert log_probs.grad[:, 0].tolist() == pytest.approx([-1 / 3, -1 / 2])


def test_the_seed_decides(tmp_path, toy, tuned):
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        optimise(tmp_path / name, toy[0], tuned, seed=seed, max_steps=2)
    assert losses(tmp_path / "one") == losses(tmp_path / "again") != losses(tmp_path / "other")
    assert same_weights(tmp_path / "one", tmp_path / "again")


def test_gradient_accumulation_equals_one_batch(tmp_path, toy, tuned):
    for micro in (8, 2):
        optimise(tmp_path / str(micro), toy[0], tuned, micro_batch_size=micro)
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "8"), rel=1e-4)


def test_mined_negatives_can_be_given_back(tmp_path, toy, tuned):
    optimise(tmp_path / "mined", toy[0], tuned)
    optimise(tmp_path / "given", toy[0], tuned, preferences=str(tmp_path / "mined" / "preferences.parquet"))
    assert losses(tmp_path / "mined") == losses(tmp_path / "given")
    assert not (tmp_path / "given" / "preferences.parquet").exists()


def test_where_no_step_is_better_the_start_is_saved(monkeypatch, capsys, tmp_path, toy, tuned):
    validate = validation.Validation.validate
    worse = {0: 0.5, 2: 0.4, 4: 0.5, 6: 0.3}
    monkeypatch.setattr(
        validation.Validation, "validate", lambda self, state: {**validate(self, state), NDCG: worse[state.global_step]}
    )
    counts = optimise(tmp_path / "dpo", toy[0], tuned, eval_steps=2, patience=2, max_steps=6)
    assert (counts["steps"], counts["best_step"], counts["saved_step"], counts["valid_ndcg@10"]) == (4, 0, 0, 0.5)
    assert same_weights(tmp_path / "dpo", tuned)
    told = capsys.readouterr().err
    stage.show(counts)
    assert "validation never improved on the initial weights" in capsys.readouterr().out
    assert "rewards/accuracies 0.0000, rewards/margins 0.0000, drift 0.0000" in told
    assert [entry["step"] for entry in log_of(tmp_path / "dpo") if NDCG in entry] == [0, 2, 4]


@pytest.mark.parametrize("eval_steps", [None, 2])
def test_an_interrupted_run_ends_as_if_it_had_not_been(monkeypatch, capsys, tmp_path, toy, tuned, eval_steps):
    options = {"max_steps": 5, "save_steps": 2, "eval_steps": eval_steps}
    optimise(tmp_path / "whole", toy[0], tuned, **options)
    step = SidDPOTrainer.training_step

    def dying(self, *arguments, **keywords):
        if self.state.global_step >= 4:
            raise KeyboardInterrupt
        return step(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(SidDPOTrainer, "training_step", dying)
        with pytest.raises(KeyboardInterrupt):
            optimise(tmp_path / "dpo", toy[0], tuned, **options)
    partial = tmp_path / "dpo.partial"
    assert "checkpoint-4" in names(partial / SCRATCH / "trainer") and (partial / "preferences.parquet").is_file()
    monkeypatch.setattr(stage, "mine", None)  # what was mined is read
    capsys.readouterr()
    optimise(tmp_path / "dpo", toy[0], tuned, **options)
    assert "continuing from checkpoint-4" in capsys.readouterr().err
    assert losses(tmp_path / "dpo") == losses(tmp_path / "whole") and len(losses(tmp_path / "dpo")) == 5
    assert same_weights(tmp_path / "dpo", tmp_path / "whole")


def test_contract_hooks_of_the_trainer(monkeypatch, tmp_path, toy, tuned):
    """Methods of transformers' Trainer that are overridden, none of them private; and PEFT puts on one LoRA alone."""
    hooks = {"compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"], "log": ["logs", "start_time"]}
    for name, parameters in hooks.items():
        assert list(inspect.signature(getattr(Trainer, name)).parameters) == ["self", *parameters], VERSIONS
    ours = {name for name, value in vars(SidDPOTrainer).items() if inspect.isfunction(value)}
    assert ours & set(dir(Trainer)) == {"__init__", *hooks}
    kept, original = [], stage.train

    def watched(trainer, directory):
        trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
        assert trained and all("lora_" in name for name in trained), VERSIONS
        kept.append(trainer)
        return original(trainer, directory)

    monkeypatch.setattr(stage, "train", watched)
    optimise(tmp_path / "dpo", toy[0], tuned, max_steps=1)
    trainer = kept[0]
    assert isinstance(trainer.model, PeftModel) and list(trainer.model.peft_config) == ["default"], VERSIONS
    assert trainer.train_dataset.column_names == ["history", "items", "smoothing"], VERSIONS
    assert "forward" not in vars(trainer.model.get_base_model()), VERSIONS
