"""The alternate stage: what it is without alignment, what it leaves, its ablations, resumption and bad input."""

from __future__ import annotations

import importlib.metadata
import inspect
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from alternated import (
    CODES,
    LEVELS,
    SMALL,
    Line,
    cycles_of,
    log_of,
    run,
    write_line,
)
from extended import fine_tune, losses, same_weights, weights_of
from prepared import run_json, write_catalog
from transformers import Trainer

from llmrec.append import Published
from llmrec.catalog import Catalog
from llmrec.checkpoint import Binding
from llmrec.cli import main
from llmrec.manifest import verify
from llmrec.recommender import Recommender
from llmrec.sid import SidTable
from llmrec.tokenizers import load_tokenizer
from llmrec.training import alternate as training
from llmrec.views import ItemViews, View

VERSIONS = {name: importlib.metadata.version(name) for name in ("transformers", "trl", "accelerate")}
SFT = {name: SMALL[name] for name in ("max_steps", "batch_size", "micro_batch_size", "max_history", "learning_rate")}


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Line:
    """Everything before the stage; only read."""
    return write_line(tmp_path_factory.mktemp("line"))


@pytest.fixture(scope="module")
def done(line, tmp_path_factory) -> Path:
    """A run of the stage with LoRA; only read."""
    out = tmp_path_factory.mktemp("done") / "out"
    run(out, line, lora_dropout=0.1, save_steps=2)
    return out


# What it is without its parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", ["lora", "full"])
def test_without_alignment_and_passes_it_is_sft_bit_for_bit(line, tmp_path, train):
    """With dropout, so that a random number drawn by the one and not by the other would show."""
    options = {"train": train, "dropout": 0.1, "lora_dropout": 0.1}
    fine_tune(tmp_path / "sft", line.catalog, line.model, **SFT, **options)
    run(tmp_path / "out", line, **options, sia_weight=0, psa_weight=0, freeze_after=0)
    assert losses(tmp_path / "out") == losses(tmp_path / "sft")
    assert same_weights(tmp_path / "out", tmp_path / "sft")
    assert Binding.load(tmp_path / "out")[1].sha256 == Binding.load(tmp_path / "sft")[1].sha256
    assert not cycles_of(tmp_path / "out")


def test_passes_without_alignment_change_semantic_ids_alone(line, tmp_path):
    """Until the first swap the steps are those of sft; the tokenizer is trained on its own loss."""
    fine_tune(tmp_path / "sft", line.catalog, line.model, **SFT)
    run(tmp_path / "out", line, sia_weight=0, psa_weight=0)
    assert losses(tmp_path / "out")[:2] == losses(tmp_path / "sft")[:2]
    assert losses(tmp_path / "out")[2:] != losses(tmp_path / "sft")[2:]
    assert all(entry["pass_sia"] == entry["pass_psa"] == 0 < entry["pass_own"] for entry in cycles_of(tmp_path / "out"))


def test_before_alignment_nothing_but_the_cross_entropy_is_trained_on(line, tmp_path):
    run(tmp_path / "one", line, align_after=0.4)
    run(tmp_path / "other", line, align_after=0.4, sia_weight=0.7, psa_weight=0.3)
    one, other = losses(tmp_path / "one"), losses(tmp_path / "other")
    assert one[:3] == other[:3] and one[3] != other[3]
    aligned = {entry["step"] for entry in log_of(tmp_path / "one") if entry.get("sia")}
    assert aligned == {4, 5, 6}, "after .4 of 8 steps, until the last pass within .8"
    first, *others = cycles_of(tmp_path / "one")
    assert first["pass_sia"] == 0 and all(entry["pass_sia"] > 0 for entry in others)


# The result -----------------------------------------------------------------------------------------------------------


def test_what_the_stage_leaves(line, done):
    """An ordinary checkpoint with semantic IDs of its own, and the tokenizer that makes them."""
    verify(done, "alternate")
    binding, table, details = Binding.load(done)
    assert table.sha256 != Binding.load(line.model)[1].sha256 and binding.normalize_over == "level"
    assert details["sft"]["cycle_steps"] == 2 and details["counts"]["cycles"] == 3
    card = (done / "README.md").read_text()
    assert "cycle_steps: 2" in card and str(done.parent) not in card
    items, scores = Recommender.from_pretrained(done, device="cpu").recommend([["item-0", "item-1"]], k=5)
    assert len(set(items[0])) == 5 and np.isfinite(scores).all()

    verify(done / "sid", "tokenize")
    assert SidTable.load(done / "sid").sha256 == table.sha256
    catalog = Catalog.load(line.catalog)
    codes = load_tokenizer(done / "sid", "cpu").encode(catalog, ItemViews.load(line.views, catalog)).codes
    np.testing.assert_array_equal(codes, table.all_codes[:, :-1])
    assert Published.load(done / "sid", "cpu").policy == "suffix_ordinal"
    assert json.loads((done / "sid" / "report.json").read_text())["sid_sha256"] == table.sha256


