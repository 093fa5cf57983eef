"""Options of the stage, the schedule that follows from them, and the progress of a run."""

from __future__ import annotations

import dataclasses

import pytest

from llmrec.configs import AlternateConfig, SftConfig
from llmrec.configs.file import load_config
from llmrec.training.alternate.schedule import SETTLED_CYCLES, Progress, Schedule

pytestmark = pytest.mark.fast
PATHS = {"out": "o", "catalog": "c", "model": "m", "sid": "s", "views": "v"}


def schedule_of(num_examples: int = 24, **options) -> Schedule:
    """Eight steps in epochs of three, with passes after steps 2, 4 and 6, unless told otherwise."""
    small = {"epochs": 8 / 3, "batch_size": 8, "cycle_steps": 2, "align_after": 0.3, "freeze_after": 0.8}
    return Schedule.of(AlternateConfig(**PATHS, **{**small, **options}), num_examples)


def test_the_llm_trains_with_the_options_that_sft_has_too_and_its_defaults_for_the_rest():
    config = AlternateConfig(**PATHS, seed=3, batch_size=16, dropout=0.2, train="full", logging_steps=7)
    llm, sft = config.llm("Next:", chat_template=True), SftConfig(out="o", catalog="c", model="m")
    own = {
        "seed",
        "batch_size",
        "dropout",
        "train",
        "logging_steps",
        "micro_batch_size",
        "instruction",
        "chat_template",
    }
    assert {f.name for f in dataclasses.fields(sft) if getattr(sft, f.name) != getattr(llm, f.name)} == own
    assert (llm.seed, llm.dropout, llm.train, llm.logging_steps) == (3, 0.2, "full", 7)
    assert llm.batch_size == llm.micro_batch_size == 16 and (llm.instruction, llm.chat_template) == ("Next:", True)
    assert llm.stage == "alternate" and llm.one_process


def test_options_that_sft_has_too_have_its_help_and_default():
    mine, theirs = ({f.name: f for f in dataclasses.fields(cls)} for cls in (AlternateConfig, SftConfig))
    differ = {name for name in mine.keys() & theirs.keys() if mine[name].metadata != theirs[name].metadata}
    assert differ == {"model", "batch_size"}
    assert all(mine[name].default == theirs[name].default for name in mine.keys() & theirs.keys())


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("pass_steps", "as many steps as an epoch"),
        ("divergence", "symmetric KL"),
        ("micro_batch_size", "gradient_checkpointing"),
        ("tasks", "alternate trains on histories only"),
        ("max_steps", "set epochs"),
        ("sid_loss", "over the codes of its level"),
        ("eval_rows", "eval_examples"),
    ],
)
def test_removed_options_are_refused_with_the_reason(name, remedy):
    with pytest.raises(ValueError, match=f"unknown key '{name}'.*{remedy}"):
        load_config(AlternateConfig, overrides={**PATHS, name: "1"})


def test_a_schedule_by_hand():
    plan = schedule_of()
    assert (plan.steps, plan.aligned_after, plan.frozen_after, plan.pass_steps) == (8, 2, 6, 3)
    assert (plan.cycles, plan.tokenizer_steps) == (3, 9)
    assert schedule_of(optimization="joint").tokenizer_steps == 6
    assert schedule_of(freeze_after=1, align_after=0).frozen_after == 6, "nothing would train on a pass after step 8"
    assert schedule_of(freeze_after=0, sia_weight=0, psa_weight=0).cycles == 0


def test_a_run_by_hand():
    """Steps 3 to 6 of 8 are aligned; the third cycle is the last."""
    progress = Progress.at_start(schedule_of())
    aligned, ended = [], []
    for step in range(1, 9):
        if progress.ends_cycle(step - 1):
            ended.append(step - 1)
            progress.count_cycle(step - 1, churn=0.5)
        aligned += [step] * progress.aligns_at(step)
        assert progress.needs_pools_at(step) == progress.aligns_at(step) and not progress.trains_jointly
    assert aligned == [3, 4, 5, 6] and ended == [2, 4, 6] and progress.is_frozen


def test_the_schedule_of_the_rate_fits_into_the_rest_after_a_restart():
    """Frozen after step 6 of 8: the two steps that are left begin at the places 0 and 4 of 8."""
    for restart, places in ((True, [0, 1, 2, 3, 4, 5, 0, 4, 8]), (False, list(range(9)))):
        progress = Progress.at_start(schedule_of(restart=restart))
        seen = []
        for done in range(9):
            if progress.ends_cycle(done):
                progress.count_cycle(done, churn=0.5)
            seen.append(progress.place_of(done))
        assert seen == places


def test_joint_training_needs_pools_before_the_alignment():
    progress = Progress.at_start(schedule_of(optimization="joint"))
    assert progress.trains_jointly and progress.needs_pools_at(1) and not progress.aligns_at(1)
    progress.is_frozen = True
    assert not progress.needs_pools_at(1)


def test_semantic_ids_that_have_settled_freeze_the_tokenizer():
    progress = Progress.at_start(schedule_of(epochs=10, align_after=0.0))
    for cycle, churn in enumerate((0.0, 0.005, 0.02, 0.0, 0.0, 0.009), start=1):
        assert not progress.is_frozen
        progress.count_cycle(2 * cycle, churn)
    assert progress.is_frozen and progress.settled == SETTLED_CYCLES and not progress.aligns_at(13)


def test_cycles_before_the_alignment_do_not_settle():
    progress = Progress.at_start(schedule_of(epochs=10, align_after=0.5))
    for cycle in range(1, 6):
        progress.count_cycle(2 * cycle, churn=0.0)
    assert progress.settled == 0 and not progress.is_frozen
