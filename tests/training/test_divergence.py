"""Runs whose loss is not finite any more: they end, say which option to change, and save no weights trained since."""

from __future__ import annotations

import math

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from llmrec.training.callbacks import Divergence
from tests.stages.test_dpo import optimise
from tests.support.extended import fine_tune, same_weights
from tests.support.reinforced import reinforce

TOO_FAST = {"learning_rate": 1e30, "warmup_steps": 0}


@pytest.mark.parametrize("steps", [1, 20])  # between log entries; with 20 the end of training is the first
def test_a_run_that_diverges_leaves_no_result(tmp_path, toy, tuned, steps):
    with pytest.raises(ValueError, match=r"Step \d: training has diverged.*Lower learning_rate .*--overwrite"):
        optimise(tmp_path / "dpo", toy[0], tuned, logging_steps=steps, **TOO_FAST)
    assert not (tmp_path / "dpo").exists()


def test_sft_that_diverges_leaves_no_result(tmp_path, toy):
    with pytest.raises(ValueError, match="training has diverged"):
        fine_tune(tmp_path / "sft", *toy, train="full", **TOO_FAST)


def test_validated_initial_weights_are_kept_after_divergence(capsys, tmp_path, toy, tuned):
    counts = optimise(tmp_path / "dpo", toy[0], tuned, eval_steps=2, max_steps=8, **TOO_FAST)
    assert counts["steps"] < 8 and counts["saved_step"] == 0 and same_weights(tmp_path / "dpo", tuned)
    told = capsys.readouterr().err
    assert "loss nan: training stops here." in told
    assert "valid examples: scores are not finite; the last " in told


@pytest.mark.parametrize("rollouts", ["distinct", "sampled", "beams"])
def test_roll_outs_of_a_diverged_model_are_refused(tmp_path, toy, tuned, rollouts):
    with pytest.raises(ValueError, match=r"No items can be drawn: training has diverged.*Lower learning_rate"):
        reinforce(tmp_path / "grpo", toy[0], tuned, rollouts=rollouts, **TOO_FAST)
    assert not (tmp_path / "grpo").exists()


@pytest.mark.parametrize(("best", "ends"), [(4, True), (None, False)])
def test_divergence_keeps_the_best_step_before_it(tmp_path, best, ends):
    state = TrainerState(global_step=6, max_steps=9, best_metric=0.3 if best else None, best_global_step=best)
    arguments, control = TrainingArguments(str(tmp_path)), TrainerControl()
    watch = Divergence("sft")
    watch.on_log(arguments, state, control, {"loss": 2.0})
    watch.on_log(arguments, state, control, {"eval_ndcg@10": math.nan})
    assert not control.should_training_stop
    if best is None:
        with pytest.raises(ValueError, match="Step 6: training has diverged"):
            watch.on_log(arguments, state, control, {"loss": math.nan})
    else:
        watch.on_log(arguments, state, control, {"loss": math.inf})
    assert control.should_training_stop == ends