def test_evaluate_and_a_later_phase_take_it(capsys, line, done, tmp_path):
    argv = ["evaluate", "--catalog", line.catalog, "--model", str(done), "--out", str(tmp_path / "eval"), "--device",
            "cpu", "--max-rows", "6", "--bootstrap-samples", "5", "--baselines"]  # fmt: skip
    assert main(argv) == 0
    fine_tune(tmp_path / "sft", line.catalog, done, **SFT)
    assert Binding.load(tmp_path / "sft")[1].sha256 == Binding.load(done)[1].sha256
    assert [phase["sft"]["cycle_steps"] for phase in Binding.load(tmp_path / "sft")[2]["earlier"]] == [2]


def test_new_items_are_appended_to_its_semantic_ids_and_to_the_checkpoint(capsys, line, done, tmp_path):
    """A thirteenth item beside the twelve, whose suffixes may have gaps."""
    old = Catalog.load(line.catalog)
    new = pa.concat_tables([old.items, old.items.slice(0, 1).set_column(0, "item_id", pa.array(["item-12"]))])
    grown = write_catalog(tmp_path / "catalog", new, old._split)
    view = ItemViews.load(line.views, old)["sasrec"]
    larger = View(np.append(view.vectors, view.vectors[5:6], axis=0), np.append(view.missing, False))
    (tmp_path / "views").mkdir()
    ItemViews({"sasrec": larger}).save(tmp_path / "views")
    argv = ["tokenize", "--append", done / "sid", "--catalog", grown.source, "--views", tmp_path / "views"]
    report = run_json(capsys, *argv, "--out", tmp_path / "sid", "--method", "etegrec", "--device", "cpu")
    assert "1 new items; 12 keep" in report["notes"][0]
    codes = SidTable.load(tmp_path / "sid").all_codes
    assert codes[12, :-1].tolist() == codes[5, :-1].tolist() and len(np.unique(codes, axis=0)) == 13
    run_json(capsys, "extend", "--sid", tmp_path / "sid", "--model", done, "--out", tmp_path / "extended")
    assert Binding.load(tmp_path / "extended")[1].num_items == 13


def test_a_further_run_starts_from_its_semantic_ids(line, done, tmp_path):
    run(tmp_path / "again", Line(line.catalog, line.views, str(done / "sid"), str(done)))
    assert Binding.load(tmp_path / "again")[2]["earlier"][0]["counts"]["cycles"] == 3


def test_signs_of_failure_are_logged_while_it_trains(done):
    entries = cycles_of(done)
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
    assert [entry["step"] for entry in log_of(done) if "loss" in entry] == list(range(1, 9)), "a pass hides no loss"


def test_the_alignment_is_learned(line, tmp_path):
    """With the cross-entropy's gradient almost off, both losses fall over the steps of the LLM."""
    options = {"max_steps": 40, "cycle_steps": 35, "freeze_after": 0.9, "align_after": 0, "pass_steps": 1}
    run(tmp_path / "out", line, **options, sia_weight=1, psa_weight=1, learning_rate=1e-2, tokenizer_learning_rate=1e-6)
    seen = [entry for entry in log_of(tmp_path / "out") if "sia" in entry]
    for name in ("sia", "psa"):
        curve = [entry[name] for entry in seen]
        assert np.mean(curve[-5:]) < 0.7 * np.mean(curve[:5])


def test_validation_ranks_by_the_semantic_ids_of_the_step_and_the_best_triple_is_saved(line, tmp_path):
    """The saved model, with the saved table, has the logged figure; the tokenizer beside it makes that table."""
    counts = run(tmp_path / "out", line, eval_steps=2, learning_rate=5e-3)
    entries = {entry["step"]: entry["eval_ndcg@10"] for entry in log_of(tmp_path / "out") if "eval_ndcg@10" in entry}
    assert entries.keys() == {2, 4, 6, 8} and counts["valid_ndcg@10"] == max(entries.values())
    argv = ["evaluate", "--catalog", line.catalog, "--model", str(tmp_path / "out"), "--out", str(tmp_path / "eval"),
            "--split", "valid", "--k", "10", "--device", "cpu", "--bootstrap-samples", "5", "--baselines"]  # fmt: skip
    assert main(argv) == 0
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["systems"]["ours"]["plain"]["ndcg@10"] == pytest.approx(entries[counts["saved_step"]], abs=1e-6)
    catalog = Catalog.load(line.catalog)
    encoded = load_tokenizer(tmp_path / "out" / "sid", "cpu").encode(catalog, ItemViews.load(line.views, catalog))
    np.testing.assert_array_equal(encoded.codes, SidTable.load(tmp_path / "out").all_codes[:, :-1])


