"""teach, sft, dpo, evaluate and recommend under `accelerate launch`: two processes on the CPU give the results of one.

Without MPI, `accelerate launch --cpu --num_processes 2` starts one process (accelerate 1.15) and llmrec says so;
`--multi_gpu` on a machine without a GPU starts two. How many there were is read from the manifest.
"""

from __future__ import annotations

import json
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from llmrec.baselines.taught import RANKER, TENSORS
from llmrec.cli import main
from llmrec.configs import DpoConfig, EnsembleConfig, RecommendConfig, TeachConfig
from llmrec.runtime.manifest import read_manifest
from llmrec.stages import dpo, ensemble, recommend, teach
from tests.support.extended import fine_tune, losses, weights_of
from tests.support.launched import LAUNCHERS, ROOT, SFT, launched
from tests.support.reinforced import STEPS, curve, reinforce

DPO = {"max_steps": 4, "batch_size": 8, "micro_batch_size": 4, "targets": "every_item", "learning_rate": 1e-3,
       "warmup_steps": 0, "logging_steps": 1, "eval_steps": 2, "device": "cpu"}  # fmt: skip
EVALUATE = {"batch_size": 4, "device": "cpu", "k": [1, 5], "num_beams": 8}


def launch(processes: int, stage: str, options: dict) -> subprocess.CompletedProcess:
    """A stage through its script, as a user would start it."""
    return launched(LAUNCHERS[processes], [ROOT / "scripts" / f"{stage}.py"], options)


@pytest.fixture(scope="module")
def one(toy, tmp_path_factory):
    """sft and evaluate in this process."""
    out = tmp_path_factory.mktemp("one")
    fine_tune(out / "sft", *toy, **SFT)
    flags = [part for name, value in EVALUATE.items() for part in (f"--{name.replace('_', '-')}", value)]
    flags = [str(p) for part in flags for p in (part if isinstance(part, list) else [part])]
    assert main(["evaluate", "--catalog", toy[0], "--model", str(out / "sft"), "--out", str(out / "eval"), *flags]) == 0
    return out


@pytest.mark.parametrize("processes", LAUNCHERS)
def test_sft_gives_the_losses_and_weights_of_one_process(toy, one, tmp_path, processes):
    out = tmp_path / "sft"
    ended = launch(processes, "sft", {**SFT, "catalog": toy[0], "model": str(toy[1]), "out": str(out)})
    assert ended.returncode == 0, ended.stderr
    assert read_manifest(out)["processes"] == processes
    assert ("accelerate started one process" in ended.stderr) == (processes == 1)
    assert ended.stdout.count("sft: 6 steps") == 1
    assert losses(out) == pytest.approx(losses(one / "sft"), rel=1e-4)
    ours, theirs = weights_of(out), weights_of(one / "sft")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_sft_with_a_teacher_gives_the_losses_of_one_process(toy, tmp_path):
    """Every process asks the teacher about its own share of a batch."""
    teach.main(TeachConfig(catalog=toy[0], ranker="markov", out=str(tmp_path / "markov"), device="cpu", search=False))
    options = {**SFT, "teacher": [str(tmp_path / "markov")], "train": "full"}
    fine_tune(tmp_path / "one", *toy, **options)
    ended = launch(2, "sft", {**options, "catalog": toy[0], "model": str(toy[1]), "out": str(tmp_path / "two")})
    assert ended.returncode == 0, ended.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_the_loss_of_a_run_without_log_lines_is_that_of_all_processes(toy, tmp_path):
    options = {**SFT, "max_steps": 2, "logging_steps": 20}
    fine_tune(tmp_path / "one", *toy, **options)
    ended = launch(2, "sft", {**options, "catalog": toy[0], "model": str(toy[1]), "out": str(tmp_path / "two")})
    assert ended.returncode == 0, ended.stderr
    found, expected = (read_manifest(tmp_path / name)["counts"]["loss"] for name in ("two", "one"))
    assert found == pytest.approx(expected, rel=1e-4)


def test_dpo_gives_the_losses_and_weights_of_one_process(toy, one, tmp_path):
    """Two processes share out the mining, whose result is the same, and the gradients."""
    options = {**DPO, "catalog": toy[0], "model": str(one / "sft")}
    dpo.main(DpoConfig(out=str(tmp_path / "one"), **options))
    ended = launch(2, "dpo", {**options, "out": str(tmp_path / "two")})
    assert ended.returncode == 0, ended.stderr
    assert read_manifest(tmp_path / "two")["processes"] == 2
    found, expected = (pq.read_table(tmp_path / name / "preferences.parquet") for name in ("two", "one"))
    assert found.equals(expected)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    ours, theirs = weights_of(tmp_path / "two"), weights_of(tmp_path / "one")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("way", ["distinct", pytest.param("sampled", marks=pytest.mark.slow)])
