"""Validation during training: metrics equal those of `llmrec evaluate`, the best step is kept, resumption is exact."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Trainer

from llmrec.configs import EvaluateConfig
from llmrec.data.catalog import Catalog
from llmrec.evaluation.learning import ITEMS_NDCG, NDCG, SECONDS, VALIDATION_SECONDS, points_of_log
from llmrec.model.backbone import evaluation_mode
from llmrec.model.checkpoint import SidConfig, load_tokenizer
from llmrec.runtime.manifest import read_manifest
from llmrec.runtime.stage_directory import SCRATCH
from llmrec.stages import evaluate
from llmrec.stages import sft as stage
from llmrec.training import validation
from llmrec.training.checkpoints import corruption, numbered
from llmrec.training.trainer import SidTrainer
from tests.support.extended import extended, fine_tune, losses, same_weights

# A step is an epoch, of two forward passes.
OPTIONS = {"max_steps": 12, "eval_steps": 2, "batch_size": 24, "micro_batch_size": 12, "max_history": 10,
           "learning_rate": 1e-2, "dropout": 0.1, "scheduler": "constant"}  # fmt: skip
STOPPING = {**OPTIONS, "patience": 2}
PEAK = {2: 0.1, 4: 0.3, 6: 0.5, 8: 0.4, 10: 0.5, 12: 0.6}  # ndcg that is said of a step, so that the best is known


def fine_tune_past_the_best(out: Path, toy, **options) -> dict:
    """Run `fine_tune` with the validation metric of each step replaced by PEAK."""
    judge = validation.Validation.validate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            validation.Validation, "validate", lambda self, state: {**judge(self, state), NDCG: PEAK[state.global_step]}
        )
        return fine_tune(out, *toy, **options)


def log_of(out: Path) -> list[dict]:
    return json.loads((out / "training_log.json").read_text())


def curve(out: Path) -> list[tuple[int, float]]:
    """Step and ndcg of every evaluation of a finished run."""
    return [(entry["step"], entry[NDCG]) for entry in log_of(out) if NDCG in entry]


def counts_of(out: Path) -> dict:
    return read_manifest(out)["counts"]


def trainer_directory(out: Path) -> Path:
    return out.with_name(out.name + ".partial") / SCRATCH / "trainer"


def interrupt(monkeypatch, name: str, call: int, out: Path, toy, **options) -> None:
    """Run until a method of the trainer, or `merge`, is called for the given time."""
    owner = stage if name == "merge" else SidTrainer
    original, calls = getattr(owner, name), []

    def dying(*arguments, **keywords):
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(KeyboardInterrupt):
            fine_tune_past_the_best(out, toy, **options)


@pytest.fixture(scope="module")
def stopped(toy, tmp_path_factory) -> Path:
    """A run that early stopping ended at step 10, with the best step 6; only read."""
    out = tmp_path_factory.mktemp("stopped") / "sft"
    fine_tune_past_the_best(out, toy, **STOPPING)
    return out


def evaluation(out: Path, toy, model: Path, **options) -> EvaluateConfig:
    """Config of an evaluation on the validation split, by default on the CPU and without baselines."""
    defaults = {"split": "valid", "device": "cpu", "baselines": []}
    return EvaluateConfig(out=str(out), catalog=str(toy[0]), model=str(model), **{**defaults, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"train": "lora"},
        {"train": "lora", "normalize_over": "vocabulary", "eval_examples": 9},
        {"train": "full"},
        {"train": "sid_tokens"},
    ],
    ids=str,
)
def test_validation_metrics_equal_those_of_evaluate(tmp_path, toy, options):
    """Two routes: adapter and base between two steps, and the merged model that was saved."""
    counts = fine_tune(tmp_path / "sft", *toy, **{**OPTIONS, "max_steps": 6}, **options)
    config = evaluation(tmp_path / "eval", toy, tmp_path / "sft", max_examples=options.get("eval_examples"))
    metrics = evaluate.main(config)["systems"]["ours"]["plain"]
    best = next(entry for entry in log_of(tmp_path / "sft") if entry.get(NDCG) == counts["valid_ndcg@10"])
    assert (best["step"], best["step"]) == (counts["best_step"], counts["saved_step"])
    assert metrics["ndcg@10"] == pytest.approx(best[NDCG], abs=1e-9)
    assert metrics["recall@10"] == pytest.approx(best["eval_recall@10"], abs=1e-9)
    assert 0 < best[NDCG] < 1


def test_item_rows_have_a_learning_curve_of_their_own(tmp_path, toy, sid_table):
    base, out = extended(tmp_path, sid_table, item_rows=True), tmp_path / "sft"
    saved = fine_tune(out, toy[0], base, **{**OPTIONS, "max_steps": 6})["saved_step"]
    log = [entry for entry in log_of(out) if NDCG in entry]
    assert [entry["step"] for entry in log] == [2, 4, 6] and all(ITEMS_NDCG in entry for entry in log)
    curves = {}
    for rank in ("sid", "items", "mixture"):
        config = evaluation(tmp_path / f"by-{rank}", toy, out)
        metrics = evaluate.main(dataclasses.replace(config, rank=rank))
        curves[rank] = metrics["learning"]["ours"]
        if rank == "items":
            kept = next(entry for entry in log if entry["step"] == saved)
            assert metrics["systems"]["ours"]["plain"]["ndcg@10"] == pytest.approx(kept[ITEMS_NDCG], abs=1e-9)
    assert [point["ndcg"] for point in curves["sid"]["curve"]] == [entry[NDCG] for entry in log]
    assert [point["ndcg"] for point in curves["items"]["curve"]] == [entry[ITEMS_NDCG] for entry in log]
    assert curves["mixture"] is None


def test_validation_draws_the_examples_of_evaluate(toy):
    catalog = Catalog.load(toy[0])
    config = EvaluateConfig(out="", catalog="", model="", split="valid", max_examples=5, seed=3)
    rows, places = evaluate.held_out(catalog, config.split)
    expected, _ = evaluate.sample(rows, places, config.max_examples, config.seed)
    drawn = rows.take(rows.sample(5, 3))
    assert drawn.user_ids == expected.user_ids and (drawn.targets == expected.targets).all()
    assert len(rows.sample(2000, 3)) == len(rows)


def test_validation_log_by_hand(stopped):
    """An epoch has the training sequences of 21 users as targets, sizes 2 3 4 5 6 7 2 …, and takes one step."""
    targets = sum(2 + user % 6 for user in range(21))
    log = [entry for entry in log_of(stopped) if NDCG in entry]
    points = points_of_log(log)
    assert [point["supervised"] for point in points] == [targets * entry["step"] for entry in log]
    seconds = [point["seconds"] for point in points]
    assert seconds[0] > 0 and seconds == sorted(seconds)
    assert sum(entry["eval_runtime"] for entry in log) < seconds[-1]


@pytest.mark.parametrize(("train", "tied"), [("lora", True), ("lora", False), ("sid_tokens", True), ("full", True)])
def test_the_best_step_is_saved(tmp_path, toy, untied, train, tied):
    """Bit for bit, SID embeddings included: a run that ends at that step, without validation, has the same weights."""
    line = (toy[0], toy[1] if tied else untied)
    counts = fine_tune_past_the_best(tmp_path / "judged", line, **{**OPTIONS, "max_steps": 10}, train=train)
    assert (counts["steps"], counts["best_step"], counts["valid_ndcg@10"], counts["saved_step"]) == (10, 6, 0.5, 6)
    short = {**OPTIONS, "eval_steps": None, "max_steps": 6}
    assert "best_step" not in fine_tune(tmp_path / "short", *line, **short, train=train)
    assert same_weights(tmp_path / "judged", tmp_path / "short")
    assert losses(tmp_path / "judged")[:6] == losses(tmp_path / "short")


@pytest.mark.parametrize(("missing", "is_told"), [(["lm_head.weight"], False), (["model.norm.weight"], True)])
def test_contract_tied_weights_are_not_reported_missing(monkeypatch, missing, is_told):
    told = []
    monkeypatch.setattr(Trainer, "_issue_warnings_after_load", lambda self, result: told.append(result.missing_keys))
    trainer = object.__new__(SidTrainer)
    trainer.model = SimpleNamespace(all_tied_weights_keys={"lm_head.weight": "model.embed_tokens.weight"})
    trainer._issue_warnings_after_load(SimpleNamespace(missing_keys=missing, unexpected_keys=[]))
    assert told == ([missing] if is_told else [])


def test_early_stopping(stopped):
    """A second step that is as good as the best is not a better one."""
    assert (counts_of(stopped)["steps"], counts_of(stopped)["best_step"]) == (10, 6)
    assert curve(stopped) == [(step, PEAK[step]) for step in (2, 4, 6, 8, 10)]


def test_speed_excludes_validation_and_earlier_steps(tmp_path, toy):
    """Each of 5 validations pretends to take -10 s, so that seconds show; 10 of 12 steps, an epoch each, were taken."""
    judge = validation.Validation.validate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            validation.Validation,
            "validate",
            lambda self, state: {**judge(self, state), NDCG: PEAK[state.global_step], VALIDATION_SECONDS: -10.0},
        )
        counts = fine_tune(tmp_path / "sft", *toy, **STOPPING)
    sid_config, table, _ = SidConfig.load(tmp_path / "sft")
    prefix = len(sid_config.prompt.prefix(load_tokenizer(tmp_path / "sft")))
    epoch = sum(prefix + table.num_levels * (2 + user % 6) for user in range(21))
    assert 50 <= counts["train_seconds"] < 60
    assert counts["tokens_per_second"] == pytest.approx(epoch * 10 / counts["train_seconds"], rel=0.02)


def test_the_last_step_is_validated(tmp_path, toy):
    fine_tune(tmp_path / "sft", *toy, **{**OPTIONS, "max_steps": 3})
    assert [step for step, _ in curve(tmp_path / "sft")] == [2, 3]


def test_the_last_weights_are_saved_if_no_target_is_found(monkeypatch, capsys, tmp_path, toy):
    monkeypatch.setattr(validation, "ndcg", lambda position, k: np.zeros(len(position.start)))
    options = {**OPTIONS, "max_steps": 4}
    counts = fine_tune(tmp_path / "blind", *toy, **options)
    assert "no target was found at any step" in capsys.readouterr().err
    assert (counts["best_step"], counts["valid_ndcg@10"], counts["saved_step"]) == (None, 0.0, 4)
    fine_tune(tmp_path / "plain", *toy, **{**options, "eval_steps": None})
    assert same_weights(tmp_path / "blind", tmp_path / "plain")


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [{"train": "lora"}, {"train": "full"}, pytest.param({"compile": True}, marks=pytest.mark.slow)],  # 90 s
    ids=str,
)
def test_validation_on_a_gpu(tmp_path, toy, options):
    """Under autocast, with training that may be captured; the bfloat16 of the merged model rounds differently."""
    options = {**OPTIONS, "max_steps": 6, "dropout": 0.0, "device": "auto", **options}
    counts = fine_tune(tmp_path / "judged", *toy, **options)
    fine_tune(tmp_path / "plain", *toy, **{**options, "eval_steps": None})
    assert losses(tmp_path / "judged") == pytest.approx(losses(tmp_path / "plain"), rel=1e-2)
    metrics = evaluate.main(evaluation(tmp_path / "eval", toy, tmp_path / "judged", device="auto"))
    assert metrics["systems"]["ours"]["plain"]["ndcg@10"] == pytest.approx(counts["valid_ndcg@10"], abs=0.05)
    assert counts["valid_ndcg@10"] == max(ndcg for _, ndcg in curve(tmp_path / "judged"))


@pytest.mark.parametrize(
    "options",
    [{"gradient_checkpointing": True}, {"precision": "bfloat16"}, {"train": "full", "precision": "bfloat16"}],
    ids=str,
)
def test_validation_changes_no_step(tmp_path, toy, options):
    """With dropout: validation could draw its random numbers, or leave its mode changed."""
    options = {**OPTIONS, "max_steps": 4, **options}
    fine_tune(tmp_path / "judged", *toy, **{**options, "eval_steps": 1})
    fine_tune(tmp_path / "plain", *toy, **{**options, "eval_steps": None})
    assert losses(tmp_path / "judged") == losses(tmp_path / "plain")


def test_validation_changes_no_step_with_4_bit_weights(tmp_path, toy):
    """For inference on a CPU bitsandbytes changes the layout of 4-bit weights, and a training step then fails."""
    pytest.importorskip("bitsandbytes")
    options = {**OPTIONS, "max_steps": 4, "quantization": "nf4", "precision": "bfloat16"}
    fine_tune(tmp_path / "judged", *toy, **{**options, "eval_steps": 1})
    fine_tune(tmp_path / "plain", *toy, **{**options, "eval_steps": None})
    assert losses(tmp_path / "judged") == losses(tmp_path / "plain")


def test_validation_runs_under_the_autocast_of_training(monkeypatch, tmp_path, toy):
    seen, judge = [], validation.Validation.validate

    def watched(self, state):
        seen.append((torch.is_autocast_enabled("cpu"), any(m.training for m in self.ranker.model.modules())))
        return judge(self, state)

    monkeypatch.setattr(validation.Validation, "validate", watched)
    for precision in ("bfloat16", "float32"):
        fine_tune(tmp_path / precision, *toy, **{**OPTIONS, "max_steps": 2, "precision": precision})
    assert seen == [(True, True), (False, True)]


def test_evaluation_mode_restores_every_module():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(1, 1)))
    model[1].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == before == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("name", "call"),
    [("evaluate", 2), ("training_step", 18), ("_save_checkpoint", 3), ("_load_best_model", 1), ("merge", 1)],
)
def test_a_resumed_run_chooses_the_same_best_step(monkeypatch, tmp_path, toy, stopped, name, call):
    """Interrupted while it waits for a better step, or after early stopping, when it must not train further."""
    out = tmp_path / "sft"
    interrupt(monkeypatch, name, call, out, toy, **STOPPING)
    fine_tune_past_the_best(out, toy, **STOPPING)
    assert curve(out) == curve(stopped) and losses(out) == losses(stopped)
    assert same_weights(out, stopped)
    chosen = ("steps", "best_step", "valid_ndcg@10", "saved_step")
    assert all(counts_of(out)[key] == counts_of(stopped)[key] for key in chosen)
    seconds = [entry[SECONDS] for entry in log_of(out) if SECONDS in entry]
    assert seconds == sorted(seconds)


@pytest.fixture(scope="module")
def waiting(toy, tmp_path_factory) -> Path:
    """A run that was interrupted after early stopping, with the best step 6 and the last step 10; to be copied."""
    out = tmp_path_factory.mktemp("waiting") / "sft"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, "merge", 1, out, toy, **STOPPING)
    return out.with_name("sft.partial")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


SPOIL = {
    "deleted": (shutil.rmtree, "it is not there any more"),
    "one bit": (lambda best: flip(best / "adapter_model.safetensors"), "adapter_model.safetensors has changed"),
}


@pytest.mark.parametrize("kind", SPOIL)
def test_checkpoints_whose_best_step_is_corrupt_are_passed_over(capsys, tmp_path, toy, stopped, waiting, kind):
    shutil.copytree(waiting, tmp_path / "sft.partial")
    spoil, reason = SPOIL[kind]
    checkpoints = trainer_directory(tmp_path / "sft")
    assert {path.name: corruption(path) for path in numbered(checkpoints)} == dict.fromkeys(
        ("checkpoint-10", "checkpoint-8", "checkpoint-6")
    )
    spoil(checkpoints / "checkpoint-6")
    fine_tune_past_the_best(tmp_path / "sft", toy, **STOPPING)
    said = capsys.readouterr().err
    for step in (10, 8):
        passed = (
            f"checkpoint-{step} is passed over and removed: the best step before it is in checkpoint-6, and {reason}"
        )
        assert passed in said
    assert "training starts again" in said
    assert same_weights(tmp_path / "sft", stopped) and curve(tmp_path / "sft") == curve(stopped)


@pytest.mark.parametrize("kind", SPOIL)
def test_a_corrupt_best_step_is_not_replaced_by_another(monkeypatch, tmp_path, toy, stopped, kind):
    spoil, reason = SPOIL[kind]
    load = SidTrainer._load_best_model

    def spoiled(self):
        spoil(Path(self.state.best_model_checkpoint))
        load(self)

    with monkeypatch.context() as patch:
        patch.setattr(SidTrainer, "_load_best_model", spoiled)
        with pytest.raises(
            ValueError, match=f"holds the best weights, those of step 6, .*{reason}.*same command again"
        ):
            fine_tune_past_the_best(tmp_path / "sft", toy, **STOPPING)
    fine_tune_past_the_best(tmp_path / "sft", toy, **STOPPING)
    assert same_weights(tmp_path / "sft", stopped)


def test_a_moved_partial_directory_is_resumed(tmp_path, toy, stopped, waiting):
    """The state of the Trainer names the best step by a path that no longer exists."""
    shutil.copytree(waiting, tmp_path / "elsewhere.partial")
    fine_tune_past_the_best(tmp_path / "elsewhere", toy, **STOPPING)
    assert same_weights(tmp_path / "elsewhere", stopped)


def command(out: Path, toy, **options) -> list[str]:
    """Command line of `fine_tune(out, *toy, **options)`."""
    shape = {"lora_rank": 4, "warmup_steps": 0, "logging_steps": 1, "device": "cpu"}
    pairs = {"out": out, "catalog": toy[0], "model": toy[1], **shape, **options}.items()
    return ["sft", *(str(part) for name, value in pairs for part in (f"--{name.replace('_', '-')}", value))]


def test_killed_during_validation(tmp_path, toy, forks):
    fine_tune(tmp_path / "undisturbed", *toy, **OPTIONS)
    dies_in = ("llmrec.training.validation.evaluate", 4)
    forks.start(command(tmp_path / "killed", toy, **OPTIONS), tmp_path / "stderr", die_in=dies_in)
    assert forks.wait() == -signal.SIGKILL, (tmp_path / "stderr").read_text()
    assert numbered(trainer_directory(tmp_path / "killed"))[0].name == "checkpoint-6"
    fine_tune(tmp_path / "killed", *toy, **OPTIONS)
    assert same_weights(tmp_path / "killed", tmp_path / "undisturbed")
    assert curve(tmp_path / "killed") == curve(tmp_path / "undisturbed")
    assert counts_of(tmp_path / "killed")["saved_step"] == counts_of(tmp_path / "undisturbed")["saved_step"]


def test_two_processes_choose_the_same_best_step(tmp_path, toy, forks):
    """Each ranks half of the examples; up to rounding, the choice is that of one process."""
    options = {**STOPPING, "dropout": 0.0}
    alone = fine_tune(tmp_path / "one", *toy, **options)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    pids = [
        forks.start(command(tmp_path / "two", toy, **options), tmp_path / f"stderr-{rank}",
                    environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""})
        for rank in range(2)
    ]  # fmt: skip
    assert [forks.wait(pid) for pid in pids] == [0, 0], (tmp_path / "stderr-0").read_text()
    together = counts_of(tmp_path / "two")
    assert all(together[key] == alone[key] for key in ("steps", "best_step", "saved_step"))
    assert curve(tmp_path / "two") == pytest.approx(np.array(curve(tmp_path / "one")))
