"""The distillation experiment at a tiny size: the queue runs every kind of job, and the arrays are what they claim."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]  # experiments run on demand
FOLDER = Path(__file__).parents[2] / "scripts" / "experiments" / "distillation"
MODULES = [file.stem for file in FOLDER.glob("*.py")]
ITEMS, USERS = 60, 40
SMALL = {"h": 32, "layers": 2, "heads": 2, "steps": 4, "evals": 2, "batch": 16}
RANKER = {"kind": "ranker", "d": 16, "limit": 6, "every": 3}
DRAWN = {"kind": "sid", "kd": 0.5, "drawn": 1.0, **SMALL}
JOBS = {
    "pre": {**RANKER, "block": "pre"},
    "ligr": {**RANKER, "block": "ligr", "negatives": 8},
    "knn": {"kind": "knn"},
    "mix": {"kind": "mix", "teacher": ["toy-pre-s0", "toy-knn-s0"]},
    "sid": {"kind": "sid", **SMALL},
    "items+aug-mix": {**DRAWN, "items": True, "teacher": ["toy-mix-s0"]},
    "token": {
        **DRAWN,
        "items": True,
        "item_tokens": True,
        "hidden_rows": 0.3,
        "item_smoothing": 0.1,
        "item_decay": 1.0,
        "selection": 20,
        "teacher": ["toy-mix-s0"],
    },
    "aug-student": {**DRAWN, "student_draws": True, "teacher": ["toy-pre-s0"]},
    "itemsonly+kd": {"kind": "sid", "kd": 0.5, "items": True, "sid_w": 0.0, "teacher": ["toy-pre-s0"], **SMALL},
}


@pytest.fixture
def modules(monkeypatch):
    """Import the modules of the experiment, which lie flat in their folder."""
    kept = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    monkeypatch.syspath_prepend(str(FOLDER))
    import data
    import plan
    import run

    yield data, plan, run
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.modules.update(kept)


@pytest.fixture
def folder(tmp_path):
    """Users who walk over the items in steps of 1 to 4, a few of them for longer than the window."""
    rng = np.random.default_rng(0)
    item = np.arange(ITEMS)
    stored = {"codes": np.stack([item % 4 * 60, item // 4 % 3 * 80, item // 12], 1).astype(np.int16)}
    lengths = [*rng.integers(5, 20, USERS - 4), *rng.integers(60, 120, 4)]
    walks = [(rng.integers(ITEMS) + np.cumsum(rng.integers(1, 5, length))) % ITEMS for length in lengths]
    for split, end in (("train", -2), ("valid", -2), ("test", -1)):
        stored[split] = np.concatenate([walk[:end] for walk in walks]).astype(np.int16)
        stored[f"{split}_off"] = np.cumsum([0, *(len(walk[:end]) for walk in walks)]).astype(np.int32)
        stored[f"{split}_y"] = np.array([walk[end] for walk in walks], np.int16)
    np.savez(tmp_path / "toy.npz", **stored)
    return tmp_path


def test_the_queue_runs_every_kind_of_job_once_and_goes_on_where_it_stopped(modules, folder, monkeypatch, capsys):
    _, _, run = modules
    jobs = [{"id": f"toy-{name}-s0", "data": "toy", "seed": 0, **options} for name, options in JOBS.items()]
    (folder / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in reversed(jobs)))

    def call(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
        run.main()

    state, out = folder / "state", folder / "out"
    call("plan", state, "--jobs", folder / "jobs.jsonl")
    call("work", state, folder, "--drain")
    call("gather", state, out)
    assert "failed" not in capsys.readouterr().out
    results = {line["job"]["id"]: line for line in run.read_lines(out / "results.jsonl")}
    assert set(results) == {job["id"] for job in jobs}
    joint = results["toy-items+aug-mix-s0"]
    assert list(joint["test"]) == ["0.0", "0.3", "0.5", "0.7", "1.0", "t0.5", "t0.5 items"]
    assert all(math.isfinite(loss) for *_, loss in joint["curve"]) and joint["steps"] == SMALL["steps"]
    assert next(iter(results["toy-itemsonly+kd-s0"]["valid"])) == "1.0"

    again = folder / "again"  # on another machine: results are there, checkpoints are not
    open_ids = ["toy-aug-student-s0"]
    (folder / "open.jsonl").write_text(json.dumps(results[open_ids[0]]["job"]) + "\n")
    kept = [line for name, line in results.items() if name not in open_ids]
    (folder / "kept.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    call("plan", again, "--jobs", folder / "open.jsonl", "--results", folder / "kept.jsonl")
    assert [job["id"] for job in run.State(again).jobs()] == ["toy-pre-s0", *open_ids]
    call("work", again, folder, "--drain")
    repeated = json.loads((again / "results" / "toy-aug-student-s0.json").read_text())
    assert repeated["curve"] == results["toy-aug-student-s0"]["curve"]


def test_tree_targets_add_up_the_items_below_each_prefix(modules, folder):
    data, _, _ = modules
    toy = data.Data(folder / "toy.npz")
    p = torch.rand(1, toy.num_columns, generator=torch.Generator().manual_seed(0)).to(data.DEVICE)
    p[:, ITEMS:] = 0
    item, codes = 17, toy.codes.cpu().numpy()
    nodes = [toy.node[level][[item]] for level in range(toy.num_levels)]
    found = toy.tree_targets(p, torch.zeros(1, dtype=torch.long, device=data.DEVICE), nodes)[0].cpu().numpy()
    for level in range(toy.num_levels):
        below = (codes[:, :level] == codes[item, :level]).all(1)
        mass = np.bincount(codes[below, level], weights=p[0, :ITEMS].cpu().numpy()[below], minlength=data.K)
        np.testing.assert_allclose(found[level], mass / mass.sum(), rtol=1e-5)


@pytest.mark.parametrize("item_tokens", [False, True])
def test_training_and_ranking_read_a_history_alike(modules, folder, item_tokens):
    """Both forms of item rows, with histories of different lengths: the probability of an item at their ends."""
    data, _, _ = modules
    from packing import pack
    from sid_decoder import Decoder

    toy = data.Data(folder / "toy.npz")
    torch.manual_seed(0)
    model = Decoder(toy, 32, 2, 2, item_rows=True, item_tokens=item_tokens, hidden_rows=0.9).to(data.DEVICE).eval()
    with torch.no_grad():
        model.items.weight.mul_(20)
    histories = [np.array([3, 9, 27, 12, 5]), np.array([40, 8, 59])]
    packing = pack(np.array([len(history) + 1 for history in histories]), model.per_item)
    rows = [np.append(history, 0) for history in histories]  # the answer is asked for, and not read
    item = torch.tensor([rows[r][p] for r, p in zip(packing.row, packing.place, strict=True)], device=data.DEVICE)
    before = [rows[r][p - 1] if p else -1 for r, p in zip(packing.row, packing.place, strict=True)]
    hidden = model.hidden(packing, toy.codes[item], torch.tensor(before, device=data.DEVICE))
    for row, history in enumerate(histories):
        last = int(np.flatnonzero((packing.row == row) & (packing.place == len(history)))[0])
        log_p = model.level_logits(hidden[[last]])[0, 0].log_softmax(-1)
        sids, items = model.answer([history], beams=ITEMS)
        torch.testing.assert_close(model.item_logits(hidden[[last], 0]).softmax(-1), items, rtol=0.02, atol=1e-4)
        legal = toy.child[0][0] >= 0
        first = torch.stack([sids[0, :ITEMS][toy.codes[:, 0] == code].sum() for code in torch.nonzero(legal)[:, 0]])
        torch.testing.assert_close(log_p[legal].softmax(0), first, rtol=0.02, atol=1e-4)


def test_the_open_jobs_find_their_teachers_among_the_results(modules):
    _, plan, run = modules
    opened, results = run.read_lines(FOLDER / "open_jobs.jsonl"), run.read_lines(FOLDER / "results.jsonl")
    planned = plan.with_teachers(opened, [line["job"] for line in results])
    done = [job["id"] for job in planned]
    assert {job["id"] for job in opened} <= set(done) and len(set(done)) == len(done)
    for job in planned:
        assert all(done.index(teacher) < done.index(job["id"]) for teacher in job.get("teacher", []))
    assert {job["id"] for job in plan.all_jobs()} <= {*done, *(line["job"]["id"] for line in results)}