def test_grpo_gives_the_roll_outs_and_weights_of_one_process(toy, one, tmp_path, way):
    """Each prompt has its own random numbers, whichever process rolls it out."""
    options = {**STEPS, "rollouts": way, "batch_size": 8, "micro_batch_size": 4}
    reinforce(tmp_path / "one", toy[0], one / "sft", **options)
    ended = launch(2, "grpo", {**options, "catalog": toy[0], "model": str(one / "sft"), "out": str(tmp_path / "two")})
    assert ended.returncode == 0, ended.stderr
    assert read_manifest(tmp_path / "two")["processes"] == 2
    for key in ("loss", "reward", "hit_share", "distinct_share"):
        assert curve(tmp_path / "two", key) == pytest.approx(curve(tmp_path / "one", key), rel=1e-3, abs=1e-6)
    ours, theirs = weights_of(tmp_path / "two"), weights_of(tmp_path / "one")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    "ranker",
    [{"ranker": "gru4rec", "options": {"hidden": 16, "max_epochs": 3, "dropout": 0.0, "batch_size": 8}},
     {"ranker": "item_knn", "search": True}],
    ids=lambda ranker: ranker["ranker"],
)  # fmt: skip
def test_teach_gives_the_ranker_of_one_process(toy, tmp_path, ranker):
    """A network is trained by both, which share out its batches; counts are made by each."""
    options = {"catalog": toy[0], "device": "cpu", **ranker}
    ended = launch(2, "teach", {**options, "out": str(tmp_path / "two")})
    assert ended.returncode == 0, ended.stderr
    assert read_manifest(tmp_path / "two")["processes"] == 2
    ended = launch(1, "teach", {**options, "out": str(tmp_path / "one")})
    assert ended.returncode == 0, ended.stderr
    found, expected = (json.loads((tmp_path / name / RANKER).read_text()) for name in ("two", "one"))
    assert found["valid"] == expected["valid"] and found["options"] == expected["options"]
    for entry, other in zip(found["log"], expected["log"], strict=True):
        assert entry["loss"] == pytest.approx(other["loss"], rel=1e-5)
    ours, theirs = (load_file(tmp_path / name / TENSORS) for name in ("two", "one"))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("processes", LAUNCHERS)
def test_evaluate_gives_the_metrics_of_one_process(toy, one, tmp_path, processes):
    out = tmp_path / "eval"
    ended = launch(processes, "evaluate", {**EVALUATE, "catalog": toy[0], "model": str(one / "sft"), "out": str(out)})
    assert ended.returncode == 0, ended.stderr
    assert read_manifest(out)["processes"] == processes
    found, expected = (json.loads((path / "metrics.json").read_text()) for path in (out, one / "eval"))
    for systems in (found["systems"], expected["systems"]):
        for columns in systems.values():
            for values in columns.values():
                values.pop("examples_per_s")
    assert found == expected


def test_recommend_gives_the_files_of_one_process(one, tmp_path):
    """Each process takes the next shard that nobody has; unknown items are counted by both."""
    ids = [f"item-{row}" for row in range(12)]
    histories = [ids[user % 12 : user % 12 + 4] + ["gone"] * (user % 3) for user in range(40)]
    pq.write_table(pa.table({"user_id": range(40), "history": histories}), tmp_path / "users.parquet")
    options = {"model": str(one / "sft"), "users": str(tmp_path / "users.parquet"), "k": 4, "shard_size": 3,
               "unknown": "skip", "device": "cpu"}  # fmt: skip
    expected = recommend.main(RecommendConfig(out=str(tmp_path / "one"), **options))
    ended = launch(2, "recommend", {**options, "out": str(tmp_path / "two")})
    assert ended.returncode == 0, ended.stderr
    assert read_manifest(tmp_path / "two")["processes"] == 2
    assert read_manifest(tmp_path / "two")["counts"] == expected["counts"] and expected["counts"]["unknown"] == 39
    found, theirs = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("part-*")} for name in ("two", "one")
    )
    assert found == theirs and len(found) == 14


def test_ensemble_gives_the_choice_and_metrics_of_one_process(toy, one, tmp_path):
    options = {"catalog": toy[0], "members": [str(toy[1]), str(one / "sft")], "names": ["base", "sft"], "k": [1, 5],
               "depth": 8, "batch_size": 4, "device": "cpu"}  # fmt: skip
    expected = ensemble.main(EnsembleConfig(out=str(tmp_path / "one"), **options))
    ended = launch(2, "ensemble", {**options, "out": str(tmp_path / "two")})
    assert ended.returncode == 0, ended.stderr
    assert read_manifest(tmp_path / "two")["processes"] == 2
    found = json.loads((tmp_path / "two" / "ensemble.json").read_text())
    assert found == {key: expected[key] for key in found}
    tables = (pq.read_table(tmp_path / name / "per_user.parquet") for name in ("one", "two"))
    assert next(tables).equals(next(tables))


def test_what_the_first_process_refuses_ends_all(toy, one, tmp_path):
    """Only rank 0 looks at `out`; the other waits for it at a barrier and must not wait for ever."""
    options = {**SFT, "catalog": toy[0], "model": str(toy[1]), "out": str(one / "sft"), "seed": 1}
    (one / "sft.yaml").unlink(missing_ok=True)
    ended = launch(2, "sft", options)
    assert ended.returncode != 0
    assert "is the result of another run (seed was 0, now 1)" in ended.stderr
