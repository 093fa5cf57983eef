"""Exact ranking and the beam's: by hand, and against scores of every SID from plain forward passes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from llmrec.cli import main
from llmrec.data.catalog import Catalog
from llmrec.evaluation.exact import compare_with_beam, draw_examples, share_found
from llmrec.evaluation.metrics import Position
from llmrec.evaluation.protocol import Outcome
from llmrec.model.checkpoint import SidConfig, load_model, load_tokenizer
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.recommender import Recommender


def test_what_the_beam_found_by_hand():
    exact = np.array([[0, 1, 2], [3, 4, -1]])
    beam = np.array([[2, 0, 5], [4, -1, -1]])
    assert share_found(exact, exact) == 1.0
    assert share_found(exact, beam) == 3 / 5  # 0 and 2 of three, 4 of two; an empty slot is nothing to find
    assert share_found(exact[:, :1], beam[:, :1]) == 0.0  # neither first place
    assert share_found(np.full((1, 2), -1), beam[:1, :2]) == 0.0


def test_both_rankings_are_of_the_drawn_examples_by_hand():
    nothing = np.zeros(3, np.int64)
    positions = np.array([0, -1, 1]), np.ones(3, np.int64), np.array([0, -1, 1])
    beam = Outcome(Position(*positions), np.array([[7, 8], [1, 2], [4, 5]]), nothing, 1.0)
    exact = Outcome(
        Position(np.array([0, 0]), np.ones(2, np.int64), nothing[:2]), np.array([[3, 1], [5, 6]]), nothing[:2], 1.0
    )
    assert compare_with_beam(exact, beam, np.array([1, 2]), [2, 1]) == {
        "exact": {"recall@1": 1.0, "recall@2": 1.0, "ndcg@1": 1.0, "ndcg@2": 1.0},
        "beam": {"recall@1": 0.0, "recall@2": 0.5, "ndcg@1": 0.0, "ndcg@2": pytest.approx(0.5 / np.log2(3))},
        "found": {"found@1": 0.0, "found@2": 0.5},
    }


def test_examples_are_drawn_by_the_seed():
    assert draw_examples(9, 20, 0).tolist() == list(range(9))
    drawn = draw_examples(100, 10, 3)
    assert len(set(drawn)) == 10 and (np.diff(drawn) > 0).all()
    assert drawn.tolist() == draw_examples(100, 10, 3).tolist() != draw_examples(100, 10, 4).tolist()


@torch.no_grad()
def every_score(directory, history) -> np.ndarray:
    """(12,) log-probability of each item's SID, one forward pass for each."""
    sid_config, table, _ = SidConfig.load(directory)
    model, encoder = load_model(directory).eval(), SidHistoryEncoder(table, sid_config.vocabulary)
    prefix = sid_config.prompt.prefix(load_tokenizer(directory))
    scores = []
    for row in range(table.num_items):
        sid = encoder.encode_history([row])
        ids = torch.tensor([[*prefix, *encoder.encode_history(history[-sid_config.max_history :]), *sid]])
        log_probs = model(ids).logits[0, -len(sid) - 1 : -1].log_softmax(dim=-1)
        scores.append(float(log_probs[range(len(sid)), sid.tolist()].sum()))
    return np.array(scores)


def command(toy, out, *flags: str) -> list[str]:
    return ["evaluate", "--catalog", toy[0], "--model", str(toy[1]), "--out", str(out), "--device", "cpu", "--k", "1",
            "2", "--num-beams", "2", "--baselines", "popularity", *flags]  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(toy, tmp_path_factory):
    """The untrained base, whose codes say little of what follows them, with as many beams as items wanted."""
    out = tmp_path_factory.mktemp("exact") / "eval"
    assert main(command(toy, out, "--exact-examples", "12")) == 0
    return out


def test_exact_is_what_scoring_every_sid_gives(toy, evaluated):
    """Recall as the chance of the target, which may share its score with one other item, to be among the first k."""
    rows = Catalog.load(toy[0]).examples("test")
    recalls, shares = {1: [], 2: []}, []
    recommender = Recommender.from_pretrained(toy[1], device="cpu")
    for i in draw_examples(len(rows), 12, 0):
        scores, target = every_score(toy[1], rows.history(i)), rows.targets[i]
        ahead = int((scores > scores[target] + 1e-6).sum())
        tied = int((abs(scores - scores[target]) <= 1e-6).sum())
        for k, values in recalls.items():
            values.append(min(max(k - ahead, 0) / tied, 1))
        history = [[f"item-{row}" for row in rows.history(i)]]
        (beam,), _ = recommender.recommend(history, k=2, exclude=None, num_beams=2)
        best = np.lexsort((np.arange(12), -scores.round(6)))[:2]
        shares += [f"item-{row}" in beam for row in best]
    exact = json.loads((evaluated / "metrics.json").read_text())["exact"]
    assert exact["num_examples"] == 12 and exact["num_beams"] == 12
    for k, values in recalls.items():
        assert exact["plain"]["exact"][f"recall@{k}"] == pytest.approx(np.mean(values))
    assert exact["plain"]["found"]["found@2"] == pytest.approx(np.mean(shares))
    assert exact["plain"]["found"]["found@2"] < 1, "the beam is too wide to show anything"


def test_the_beam_of_the_drawn_examples_is_the_one_evaluated(toy, evaluated, tmp_path, capsys):
    metrics = json.loads((evaluated / "metrics.json").read_text())
    page = (evaluated / "report.html").read_text()
    assert "What the beam misses" in page and f"{metrics['exact']['plain']['found']['found@2']:.4f}" in page
    capsys.readouterr()
    assert main(command(toy, tmp_path / "all", "--exact-examples", "1000")) == 0
    assert "On 21 examples every SID was scored as well" in (tmp_path / "all" / "report.html").read_text()
    every = json.loads((tmp_path / "all" / "metrics.json").read_text())
    for column in ("plain", "seen_excluded"):
        ours = every["systems"]["ours"][column]
        for name, value in every["exact"][column]["beam"].items():
            assert value == pytest.approx(ours[name]) == metrics["systems"]["ours"][column][name]
    assert main(command(toy, tmp_path / "none")) == 0
    assert json.loads((tmp_path / "none" / "metrics.json").read_text())["exact"] is None
    assert "What the beam misses" not in (tmp_path / "none" / "report.html").read_text()
