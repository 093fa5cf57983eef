"""The grpo stage: what it leaves, the step that it saves, resumption, several processes, and what it refuses."""

from __future__ import annotations

import json
import signal
import socket

import numpy as np
import pytest
import torch

from llmrec.cli import main
from llmrec.configs import EvaluateConfig
from llmrec.evaluation.learning import NDCG
from llmrec.model.checkpoint import SidConfig
from llmrec.runtime.manifest import read_manifest, verify
from llmrec.runtime.stage_directory import SCRATCH
from llmrec.stages import evaluate
from llmrec.training.checkpoints import numbered
from tests.support.extended import same_weights, weights_of
from tests.support.reinforced import STEPS, curve, log_of, reinforce


def test_what_the_stage_leaves(capsys, tmp_path, toy, tuned):
    flags = ["--catalog", toy[0], "--model", str(tuned), "--out", str(tmp_path / "grpo"), "--device", "cpu",
             "--max-steps", "2", "--batch-size", "6", "--micro-batch-size", "6", "--num-generations", "4"]  # fmt: skip
    assert main(["grpo", *flags, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    manifest = read_manifest(verify(tmp_path / "grpo", "grpo"))
    assert manifest["counts"] == {key: value for key, value in counts.items() if key != "out"}
    assert counts["steps"] == 2 and counts["prompts"] == 21 and counts["prompts_per_second"] > 0
    sid_config, _, details = SidConfig.load(tmp_path / "grpo")
    assert sid_config.normalize_over == "children" and sid_config.prompt == SidConfig.load(tuned)[0].prompt
    assert details["grpo"]["num_generations"] == 4 and [*details["earlier"][0]] == ["sft", "counts"]
    assert (tmp_path / "grpo" / "generation_config.json").read_bytes() == (
        tuned / "generation_config.json"
    ).read_bytes()
    page = (tmp_path / "grpo" / "training.html").read_text()
    assert all(caption in page for caption in ("Reward", "Groups", "Entropy", "KL"))


def test_law_12_the_seed_decides_the_curve_and_the_weights(tmp_path, toy, tuned):
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        reinforce(tmp_path / name, toy[0], tuned, seed=seed)
    assert curve(tmp_path / "one") == curve(tmp_path / "again") != curve(tmp_path / "other")
    assert same_weights(tmp_path / "one", tmp_path / "again") and not same_weights(tmp_path / "one", tmp_path / "other")


def test_the_reward_rises_on_what_can_be_learned(tmp_path, toy, tuned):
    """A reward against what sft taught: item 3, whatever the history."""

    def third(history, item_ids, target):
        return [float(item == "item-3") for item in item_ids]

    reinforce(tmp_path / "grpo", toy[0], tuned, [third], rewards=["rule"], reward_weights=[1e-9], max_steps=20,
              batch_size=12, num_generations=11, learning_rate=1e-2, beta=0)  # fmt: skip
    found = curve(tmp_path / "grpo", "expected_reward")
    assert found[0] < 0.2 and np.mean(found[-5:]) > 0.6


def test_the_best_step_by_the_real_decoder_is_saved(tmp_path, toy, tuned):
    """ndcg@10 of the saved model by `llmrec evaluate --split valid` is the figure by which it was chosen."""
    counts = reinforce(tmp_path / "grpo", toy[0], tuned, max_steps=8, eval_steps=2, learning_rate=2e-2)
    judged = {entry["step"]: entry[NDCG] for entry in log_of(tmp_path / "grpo") if NDCG in entry}
    assert list(judged) == [0, 2, 4, 6, 8]
    assert counts["saved_step"] == counts["best_step"] == max(judged, key=judged.get)
    assert counts["valid_ndcg@10"] == max(judged.values())
    evaluate.main(EvaluateConfig(out=str(tmp_path / "eval"), catalog=toy[0], model=str(tmp_path / "grpo"), k=[10],
                                 split="valid", baselines=[], device="cpu"))  # fmt: skip
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["systems"]["ours"]["plain"]["ndcg@10"] == pytest.approx(max(judged.values()), abs=1e-6)
    entries = [entry for entry in log_of(tmp_path / "grpo") if NDCG in entry]
    assert not any("reward" in entry for entry in entries), "averages belong to the steps"
    assert len(curve(tmp_path / "grpo", "reward")) == 8


def test_a_run_that_falls_stops_and_leaves_the_start(tmp_path, toy, tuned):
    """The reward is for any item but the target, so the first evaluation is worse and patience ends it."""

    def perverse(history, item_ids, target):
        return [float(item != target) for item in item_ids]

    counts = reinforce(tmp_path / "grpo", toy[0], tuned, [perverse], rewards=["rule"], reward_weights=[1e-9],
                       max_steps=40, eval_steps=4, patience=2, learning_rate=2e-2, num_generations=6)  # fmt: skip
    assert counts["saved_step"] == 0 and counts["steps"] < 40
    assert same_weights(tmp_path / "grpo", tuned)


def test_bfloat16_trains_and_merges(tmp_path, toy, tuned):
    counts = reinforce(tmp_path / "grpo", toy[0], tuned, precision="bfloat16", eval_steps=1)
    assert curve(tmp_path / "grpo", "kl")[0] == pytest.approx(0, abs=1e-6)
    assert np.isfinite(curve(tmp_path / "grpo")).sum() == 3 and len(curve(tmp_path / "grpo", NDCG)) == 4
    assert same_weights(tmp_path / "grpo", tuned) == (counts["saved_step"] == 0)


LONG = {"max_steps": 7, "save_steps": 2}


@pytest.fixture(scope="module")
def undisturbed(toy, tuned, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "grpo"
    reinforce(out, toy[0], tuned, **LONG)
    return out


@pytest.mark.parametrize("call", [2, 3])
def test_kill_9_and_resumption(tmp_path, toy, tuned, forks, undisturbed, call):
    """Killed in the save of step 4 or 6; an epoch has 3 steps, so that the run continues within one, or between two."""
    flags = {**STEPS, **LONG, "catalog": toy[0], "model": tuned, "out": tmp_path / "cut"}
    argv = ["grpo", *(part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value)))]
    forks.start(argv, tmp_path / "stderr", die_in=("llmrec.training.checkpoints.publish", call))
    assert forks.wait() == -signal.SIGKILL, (tmp_path / "stderr").read_text()
    left = numbered(tmp_path / "cut.partial" / SCRATCH / "trainer")
    assert left[0].name == f"checkpoint-{2 * (call - 1)}"
    reinforce(tmp_path / "cut", toy[0], tuned, **LONG)
    assert same_weights(tmp_path / "cut", undisturbed)
    assert curve(tmp_path / "cut") == curve(undisturbed)


def test_another_reward_in_the_same_file_is_another_run(tmp_path, toy, tuned):
    own = tmp_path / "mine.py"
    own.write_text("def mine(history, item_ids, target):\n    return [1.0] * len(item_ids)\n")
    options = {"rewards": [f"{own}:mine"], "max_steps": 1}
    reinforce(tmp_path / "grpo", toy[0], tuned, **options)
    own.write_text(own.read_text().replace("1.0", "2.0"))
    with pytest.raises(ValueError, match=r"its input 'reward .*mine' has changed"):
        reinforce(tmp_path / "grpo", toy[0], tuned, **options)


def test_two_processes_give_the_losses_and_weights_of_one(tmp_path, toy, tuned, forks):
    """Of beams, which are the same however prompts are dealt out; draws are each process's own."""
    options = {"rollouts": "beams", "micro_batch_size": 1, "max_steps": 4, "catalog": toy[0], "model": tuned}
    reinforce(tmp_path / "one", **options)
    flags = {**STEPS, **options, "out": tmp_path / "two"}
    argv = ["grpo", *(part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value)))]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    pids = [
        forks.start(
            argv, tmp_path / f"stderr{rank}", environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(2)
    ]
    assert [forks.wait(pid) for pid in pids] == [0, 0], [(tmp_path / f"stderr{r}").read_text() for r in range(2)]
    assert read_manifest(tmp_path / "two")["processes"] == 2
    for key in ("loss", "reward", "hit_share"):
        assert curve(tmp_path / "two", key) == pytest.approx(curve(tmp_path / "one", key), rel=1e-3, abs=1e-5)
    one, other = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_generations": 1}, "num_generations is 1; at least 2 is needed"),
        ({"num_generations": 12}, "num_generations is 12, but the catalogue has 11 semantic IDs"),
        ({"num_generations": 12, "rollouts": "beams"}, "use rollouts 'sampled'"),
        ({"rewards": ["ruel"]}, "unknown reward 'ruel'; did you mean 'rule'"),
        ({"rewards": []}, "rewards is empty"),
        ({"rewards": ["rule", "rule"]}, "rewards repeats a name"),
        ({"rewards": ["nowhere.py:f"]}, "'nowhere.py:f' cannot be loaded"),
        ({"rewards": ["rule", "rank"], "reward_weights": [1.0]}, "reward_weights has 1 numbers for 2 rewards"),
        ({"rewards": ["rule"], "reward_weights": [0.0]}, "a reward of weight 0 has no effect"),
        ({"batch_size": 60, "micro_batch_size": 6}, "fewer than batch_size 60"),
        ({"loss": "ppo"}, "loss is 'ppo'; choose from grpo, dr_grpo"),
    ],
)
def test_wrong_options_leave_nothing_behind(tmp_path, toy, tuned, options, message):
    with pytest.raises(ValueError, match=message):
        reinforce(tmp_path / "grpo", toy[0], tuned, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("values", [[float("nan")] * 4, [1.0] * 3])
def test_a_reward_that_is_none_is_refused_before_the_first_step(tmp_path, toy, tuned, values):
    with pytest.raises(ValueError, match="The reward 'mine'"):
        reinforce(tmp_path / "grpo", toy[0], tuned, [mine_of(values)])
    assert not list(tmp_path.iterdir())


def mine_of(values):
    def mine(history, item_ids, target):
        return values

    return mine


def test_a_reward_that_fails_later_ends_the_run(tmp_path, toy, tuned):
    """What a few items did not show is found where it happens, and named."""

    def mine(history, item_ids, target):
        return [float("nan") if item == "item-3" else 1.0 for item in item_ids]

    with pytest.raises(ValueError, match="The reward 'mine' is nan for the item 'item-3'"):
        reinforce(tmp_path / "grpo", toy[0], tuned, [mine], num_generations=11, batch_size=2, micro_batch_size=2)


def test_a_checkpoint_that_is_not_merged_is_refused(tmp_path, toy, tuned):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is an adapter, not a merged model"):
        reinforce(tmp_path / "grpo", toy[0], tmp_path / "adapter")
    with pytest.raises(ValueError, match="was written by `llmrec extend`"):
        reinforce(tmp_path / "grpo", toy[0], toy[1])
