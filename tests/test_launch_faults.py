"""A run of several processes of which one is killed, continued by any number; and full fine-tuning under FSDP2."""

from __future__ import annotations

import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmrec.runtime.manifest import read_manifest
from tests.support.extended import fine_tune, losses, weights_of
from tests.support.launched import ROOT, SFT, TWO, launched, with_recipe

DIES = ROOT / "tests" / "support" / "dies.py"
NOBODY, STEP = -1, 5  # the checkpoint is of step 4
FSDP, ONE = with_recipe("fsdp2"), ["llmrec.cli"]
ACCUMULATED = {**SFT, "micro_batch_size": 2}


def run(launcher, options, killed=NOBODY):
    """sft with a process that is killed in its sixth step, or to its end."""
    if launcher == ONE:
        return launched(["tests.support.dies", str(killed), str(STEP), "sft"], [], options)
    return launched(launcher, [DIES, killed, STEP, "sft"], options)


def check_equal(found, expected):
    assert losses(found) == pytest.approx(losses(expected), rel=1e-4)
    ours, theirs = weights_of(found), weights_of(expected)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """Runs of one process that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole")
    for train in ("lora", "full"):
        fine_tune(out / train, *toy, **SFT, train=train)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "train"),
    [
        (TWO, TWO, "lora"),
        (TWO, ONE, "lora"),
        (ONE, TWO, "lora"),
        (FSDP, FSDP, "full"),
        (FSDP, with_recipe("fsdp2", 3), "full"),
    ],
    ids=["two-two", "two-one", "one-two", "fsdp2-fsdp2", "fsdp2-of-three"],
)
def test_a_killed_run_continues_in_any_number_of_processes(toy, whole, tmp_path, before, after, train):
    batch = {"batch_size": 12, "micro_batch_size": 2} if "3" in after else {}
    options = {
        **ACCUMULATED,
        **batch,
        "train": train,
        "catalog": toy[0],
        "model": str(toy[1]),
        "out": str(tmp_path / "out"),
    }
    started = time.monotonic()
    ended = run(before, options, killed=0 if before == ONE else 1)
    assert ended.returncode != 0 and time.monotonic() - started < 60
    if before != ONE:
        assert "rank      : 1" in ended.stderr, ended.stderr  # the launcher's word on the first that failed
        assert "did not foresee" not in ended.stderr
    assert (tmp_path / "out.partial" / "scratch" / "trainer" / "checkpoint-4").is_dir()
    ended = run(after, options)
    assert ended.returncode == 0, ended.stderr
    assert "continuing from checkpoint-4" in ended.stderr
    if batch:
        fine_tune(tmp_path / "one", *toy, **{**SFT, **batch}, train=train)
    check_equal(tmp_path / "out", tmp_path / "one" if batch else whole / train)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(FSDP, TWO), (TWO, FSDP)], ids=["fsdp2-ddp", "ddp-fsdp2"])
def test_a_checkpoint_of_another_sharding_is_refused(toy, tmp_path, before, after):
    options = {**SFT, "train": "full", "catalog": toy[0], "model": str(toy[1]), "out": str(tmp_path / "out")}
    assert run(before, options, killed=1).returncode != 0
    ended = run(after, options)
    assert ended.returncode != 0
    assert "checkpoint-4 was written" in ended.stderr and "which cannot read its optimiser" in ended.stderr


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_fsdp2_gives_the_losses_and_weights_of_one_process(toy, tmp_path, precision):
    """Of all weights, over two micro-batches; what is saved is an ordinary checkpoint."""
    options = {**ACCUMULATED, "train": "full", "precision": precision}
    ended = run(FSDP, {**options, "catalog": toy[0], "model": str(toy[1]), "out": str(tmp_path / "two")})
    assert ended.returncode == 0, ended.stderr
    assert read_manifest(tmp_path / "two")["processes"] == 2
    fine_tune(tmp_path / "one", *toy, **options)
    if precision == "float32":
        check_equal(tmp_path / "two", tmp_path / "one")
    else:
        assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-2)
    model, tokenizer = (kind.from_pretrained(tmp_path / "two") for kind in (AutoModelForCausalLM, AutoTokenizer))
    prompt = tokenizer("the", return_tensors="pt")
    assert model.dtype == next(iter(weights_of(tmp_path / "one").values())).dtype
    assert model.generate(**prompt, max_new_tokens=2).shape[1] > prompt["input_ids"].shape[1]
