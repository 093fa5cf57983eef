"""A planted preference is learned: held-out NDCG@10 above that of sft, with intervals apart.

Learning rate and beta are the first that were tried; the step is chosen on the validation examples. docs/preference.md
has the figures, also of other negatives and of more sft.
"""

from __future__ import annotations

import json

import pytest

from llmrec.configs import DpoConfig, EvaluateConfig, GrpoConfig
from llmrec.stages import dpo, evaluate, grpo
from tests.support.extended import fine_tune
from tests.support.planted import planted

pytestmark = pytest.mark.slow

SFT = {"train": "full", "max_steps": 240, "learning_rate": 2e-3, "batch_size": 64, "micro_batch_size": 64,
       "max_history": 15, "eval_steps": 60}  # fmt: skip
DPO = {"epochs": 2, "learning_rate": 1e-3, "beta": 0.3, "negatives": 8, "batch_size": 64, "micro_batch_size": 64,
       "warmup_steps": 5, "eval_steps": 23}  # fmt: skip

GRPO = {"epochs": 2, "learning_rate": 1e-3, "rewards": ["rule"], "batch_size": 64, "micro_batch_size": 64,
        "warmup_steps": 5, "eval_steps": 23}  # fmt: skip


@pytest.fixture(scope="module")
def line(tmp_path_factory, one_thread):
    """Directory and catalogue of a checkpoint of sft, saved at the step that validates best."""
    root = tmp_path_factory.mktemp("planted")
    catalog, base, _ = planted(root, num_users=1500, num_items=256)
    fine_tune(root / "sft", catalog, base, **SFT)
    return root, catalog


def measured(root, catalog, name: str) -> tuple[float, float]:
    """95 % interval, over users, of a checkpoint's NDCG@10 on the test examples."""
    out, options = root / f"eval-{name}", {"baselines": [], "device": "cpu", "overwrite": True}
    evaluate.main(EvaluateConfig(out=str(out), catalog=catalog, model=str(root / name), **options))
    metrics = json.loads((out / "metrics.json").read_text())
    low, high = metrics["systems"]["ours"]["plain"]["intervals"]["ndcg@10"]
    return low, high


def test_dpo_raises_ndcg_where_a_preference_is_planted(line):
    root, catalog = line
    dpo.main(DpoConfig(out=str(root / "dpo"), catalog=catalog, model=str(root / "sft"), device="cpu", **DPO))
    before, after = measured(root, catalog, "sft"), measured(root, catalog, "dpo")
    assert before[1] < after[0], (before, after)


def test_the_likelihood_of_the_target_saves_a_run_whose_negatives_are_beams_alone(line):
    """Without it the start is better than every step."""
    root, catalog = line
    counts = {}
    for name, weight in (("beams", 0.0), ("weighted", 1.0)):
        options = {**DPO, "negative_sources": ["beam"], "sft_weight": weight, "device": "cpu"}
        counts[name] = dpo.main(DpoConfig(out=str(root / name), catalog=catalog, model=str(root / "sft"), **options))
    assert counts["beams"]["saved_step"] == 0 < counts["weighted"]["saved_step"]
    before, after = measured(root, catalog, "sft"), measured(root, catalog, "weighted")
    assert before[1] < after[0], (before, after)


def test_grpo_raises_ndcg_where_a_preference_is_planted(line):
    """With the reward `rule` alone."""
    root, catalog = line
    grpo.main(GrpoConfig(out=str(root / "grpo"), catalog=catalog, model=str(root / "sft"), device="cpu", **GRPO))
    before, after = measured(root, catalog, "sft"), measured(root, catalog, "grpo")
    assert before[1] < after[0], (before, after)
