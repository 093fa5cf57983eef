"""SIIT: sft, refine and sft again from the CLI and from Python, its off switches, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from llmrec.cli import main
from llmrec.configs import ExtendConfig, RefineConfig
from llmrec.model.checkpoint import SidConfig
from llmrec.recommender import Recommender
from llmrec.runtime.manifest import verify
from llmrec.sid.table import SidTable
from llmrec.stages import extend, refine
from tests.support.extended import extended, fine_tune, same_weights, weights_of
from tests.support.prepared import run_json

ITEM_IDS = [f"item-{row}" for row in range(12)]
TABLE = SidTable(ITEM_IDS, [[row // 4, row % 2, row % 3] for row in range(12)], level_sizes=[3, 2, 4])
SFT = {"train": "full", "max_steps": 4, "learning_rate": 5e-3, "batch_size": 24, "max_history": 10}


@pytest.fixture(scope="module")
def named(toy, tmp_path_factory):
    """Catalogue, and a checkpoint that has learned histories and titles of distinct semantic IDs; only read."""
    root = tmp_path_factory.mktemp("named")
    fine_tune(root / "sft", toy[0], extended(root, TABLE), **SFT, tasks=["title_to_sid"])
    return toy[0], root / "sft"


def refined(out, catalog, model, **options) -> dict:
    return refine.main(RefineConfig(out=str(out), catalog=str(catalog), model=str(model), device="cpu", **options))


def test_a_cycle_moves_few_items_and_each_keeps_one_sid_of_its_own(capsys, named, tmp_path):
    catalog, model = named
    flags = ["--catalog", catalog, "--model", model, "--device", "cpu", "--min-gain", "0"]
    counts = run_json(capsys, "refine", *flags, "--out", tmp_path / "refined")
    before, after = (SidConfig.load(each)[1] for each in (model, tmp_path / "refined"))
    churn = (before.all_codes != after.all_codes).any(axis=1).mean()
    assert 0 < churn == counts["churn"] <= 0.2 and counts["moved"] == 2 and counts["mean_gain"] > 0
    assert after.num_items == len(np.unique(after.all_codes, axis=0)) == len(after.all_codes)
    assert after.level_sizes == before.level_sizes and same_weights(model, tmp_path / "refined")
    verify(tmp_path / "refined", "refine")
    details = SidConfig.load(tmp_path / "refined")[2]
    assert details["refine"]["max_churn"] == 0.2 and "stage: refine" in (tmp_path / "refined" / "README.md").read_text()

    fine_tune(tmp_path / "again", catalog, tmp_path / "refined", **SFT, tasks=["title_to_sid"])
    details = SidConfig.load(tmp_path / "again")[2]
    assert [next(iter(phase)) for phase in details["earlier"]] == ["sft", "refine"]
    assert SidConfig.load(tmp_path / "again")[1].sha256 == after.sha256
    items, _ = Recommender.from_pretrained(tmp_path / "again", device="cpu").recommend([["item-0", "item-1"]], k=12)
    assert sorted(items[0]) == sorted({*ITEM_IDS} - {"item-0", "item-1"})
    with pytest.raises(ValueError, match="2 items have other semantic IDs than in the checkpoint"):
        extend.main(
            ExtendConfig(out=str(tmp_path / "no"), sid=str(model.parent / "sid"), model=str(tmp_path / "again"))
        )
    second = refined(tmp_path / "twice", catalog, tmp_path / "again", min_gain=0)
    assert second["churn"] <= 0.2

    capsys.readouterr()
    assert main(["refine", *map(str, flags), "--out", str(tmp_path / "refined")]) == 0
    assert "(16.7%) have another semantic ID" in capsys.readouterr().out, "it is there already"


@pytest.mark.parametrize("off", [{"max_churn": 0}, {"min_gain": 1e9}])
def test_without_churn_or_with_an_endless_least_gain_nothing_changes(named, tmp_path, off):
    """The run after it equals, bit for bit, one from the checkpoint itself."""
    catalog, model = named
    counts = refined(tmp_path / "refined", catalog, model, **off)
    assert counts["moved"] == counts["churn"] == counts["mean_gain"] == 0
    assert SidConfig.load(tmp_path / "refined")[1].sha256 == SidConfig.load(model)[1].sha256
    for start in (model, tmp_path / "refined"):
        fine_tune(tmp_path / f"after-{start.name}", catalog, start, **{**SFT, "max_steps": 2})
    assert same_weights(tmp_path / "after-sft", tmp_path / "after-refined")


def test_the_same_seed_gives_the_same_sids(named, tmp_path):
    one, two = (refined(tmp_path / name, *named, min_gain=0) for name in ("one", "two"))
    assert one | {"out": ""} == two | {"out": ""}
    assert SidConfig.load(tmp_path / "one")[1].sha256 == SidConfig.load(tmp_path / "two")[1].sha256


def test_items_that_share_a_sid_may_part(toy, tuned, tmp_path, capsys):
    """Items 4 and 5 share one; whoever leaves takes a free one, and no two others come together."""
    refined(tmp_path / "refined", toy[0], tuned, min_gain=0, max_churn=1)
    assert "trained without task title_to_sid" in capsys.readouterr().err
    before, after = (SidConfig.load(each)[1].all_codes for each in (tuned, tmp_path / "refined"))
    assert len(np.unique(after, axis=0)) >= len(np.unique(before, axis=0)) == 11


def test_item_rows_stay_with_their_items(toy, tmp_path):
    base = extended(tmp_path, TABLE, item_rows=True)
    fine_tune(tmp_path / "sft", toy[0], base, **SFT)
    assert refined(tmp_path / "refined", toy[0], tmp_path / "sft", min_gain=0)["moved"] > 0
    one, two = (Recommender.from_pretrained(tmp_path / name, device="cpu", rank="items") for name in ("sft", "refined"))
    assert one.recommend([["item-3"]], k=1)[0][0] and two.recommend([["item-3"]], k=12)[0][0]
    assert {name for name in weights_of(tmp_path / "sft")} == {name for name in weights_of(tmp_path / "refined")}


def test_what_cannot_be_refined_is_refused(capsys, toy, named, tmp_path, monkeypatch):
    def refusal(catalog, model, *flags) -> str:
        argv = ["refine", "--catalog", catalog, "--model", model, "--out", tmp_path / "no", "--device", "cpu", *flags]
        assert main([str(word) for word in argv]) == 2
        assert not (tmp_path / "no").exists()
        return capsys.readouterr().err

    full = extended(tmp_path / "full", SidTable(ITEM_IDS, [[row // 4, row % 4] for row in range(12)]))
    fine_tune(tmp_path / "full" / "sft", toy[0], full, **{**SFT, "max_steps": 1})
    assert "no free semantic ID" in refusal(toy[0], tmp_path / "full" / "sft")
    several = np.concatenate([[[row // 4, row % 4, code] for row in range(12)] for code in (0, 1)])
    two = SidTable(ITEM_IDS, several, np.tile(np.arange(12), 2), level_sizes=[4, 4, 3])
    fine_tune(tmp_path / "two" / "sft", toy[0], extended(tmp_path / "two", two), **{**SFT, "max_steps": 1})
    assert "several semantic IDs of an item" in refusal(toy[0], tmp_path / "two" / "sft")
    codes = SidTable(ITEM_IDS, [[row // 4, row % 4] for row in range(12)], level_sizes=[4, 4])
    head = extended(tmp_path / "head", codes, head="codes")
    fine_tune(tmp_path / "head" / "sft", toy[0], head, **{**SFT, "max_steps": 1})
    assert "head" in refusal(toy[0], tmp_path / "head" / "sft")
    monkeypatch.setattr("llmrec.runtime.processes.count", lambda: 2)
    assert "in one process" in refusal(*named)
