"""Output of the alternate stage: checkpoint, tokenizer and log, and the later stages that read them."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from llmrec.cli import main
from llmrec.data.catalog import Catalog
from llmrec.model.checkpoint import SidConfig
from llmrec.recommender import Recommender
from llmrec.runtime.manifest import verify
from llmrec.sid.table import SidTable
from llmrec.stages import alternate
from llmrec.tokenizers import load_tokenizer
from llmrec.tokenizers.append import PublishedSids
from llmrec.views import ItemViews, View
from tests.support.alternated import (
    CODES,
    LEVELS,
    SFT,
    SHORT,
    STEPS_PER_EPOCH,
    Line,
    alternate_config,
    cycles_of,
    log_of,
    run,
)
from tests.support.extended import fine_tune, losses, same_weights, write_llm
from tests.support.prepared import run_json, write_catalog


def test_the_checkpoint_and_the_tokenizer_in_it(turns, turned):
    verify(turned, "alternate")
    sid_config, table, details = SidConfig.load(turned)
    assert table.sha256 != SidConfig.load(turns.model)[1].sha256 and sid_config.normalize_over == "level"
    assert details["alternate"]["cycle_steps"] == 2 and details["counts"]["cycles"] == 3
    card = (turned / "README.md").read_text()
    assert "cycle_steps: 2" in card and str(turned.parent) not in card
    items, scores = Recommender.from_pretrained(turned, device="cpu").recommend([["item-0", "item-1"]], k=5)
    assert len(set(items[0])) == 5 and np.isfinite(scores).all()

    verify(turned / "sid", "tokenize")
    assert SidTable.load(turned / "sid").sha256 == table.sha256
    catalog = Catalog.load(turns.catalog)
    codes = load_tokenizer(turned / "sid", "cpu").encode(catalog, ItemViews.load(turns.views, catalog)).codes
    np.testing.assert_array_equal(codes, table.all_codes[:, :-1])
    assert PublishedSids.load(turned / "sid", "cpu").policy == "suffix_ordinal"
    assert json.loads((turned / "sid" / "report.json").read_text())["sid_sha256"] == table.sha256


def test_evaluate_and_a_later_phase_read_the_result(capsys, turns, turned, tmp_path):
    argv = ["evaluate", "--catalog", turns.catalog, "--model", str(turned), "--out", str(tmp_path / "eval"), "--device",
            "cpu", "--max-examples", "6", "--baselines"]  # fmt: skip
    assert main(argv) == 0
    fine_tune(tmp_path / "sft", turns.catalog, turned, **SFT)
    assert SidConfig.load(tmp_path / "sft")[1].sha256 == SidConfig.load(turned)[1].sha256
    assert [phase["alternate"]["cycle_steps"] for phase in SidConfig.load(tmp_path / "sft")[2]["earlier"]] == [2]


def test_a_fresh_recommender_trains_on_the_final_semantic_ids(capsys, turns, turned, tmp_path):
    """The commands of docs/alternate.md: `extend` on the base of the first model, then `sft`."""
    run_json(
        capsys, "extend", "--sid", turned / "sid", "--model", write_llm(tmp_path / "llm"), "--out", tmp_path / "base"
    )
    fine_tune(tmp_path / "sft", turns.catalog, tmp_path / "base", **SFT)
    _, table, details = SidConfig.load(tmp_path / "sft")
    assert table.sha256 == SidConfig.load(turned)[1].sha256 and "alternate" not in json.dumps(details)
    assert len(losses(tmp_path / "sft")) == SFT["max_steps"]


def test_new_items_are_appended_to_its_semantic_ids_and_to_the_checkpoint(capsys, turns, turned, tmp_path):
    """A thirteenth item is added to the twelve, whose suffixes may have gaps."""
    old = Catalog.load(turns.catalog)
    new = pa.concat_tables([old.items, old.items.slice(0, 1).set_column(0, "item_id", pa.array(["item-12"]))])
    grown = write_catalog(tmp_path / "catalog", new, old._split)
    view = ItemViews.load(turns.views, old)["sasrec"]
    larger = View(np.append(view.vectors, view.vectors[5:6], axis=0), np.append(view.missing, False))
    (tmp_path / "views").mkdir()
    ItemViews({"sasrec": larger}).save(tmp_path / "views")
    argv = ["tokenize", "--append", turned / "sid", "--catalog", grown.source, "--views", tmp_path / "views"]
    report = run_json(capsys, *argv, "--out", tmp_path / "sid", "--method", "etegrec", "--device", "cpu")
    assert "1 new items; 12 keep" in report["notes"][0]
    codes = SidTable.load(tmp_path / "sid").all_codes
    assert codes[12, :-1].tolist() == codes[5, :-1].tolist() and len(np.unique(codes, axis=0)) == 13
    run_json(capsys, "extend", "--sid", tmp_path / "sid", "--model", turned, "--out", tmp_path / "extended")
    assert SidConfig.load(tmp_path / "extended")[1].num_items == 13


def test_a_further_run_starts_from_its_semantic_ids(turns, turned, tmp_path):
    run(tmp_path / "again", Line(turns.catalog, turns.views, str(turned / "sid"), str(turned)), **SHORT)
    assert SidConfig.load(tmp_path / "again")[2]["earlier"][0]["counts"]["cycles"] == 3


def test_the_prompt_of_an_earlier_phase_is_kept(turns, tmp_path):
    fine_tune(tmp_path / "sft", turns.catalog, turns.model, **{**SFT, "max_steps": 1}, instruction="user history:")
    after_sft = Line(turns.catalog, turns.views, turns.sid, str(tmp_path / "sft"))
    inputs = alternate.load(alternate_config(tmp_path / "out", after_sft))
    assert inputs.start.sid_config.prompt == SidConfig.load(tmp_path / "sft")[0].prompt
    assert inputs.llm.instruction == "user history:"


def test_each_cycle_logs_losses_and_metrics_of_the_codes(turned):
    entries = cycles_of(turned)
    assert [entry["cycle"] for entry in entries] == [1, 2, 3] and [entry["step"] for entry in entries] == [2, 4, 6]
    names = {
        "churn",
        "pass_own",
        "pass_sia",
        "pass_psa",
        "unique_per_item",
        *(f"perplexity_{level}" for level in range(LEVELS)),
    }
    for entry in entries:
        assert names <= entry.keys() and all(np.isfinite(entry[name]) for name in names)
        assert 1 <= entry["perplexity_0"] <= CODES and 0 < entry["unique_per_item"] <= 1
    assert sum(entry["churn"] for entry in entries) > 0
    assert [entry["step"] for entry in log_of(turned) if "loss" in entry] == list(range(1, 9)), "a pass hides no loss"


def test_the_alignment_is_learned(turns, tmp_path):
    """Both losses fall over the steps of the LLM, while the tokenizer does not train."""
    options = {"epochs": 40 / STEPS_PER_EPOCH, "cycle_steps": 35, "freeze_after": 0.9, "align_after": 0}
    run(
        tmp_path / "out", turns, **options, sia_weight=1, psa_weight=1, learning_rate=1e-2, tokenizer_learning_rate=1e-6
    )
    seen = [entry for entry in log_of(tmp_path / "out") if "sia" in entry]
    for name in ("sia", "psa"):
        curve = [entry[name] for entry in seen]
        assert np.mean(curve[-5:]) < 0.7 * np.mean(curve[:5])


def test_validation_ranks_by_the_semantic_ids_of_the_step_and_the_best_triple_is_saved(turns, tmp_path):
    """The saved model, with the saved table, has the logged metric; the saved tokenizer makes that table."""
    counts = run(tmp_path / "out", turns, eval_steps=2, learning_rate=5e-3)
    entries = {entry["step"]: entry["eval_ndcg@10"] for entry in log_of(tmp_path / "out") if "eval_ndcg@10" in entry}
    assert entries.keys() == {2, 4, 6, 8} and counts["valid_ndcg@10"] == max(entries.values())
    argv = ["evaluate", "--catalog", turns.catalog, "--model", str(tmp_path / "out"), "--out", str(tmp_path / "eval"),
            "--split", "valid", "--k", "10", "--device", "cpu", "--baselines"]  # fmt: skip
    assert main(argv) == 0
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["systems"]["ours"]["plain"]["ndcg@10"] == pytest.approx(entries[counts["saved_step"]], abs=1e-6)
    catalog = Catalog.load(turns.catalog)
    encoded = load_tokenizer(tmp_path / "out" / "sid", "cpu").encode(catalog, ItemViews.load(turns.views, catalog))
    np.testing.assert_array_equal(encoded.codes, SidTable.load(tmp_path / "out").all_codes[:, :-1])


def test_law_12_the_seed_decides(turns, turned, tmp_path):
    for name, seed in (("again", 0), ("other", 1)):
        run(tmp_path / name, turns, dropout=0.1, save_steps=2, seed=seed)
    assert losses(tmp_path / "again") == losses(turned) != losses(tmp_path / "other")
    assert same_weights(tmp_path / "again", turned) and not same_weights(tmp_path / "other", turned)
