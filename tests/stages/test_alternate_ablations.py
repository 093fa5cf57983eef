"""The ablations of the alternate stage, from the command line."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from llmrec.training.alternate import trainer as training
from tests.support.alternated import SHORT, cycles_of, flags_of, log_of, run
from tests.support.prepared import run_json


@pytest.mark.parametrize(
    "options",
    [
        {"optimization": "joint"},
        {"sia_weight": 0},
        {"psa_weight": 0},
        {"train": "full"},
        {"train": "sid_tokens"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_ablations_run_from_the_command_line(capsys, turns, tmp_path, options):
    result = run_json(capsys, "alternate", *flags_of(turns, **SHORT, **options), "--out", tmp_path / "out")
    assert result["cycles"] == 3 and np.isfinite(result["loss"])
    aligned = [entry for entry in log_of(tmp_path / "out") if "sia" in entry]
    assert any(entry["sia"] for entry in aligned) == (options.get("sia_weight") != 0)
    assert any(entry["psa"] for entry in aligned) == (options.get("psa_weight") != 0)


def test_joint_training_moves_the_tokenizer_at_every_step(turns, tmp_path, monkeypatch):
    books = []
    original = training.AlternateTrainer.training_step

    def step(self, *arguments, **options):
        books.append(self.turns.training.tokenizer.quantizer.codebooks[0].detach().clone())
        return original(self, *arguments, **options)

    monkeypatch.setattr(training.AlternateTrainer, "training_step", step)
    run(tmp_path / "out", turns, optimization="joint")
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(books)]
    assert moved == [True] * 6 + [False], "until the last pass, after which the tokenizer is frozen"
    assert not any("pass_own" in entry for entry in cycles_of(tmp_path / "out"))
