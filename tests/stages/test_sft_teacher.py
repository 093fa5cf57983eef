"""sft with a teacher: what it learns, exact off switches, resuming, every way to train, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmrec.baselines.queries import Queries
from llmrec.configs import TokenizeConfig
from llmrec.recommender import Recommender
from llmrec.runtime.stage_directory import run_stage
from llmrec.training.sft.captured_step import CapturedLoss
from llmrec.training.trainer import SidTrainer
from tests.support.extended import fine_tune, losses, same_weights, sft_config

ITEMS, STRIDE = 12, 3
CAPABLE = {"train": "full", "max_steps": 90, "learning_rate": 5e-3, "batch_size": 24, "max_history": 10}


class Strider:
    """A teacher who is sure that the next item is three rows after the last one; the data says one row after it."""

    exclude_seen = False

    def probabilities(self, queries: Queries, exclude_seen: bool, temperature: float = 1.0) -> torch.Tensor:
        last = queries.items[queries.sequence, (queries.length - 1).clamp(min=0)]
        return torch.nn.functional.one_hot((last + STRIDE) % ITEMS, ITEMS) * 0.88 + 0.01


@pytest.fixture
def teacher(monkeypatch, tmp_path) -> dict[str, list[str]]:
    """Options that name a finished directory, which loads as a Strider."""
    monkeypatch.setattr("llmrec.training.distil.distillation.load_teacher", lambda *_: Strider())
    return {"teacher": [str(finished(tmp_path / "taught", "teach"))]}


def finished(path: Path, stage: str) -> Path:
    build = lambda directory: (directory / "ranker.json").write_text("{}") and None  # noqa: E731
    return run_stage(stage, TokenizeConfig(out=str(path), catalog="c", views="v"), {}, build)


def share_of_stride(checkpoint: Path, stride: int) -> float:
    """Share of items after which the first recommendation is `stride` rows further."""
    recommender = Recommender.from_pretrained(checkpoint, device="cpu")
    lists, _ = recommender.recommend([[f"item-{row}"] for row in range(ITEMS)], k=1, exclude=None)
    return sum(ids[0] == f"item-{(row + stride) % ITEMS}" for row, ids in enumerate(lists)) / ITEMS


def test_the_weight_decides_whom_the_llm_learns_from(tmp_path, toy, teacher):
    """Two items share a semantic ID, so one of the lists may begin with the other. Only drawn answers show the LLM how
    the teacher's items continue after their first code.
    """
    for weight in (0.1, 1.0):
        options = {"teacher_weight": weight, "drawn_answers": weight == 1.0}
        fine_tune(tmp_path / str(weight), *toy, **CAPABLE, **teacher, **options)
    assert share_of_stride(tmp_path / "0.1", 1) >= 10 / 12
    assert share_of_stride(tmp_path / "1.0", STRIDE) >= 10 / 12


def test_law_13_a_teacher_without_weight_is_plain_sft(tmp_path, toy, teacher):
    fine_tune(tmp_path / "plain", *toy)
    fine_tune(tmp_path / "off", *toy, **teacher, teacher_weight=0.0)
    fine_tune(tmp_path / "on", *toy, **teacher)
    assert losses(tmp_path / "plain") == losses(tmp_path / "off") != losses(tmp_path / "on")
    assert same_weights(tmp_path / "plain", tmp_path / "off") and not same_weights(tmp_path / "plain", tmp_path / "on")


@pytest.mark.parametrize(
    "options",
    [
        {"train": "lora", "packing": False},
        {"train": "sid_tokens"},
        {"train": "full", "gradient_checkpointing": True, "normalize_over": "vocabulary"},
        {"train": "lora", "quantization": "nf4", "precision": "bfloat16"},
        {"train": "lora", "tasks": ["title_to_sid"], "targets": "last_item"},
        {"train": "full", "micro_batch_size": 2, "label_smoothing": 0.1, "dropout": 0.1},
    ],
    ids=lambda options: " ".join(f"{value}" for value in options.values()),
)
def test_every_way_to_train_learns_from_a_teacher(tmp_path, toy, teacher, options):
    if "nf4" in options.values():
        pytest.importorskip("bitsandbytes")
    counts = fine_tune(tmp_path / "sft", *toy, **teacher, **options, drawn_answers=True)
    assert counts["steps"] == 4 and 0 < counts["loss"] < 20


@pytest.mark.gpu
def test_captured_steps_learn_from_a_teacher_as_eager_ones_do(monkeypatch, tmp_path, toy, teacher):
    options = {**teacher, "train": "full", "max_steps": 12, "precision": "float32", "device": "auto"}
    fine_tune(tmp_path / "captured", *toy, **options)
    monkeypatch.setattr(CapturedLoss, "of", lambda *arguments: None)
    fine_tune(tmp_path / "eager", *toy, **options)
    assert losses(tmp_path / "captured") == pytest.approx(losses(tmp_path / "eager"), rel=1e-4)


def test_an_interrupted_run_ends_like_an_uninterrupted_one(monkeypatch, tmp_path, toy, teacher):
    options = {**teacher, "drawn_answers": True, "max_steps": 5, "save_steps": 2, "train": "full"}
    fine_tune(tmp_path / "whole", *toy, **options)
    step = SidTrainer.training_step

    def dying(self, *arguments, **keywords):
        if self.state.global_step >= 3:
            raise KeyboardInterrupt
        return step(self, *arguments, **keywords)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SidTrainer, "training_step", dying)
        fine_tune(tmp_path / "parts", *toy, **options)
    fine_tune(tmp_path / "parts", *toy, **options)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert same_weights(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": []}, "drawn_answers needs a teacher"),
        ({"teacher_weight": 0.0}, "drawn_answers has no effect with teacher_weight 0"),
        ({"histories": False, "tasks": ["title_to_sid"]}, "set histories to true"),
        ({"teacher": ["a", "a"]}, "names a directory twice"),
        ({"teacher_weight": 1.5}, "teacher_weight"),
        ({"teacher_temperature": 0.0}, "teacher_temperature"),
        ({"teacher_seen": "sometimes"}, "teacher_seen"),
    ],
)
def test_options_that_contradict_each_other_are_refused(teacher, options, message):
    with pytest.raises(ValueError, match=message):
        sft_config("out", "catalog", "model", **{**teacher, "drawn_answers": True, **options})


def test_a_directory_of_another_stage_is_no_teacher(tmp_path, toy):
    other = finished(tmp_path / "sid", "tokenize")
    with pytest.raises(ValueError, match=r"written by `llmrec tokenize`; the output of `llmrec teach` is needed"):
        fine_tune(tmp_path / "sft", *toy, teacher=[str(other)])
    with pytest.raises(ValueError, match="no-such"):
        fine_tune(tmp_path / "sft", *toy, teacher=["no-such"])
