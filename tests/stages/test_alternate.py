"""The alternate stage: what it is without alignment, what it leaves, its ablations, resumption and bad input."""

from __future__ import annotations

import importlib.metadata
import inspect
import itertools
import shutil

import pytest
import torch
from transformers import Trainer

from llmrec.model.checkpoint import SidConfig
from llmrec.sid.table import SidTable
from llmrec.stages import alternate as stage
from llmrec.training.alternate import tokenizer_turns as alternation
from llmrec.training.alternate import trainer as training
from tests.support.alternated import (
    LEVELS,
    SMALL,
    cycles_of,
    log_of,
    run,
)
from tests.support.extended import fine_tune, losses, same_weights, weights_of

VERSIONS = {name: importlib.metadata.version(name) for name in ("transformers", "accelerate")}
SFT = {name: SMALL[name] for name in ("max_steps", "batch_size", "micro_batch_size", "max_history", "learning_rate")}


@pytest.mark.parametrize("train", ["lora", "full"])
def test_without_alignment_and_passes_it_is_sft_bit_for_bit(turns, tmp_path, train):
    """With dropout, so that a random number drawn by the one and not by the other would show."""
    options = {"train": train, "dropout": 0.1}
    fine_tune(tmp_path / "sft", turns.catalog, turns.model, **SFT, **options)
    run(tmp_path / "out", turns, **options, sia_weight=0, psa_weight=0, freeze_after=0)
    assert losses(tmp_path / "out") == losses(tmp_path / "sft")
    assert same_weights(tmp_path / "out", tmp_path / "sft")
    assert SidConfig.load(tmp_path / "out")[1].sha256 == SidConfig.load(tmp_path / "sft")[1].sha256
    assert not cycles_of(tmp_path / "out")


def test_passes_without_alignment_change_semantic_ids_alone(turns, tmp_path):
    """Until the first swap the steps are those of sft; the tokenizer is trained on its own loss."""
    fine_tune(tmp_path / "sft", turns.catalog, turns.model, **SFT)
    run(tmp_path / "out", turns, sia_weight=0, psa_weight=0)
    assert losses(tmp_path / "out")[:2] == losses(tmp_path / "sft")[:2]
    assert losses(tmp_path / "out")[2:] != losses(tmp_path / "sft")[2:]
    assert all(entry["pass_sia"] == entry["pass_psa"] == 0 < entry["pass_own"] for entry in cycles_of(tmp_path / "out"))


def test_before_alignment_nothing_but_the_cross_entropy_is_trained_on(turns, tmp_path):
    run(tmp_path / "one", turns, align_after=0.4)
    run(tmp_path / "other", turns, align_after=0.4, sia_weight=0.7, psa_weight=0.3)
    one, other = losses(tmp_path / "one"), losses(tmp_path / "other")
    assert one[:3] == other[:3] and one[3] != other[3]
    aligned = {entry["step"] for entry in log_of(tmp_path / "one") if entry.get("sia")}
    assert aligned == {4, 5, 6}, "after .4 of 8 steps, until the last pass within .8"
    first, *others = cycles_of(tmp_path / "one")
    assert first["pass_sia"] == 0 and all(entry["pass_sia"] > 0 for entry in others)


def test_each_trains_in_its_turn(turns, tmp_path, monkeypatch):
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

    original, read = alternation.Alternation.train_tokenizer, alternation.Alternation.read
    monkeypatch.setattr(alternation.Alternation, "train_tokenizer", watched)
    monkeypatch.setattr(alternation.Alternation, "read", reading)
    between = []
    step = training.AlternateTrainer.training_step

    def stepping(self, *arguments, **options):
        between.append(copy_of(self.alternation.tokenizer))
        return step(self, *arguments, **options)

    monkeypatch.setattr(training.AlternateTrainer, "training_step", stepping)
    run(tmp_path / "out", turns, train="full", dropout=0.2)
    assert seen == [(True, True, False, True, True)] * 3
    stays = [all(torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(between)]
    assert stays == [True, False, True, False, True, False, True]


def copy_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def unchanged(module: torch.nn.Module, old: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, old[name]) for name, tensor in module.state_dict().items())


def test_a_step_after_a_swap_reads_the_new_semantic_ids(turns, tmp_path, monkeypatch):
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
    run(tmp_path / "out", turns)
    assert len(checks) == 8 and sum(count > 0 for count in checks) == 6


def test_a_tokenizer_that_hardly_moves_is_frozen_early(turns, tmp_path):
    options = {"max_steps": 12, "freeze_after": 0.9, "align_after": 0.0, "tokenizer_learning_rate": 1e-12}
    counts = run(tmp_path / "out", turns, **options)
    assert counts["cycles"] == 3 and counts["changed_items"] == 0
    assert [entry["step"] for entry in log_of(tmp_path / "out") if entry.get("sia")] == [1, 2, 3, 4, 5, 6]


def test_all_of_a_side_is_in_its_file(turns, tmp_path, monkeypatch):
    """What is changed after a save is as it was after a load, and collator and table go with it."""
    seen, save = [], stage.save

    def saving(config, begun, trainer, *more):
        seen.append(trainer)
        return save(config, begun, trainer, *more)

    monkeypatch.setattr(stage, "save", saving)
    run(tmp_path / "out", turns)
    side = seen[0].alternation
    expected = {name: copy_of(getattr(side, name)) for name in ("tokenizer", "adapters")}
    books, table = [book.clone() for book in side.books], side.table
    counters, rate = (side.cycle, side.settled, side.is_frozen), side.scheduler.get_last_lr()
    moments = [dict(state) for state in side.optimizer.state.values()]
    side.save(tmp_path)
    with torch.no_grad():
        for tensor in (*side.tokenizer.parameters(), *side.adapters.parameters(), *side.books):
            tensor.zero_()
    side.cycle, side.settled, side.is_frozen, side.scheduler.last_epoch = 7, 7, False, 0
    side.optimizer.state.clear()
    side._use(SidTable(table.item_ids, table.all_codes[::-1], level_sizes=table.level_sizes), None)
    side.load(tmp_path)
    for name, state in expected.items():
        assert unchanged(getattr(side, name), state)
    assert all(torch.equal(*pair) for pair in zip(side.books, books, strict=True))
    assert (side.cycle, side.settled, side.is_frozen) == counters and side.scheduler.get_last_lr() == rate
    assert side.scheduler.last_epoch > 0 and side.table.sha256 == table.sha256
    for state, old in zip(side.optimizer.state.values(), moments, strict=True):
        assert all(torch.equal(state[name], old[name]) for name in old)
    tokens = seen[0].data_collator.encoder.tokens_NL
    assert (tokens == side.vocabulary.token_ids(table.all_codes)).all()


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


def test_a_finished_run_is_not_run_again(turns, turned, tmp_path):
    shutil.copytree(turned, tmp_path / "out")
    written = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    run(tmp_path / "out", turns, dropout=0.1, save_steps=2)
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == written
    assert weights_of(tmp_path / "out").keys() == weights_of(turned).keys()