# Turns ----------------------------------------------------------------------------------------------------------------


def test_each_trains_in_its_turn(line, tmp_path, monkeypatch):
    """The LLM and the adapters stand still in a pass, without dropout; the tokenizer stands still between passes."""
    seen = []

    def watched(self, aligned):
        model, adapters = self.trainer.model, self.adapters
        state = [copy_of(part) for part in (model, adapters, self.tokenizer)]
        modes = [module.training for module in model.modules()]
        found = original(self, aligned)
        same = [unchanged(part, old) for part, old in zip((model, adapters, self.tokenizer), state, strict=True)]
        seen.append((*same, modes == [module.training for module in model.modules()], any(modes)))
        assert all(parameter.grad is None for parameter in adapters.parameters())
        return found

    def reading(self, examples, aligned):
        assert not any(module.training for module in self.trainer.model.modules())
        return read(self, examples, aligned)

    original, read = training.Alternation.train_tokenizer, training.Alternation.read
    monkeypatch.setattr(training.Alternation, "train_tokenizer", watched)
    monkeypatch.setattr(training.Alternation, "read", reading)
    between = []
    step = training.AlternateTrainer.training_step

    def stepping(self, *arguments, **options):
        between.append(copy_of(self.alternation.tokenizer))
        return step(self, *arguments, **options)

    monkeypatch.setattr(training.AlternateTrainer, "training_step", stepping)
    run(tmp_path / "out", line, train="full", dropout=0.2)
    assert seen == [(True, True, False, True, True)] * 3
    stays = [all(torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(between)]
    assert stays == [True, False, True, False, True, False, True]


def copy_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def unchanged(module: torch.nn.Module, old: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, old[name]) for name, tensor in module.state_dict().items())


def test_a_step_after_a_swap_reads_the_new_semantic_ids(line, tmp_path, monkeypatch):
    """accelerate draws a batch ahead; its tokens must be those of the table that the rows have been moved to."""
    original = training.AlternateTrainer.training_step

    def checked(self, model, inputs, num_items_in_batch=None):
        tokens = set(inputs["input_ids"].flatten().tolist())
        known = self.alternation.vocabulary.token_ids(self.alternation.table.all_codes)
        sids = set(self.alternation.vocabulary.token_range)
        assert tokens & sids <= set(known.flatten().tolist())
        rows = inputs["input_ids"].flatten()
        ends = inputs["pools"]["item_ends"] if "pools" in inputs else torch.zeros(0, dtype=torch.int64)
        sid = rows[ends[ends > 0][:, None] + torch.arange(-LEVELS, 1)]
        assert {tuple(each) for each in sid.tolist()} <= {tuple(each) for each in known.tolist()}
        checks.append(len(sid))
        return original(self, model, inputs, num_items_in_batch)

    checks: list[int] = []
    monkeypatch.setattr(training.AlternateTrainer, "training_step", checked)
    run(tmp_path / "out", line)
    assert len(checks) == 8 and sum(count > 0 for count in checks) == 6


def test_a_tokenizer_that_hardly_moves_is_frozen_early(line, tmp_path):
    options = {"max_steps": 12, "freeze_after": 0.9, "align_after": 0.0, "tokenizer_learning_rate": 1e-12}
    counts = run(tmp_path / "out", line, **options)
    assert counts["cycles"] == 3 and counts["changed_items"] == 0
    assert [entry["step"] for entry in log_of(tmp_path / "out") if entry.get("sia")] == [1, 2, 3, 4, 5, 6]


def test_law_12_the_seed_decides(line, done, tmp_path):
    for name, seed in (("again", 0), ("other", 1)):
        run(tmp_path / name, line, lora_dropout=0.1, save_steps=2, seed=seed)
    assert losses(tmp_path / "again") == losses(done) != losses(tmp_path / "other")
    assert same_weights(tmp_path / "again", done) and not same_weights(tmp_path / "other", done)


# What we rely on in transformers ------------------------------------------------------------------------------------


def test_hooks_of_the_trainer():
    """Methods that AlternateTrainer overrides, or calls, by their names and arguments."""
    expected = {
        "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
        "_get_num_items_in_batch": ["self", "batch_samples", "device"],
        "_save_optimizer_and_scheduler": ["self", "output_dir"],
        "_load_optimizer_and_scheduler": ["self", "checkpoint"],
        "_load_best_model": ["self"],
    }
    for name, arguments in expected.items():
        assert list(inspect.signature(getattr(Trainer, name)).parameters) == arguments, VERSIONS


def test_a_finished_run_is_not_run_again(line, done, tmp_path):
    shutil.copytree(done, tmp_path / "out")
    written = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    run(tmp_path / "out", line, lora_dropout=0.1, save_steps=2)
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == written
    assert weights_of(tmp_path / "out").keys() == weights_of(done).keys()
