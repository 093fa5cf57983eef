"""Runs of sft with alignment tasks: mixed with histories, alone, resumed, and too long for the model."""

from __future__ import annotations

import numpy as np
import pytest

from llmrec.configs.tasks import TASKS
from llmrec.data.catalog import Catalog
from llmrec.sid.table import SidTable
from llmrec.training.sft.examples import HistoryCollator
from tests.conftest import CODES, TITLES
from tests.support.extended import extended, fine_tune, losses, same_weights
from tests.support.prepared import write_catalog
from tests.training.test_checkpoints import interrupt_at


@pytest.fixture(scope="module")
def rich_toy(toy, tmp_path_factory):
    """`toy` with categories and descriptions of words that its model knows."""
    root = tmp_path_factory.mktemp("rich")
    plain = Catalog.load(toy[0])
    texts = [f"{title}. red tea" for title in TITLES]
    kinds = [title.split()[1] for title in TITLES]
    items = plain.items.set_column(2, "text", [texts]).append_column("category", [kinds])
    catalog = write_catalog(root / "catalog", items, plain._split)
    return catalog.source, extended(root, SidTable(plain.item_ids, CODES, level_sizes=[4, 4, 4]))


OPTIONS = {"tasks": list(TASKS), "dropout": 0.1, "max_steps": 13, "save_steps": 1, "seed": 2}


def test_law_12_a_resumed_run_draws_the_same(monkeypatch, tmp_path, rich_toy):
    """27 histories and 4 draws of each task, 7 steps an epoch: killed at the end of one, and late in the next."""
    epochs, collate = [], HistoryCollator.__call__
    monkeypatch.setattr(
        HistoryCollator, "__call__", lambda self, batch: epochs.append(self.epoch) or collate(self, batch)
    )
    whole = fine_tune(tmp_path / "whole", *rich_toy, **OPTIONS)
    assert (whole["examples"], whole["task_examples"]) == (27, 24)
    assert epochs[:12] == [0] * 7 + [1] * 5
    again = tmp_path / "again"
    for step in (7, 12):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_at(patch, step)
            fine_tune(again, *rich_toy, **OPTIONS)
        epochs.clear()
    fine_tune(again, *rich_toy, **OPTIONS)
    assert set(epochs) == {1}
    assert losses(again) == losses(tmp_path / "whole") and same_weights(again, tmp_path / "whole")
    fine_tune(tmp_path / "other", *rich_toy, **{**OPTIONS, "seed": 3})
    assert losses(again) != losses(tmp_path / "other")


def test_alignment_first(tmp_path, rich_toy):
    """Tasks alone, then histories alone on the result."""
    counts = fine_tune(tmp_path / "aligned", *rich_toy, histories=False, tasks=["title_to_sid"], max_steps=3)
    assert counts["examples"] == counts["targets"] == 0 and counts["task_examples"] == 27
    assert counts["tokens_per_second"] > 0
    fine_tune(tmp_path / "sft", rich_toy[0], tmp_path / "aligned", max_steps=2)
    assert not same_weights(tmp_path / "aligned", tmp_path / "sft")


def test_tasks_are_learned(tmp_path, rich_toy):
    options = {"train": "full", "learning_rate": 5e-3, "batch_size": 24, "max_steps": 60, "histories": False}
    fine_tune(tmp_path / "sft", *rich_toy, tasks=["title_to_sid", "sid_to_title"], **options)
    curve = losses(tmp_path / "sft")
    assert curve[0] > 1.5 and np.mean(curve[-3:]) < 0.3


def test_tasks_that_exceed_the_context_are_refused(monkeypatch, tmp_path, rich_toy):
    monkeypatch.setattr("llmrec.training.tasks.examples.HISTORY_ITEMS", 60)
    with pytest.raises(ValueError, match=r"'titles_to_sid' takes up to \d+ tokens but the model's context is 128"):
        fine_tune(tmp_path / "sft", *rich_toy, tasks=["titles_to_sid"])
    assert not list(tmp_path.iterdir())
