"""Learning curves in the evaluation: of ours from its training log, of trained baselines, and on the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llmrec.configs import EvaluateConfig
from llmrec.evaluation.learning import Epoch, learning, points_of_epochs, points_of_log
from llmrec.reports.evaluation import render
from llmrec.runtime.stage_directory import SCRATCH
from llmrec.stages import evaluate
from tests.reports.test_evaluation_page import LOG, Balanced, metrics  # noqa: F401
from tests.support.extended import fine_tune


def points(*ndcg: float) -> list[dict]:
    """A point every 10 items and 2 seconds."""
    return [{"supervised": 10 * i, "seconds": 2.0 * i, "ndcg": value} for i, value in enumerate(ndcg, start=1)]


@pytest.mark.parametrize(
    ("curve", "best", "near"),
    [
        ([0.1, 0.44, 0.45, 0.5, 0.2], 0.5, 3),  # .45 is 90 % of .5, .44 less
        ([0.5, 0.4], 0.5, 1),
        ([0.0, 0.2], 0.2, 2),
    ],
)
def test_a_learning_curve_by_hand(curve, best, near):
    found = learning(points(*curve))
    assert found["best"] == best and found["near"] == points(*curve)[near - 1] and found["curve"] == points(*curve)


def test_without_a_curve_or_a_hit_nothing_is_claimed():
    assert learning([]) is None
    assert learning(points(0.0, 0.0))["near"] is None


def test_both_logs_give_the_same_points():
    log = [{"loss": 2.0, "step": 1}, {"train_runtime": 9.0, "step": 4}]
    log[1:1] = [
        {"eval_ndcg@10": 0.1 * i, "eval_recall@10": 1.0, "eval_supervised": 30 * i, "eval_seconds": 1.5 * i, "step": i}
        for i in (2, 4)
    ]
    epochs = [Epoch(2.0, 0.2, 60, 3.0), Epoch(1.0, 0.4, 120, 6.0)]
    assert points_of_log(log) == points_of_epochs(epochs)
    assert points_of_log([{"loss": 2.0, "step": 1}]) == []


@pytest.fixture(scope="module")
def validated(toy, tmp_path_factory) -> Path:
    """A checkpoint that was validated at steps 2, 4 and 6 of its training."""
    out = tmp_path_factory.mktemp("validated") / "sft"
    fine_tune(out, *toy, max_steps=6, eval_steps=2, learning_rate=1e-2)
    return out


def config(out: Path, toy, model: Path, baselines: list[str]) -> EvaluateConfig:
    return EvaluateConfig(out=str(out), catalog=str(toy[0]), model=str(model), baselines=baselines, device="cpu")


def test_a_resumed_evaluation_finds_the_curve_of_a_baseline(monkeypatch, capsys, tmp_path, toy, validated):
    """Interrupted when the baseline was done in both columns, so that it is not trained again."""
    run = config(tmp_path / "eval", toy, validated, ["popularity", "gru4rec"])

    def dying(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "measured", dying)
        with pytest.raises(KeyboardInterrupt):
            evaluate.main(run)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "named_baseline", dying)
        result = evaluate.main(run)
    curves = result["learning"]
    assert curves.keys() == {"ours", "gru4rec"}
    log = [entry for entry in json.loads((validated / "training_log.json").read_text()) if "eval_seconds" in entry]
    assert [point["ndcg"] for point in curves["ours"]["curve"]] == [entry["eval_ndcg@10"] for entry in log]
    per_epoch = sum(1 + user % 6 for user in range(21))  # 2 to 7 items of a user, the first of which nothing precedes
    theirs = curves["gru4rec"]["curve"]
    assert [point["supervised"] for point in theirs] == [per_epoch * (i + 1) for i in range(len(theirs))]
    assert curves["gru4rec"]["near"]["ndcg"] >= 0.9 * curves["gru4rec"]["best"] > 0
    page = (tmp_path / "eval" / "report.html").read_text()
    assert "<h2>Learning</h2>" in page and "Of ours" not in page
    assert not (tmp_path / "eval" / SCRATCH).exists()


def test_a_model_that_was_not_validated(capsys, tmp_path, toy, tuned):
    assert evaluate.main(config(tmp_path / "eval", toy, tuned, []))["learning"] == {"ours": None}
    assert "the checkpoint was not validated during training" in (tmp_path / "eval" / "report.html").read_text()


def test_a_copy_without_a_log_has_no_curve(tmp_path, validated):
    shutil.copytree(validated, tmp_path / "copy")
    (tmp_path / "copy" / "training_log.json").unlink()
    assert points_of_log(evaluate.training_log(str(tmp_path / "copy"))) == []


def test_the_page_draws_learning_curves(metrics):  # noqa: F811
    """Both plots have a mark per point, also where one system was trained a thousand times longer."""
    plain = Balanced(render(metrics, LOG, "run"))
    long = [{"supervised": 10**i, "seconds": 10.0**i, "ndcg": 0.1 * i} for i in range(1, 6)]
    metrics["learning"] = {"ours": learning(points(0.1, 0.3)), "popularity": learning(long)}
    page = Balanced(render(metrics, LOG, "run"))
    assert page.tags.count("svg") == plain.tags.count("svg") + 2
    assert page.tags.count("circle") == plain.tags.count("circle") + 2 * (2 + 5)
    assert {"items to 90% of it", "100,000", "20"} <= set(page.texts)
    across = [float(value) for name, value in page.attributes if name == "cx"]
    assert all(0 <= x <= 560 for x in across)


def test_the_page_of_a_model_that_never_hit(metrics):  # noqa: F811
    metrics["learning"] = {"ours": learning(points(0.0, 0.0))}
    assert "-" in Balanced(render(metrics, LOG, "run")).texts
