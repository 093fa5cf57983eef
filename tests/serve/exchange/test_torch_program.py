"""The program of torch.export ranks as Recommender does, for any number of histories of any length."""

from __future__ import annotations

import json

import pytest
import torch

from llmrec.cli import run
from llmrec.recommender import Recommender
from llmrec.serve.exchange.torch_program import ITEMS, PROGRAM, padded
from tests.support.extended import extended

HISTORIES = [[3, 6, 1, 0], [7], [11, 2]]


def exported(root, table, **options):
    """Checkpoint, program and content of items.json."""
    base = extended(root, table, **options)
    run(["export", "--model", str(base), "--to", "torch", "--out", str(root / "out")])
    items = json.loads((root / "out" / ITEMS).read_text())
    return base, torch.export.load(root / "out" / PROGRAM).module(), items


@torch.no_grad()
def assert_ranks_alike(base, program, items, rank):
    histories = [[items["item_ids"][row] for row in history] for history in HISTORIES]
    recommender = Recommender.from_pretrained(base, device="cpu", rank=rank)
    expected, scores = recommender.recommend(histories, k=12, exclude=None)
    every = program(padded(HISTORIES))
    for place, history in enumerate(HISTORIES):
        ours = [float(every[place, items["item_ids"].index(item)]) for item in expected[place]]
        assert ours == pytest.approx(scores[place], abs=1e-5)
        alone = program(padded([history]))[0]  # another batch and length
        torch.testing.assert_close(alone, every[place], atol=1e-5, rtol=0)


def test_item_rows(tmp_path, sid_table):
    assert_ranks_alike(*exported(tmp_path, sid_table, item_rows=True), "items")


@pytest.mark.parametrize("head", ["codes", "vectors"])
def test_heads(tmp_path, sid_table, head):
    assert_ranks_alike(*exported(tmp_path, sid_table, head=head), "sid")


def test_a_model_that_searches_is_refused(tmp_path, sid_table):
    with pytest.raises(ValueError, match="ranks by a beam search, which is no single forward pass"):
        exported(tmp_path, sid_table)
