"""The alternate stage: its steps and passes, its equality with sft, and the state in its checkpoints."""

from __future__ import annotations

import copy
import importlib.metadata
import inspect
import itertools
import math
import shutil

import pytest
import torch
from transformers import Trainer

from llmrec.model.checkpoint import SidConfig
from llmrec.stages import alternate as stage
from llmrec.training.alternate.reader import HistoryReader
from llmrec.training.alternate.trainer import AlternateTrainer
from llmrec.training.alternate.turns import Turns
from tests.support.alternated import LEVELS, SFT, cycles_of, log_of, run
from tests.support.extended import fine_tune, losses, same_weights, weights_of

VERSIONS = {name: importlib.metadata.version(name) for name in ("transformers", "accelerate")}


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
    """The LLM and the adapters are frozen in a pass, without dropout; the tokenizer is frozen between passes."""
    seen = []

    def watched_pass(self, aligned):
        model, adapters, tokenizer = self.reader.model, self.reader.adapters, self.training.tokenizer
        state = [copy_of(part) for part in (model, adapters, tokenizer)]
        modes = [module.training for module in model.modules()]
        losses = run_pass(self, aligned)
        same = [unchanged(part, old) for part, old in zip((model, adapters, tokenizer), state, strict=True)]
        seen.append((*same, modes == [module.training for module in model.modules()], any(modes)))
        assert all(parameter.grad is None for parameter in adapters.parameters())
        return losses

    def watched_read(self, examples, with_vectors):
        assert not any(module.training for module in self.model.modules())
        return read(self, examples, with_vectors)

    run_pass, read, step = Turns._run_pass, HistoryReader.read, AlternateTrainer.training_step
    monkeypatch.setattr(Turns, "_run_pass", watched_pass)
    monkeypatch.setattr(HistoryReader, "read", watched_read)
    between = []

    def stepping(self, *arguments, **options):
        between.append(copy_of(self.turns.training.tokenizer))
        return step(self, *arguments, **options)

    monkeypatch.setattr(AlternateTrainer, "training_step", stepping)
    run(tmp_path / "out", turns, train="full", dropout=0.2)
    assert seen == [(True, True, False, True, True)] * 3
    stays = [all(torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(between)]
    assert stays == [True, False, True, False, True, False, True]


@pytest.mark.parametrize("restart", [True, False])
def test_a_frozen_tokenizer_restarts_rate_and_optimiser_of_the_llm(turns, tmp_path, monkeypatch, restart):
    """Frozen after step 6 of 8: the last two steps have the cosine of a run of two steps, and fresh moments."""
    rates, moments, step = [], [], AlternateTrainer.training_step

    def watched(self, *arguments, **options):
        rates.append(self.optimizer.param_groups[0]["lr"])
        moments.append(len(self.optimizer.state))
        return step(self, *arguments, **options)

    monkeypatch.setattr(AlternateTrainer, "training_step", watched)
    run(tmp_path / "out", turns, restart=restart)
    places = [0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, *([0, 1 / 2] if restart else [6 / 8, 7 / 8])]
    assert rates == pytest.approx([1e-3 * (1 + math.cos(math.pi * place)) / 2 for place in places])
    assert [count > 0 for count in moments] == [False, *[True] * 5, not restart, True]


def copy_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def unchanged(module: torch.nn.Module, old: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, old[name]) for name, tensor in module.state_dict().items())


def test_a_step_after_a_swap_reads_the_new_semantic_ids(turns, tmp_path, monkeypatch):
    """accelerate draws a batch ahead; its tokens must be those of the table that the rows have been moved to."""
    original = AlternateTrainer.training_step

    def checked(self, model, inputs, num_items_in_batch=None):
        tokens, sids = set(inputs["input_ids"].flatten().tolist()), self.turns.sids
        known = sids.vocabulary.token_ids(sids.table.all_codes)
        assert tokens & set(sids.vocabulary.token_range) <= set(known.flatten().tolist())
        rows = inputs["input_ids"].flatten()
        ends = inputs["pools"]["item_ends"] if "pools" in inputs else torch.zeros(0, dtype=torch.int64)
        sid = rows[ends[ends > 0][:, None] + torch.arange(-LEVELS, 1)]
        assert {tuple(each) for each in sid.tolist()} <= {tuple(each) for each in known.tolist()}
        checks.append(len(sid))
        return original(self, model, inputs, num_items_in_batch)

    checks: list[int] = []
    monkeypatch.setattr(AlternateTrainer, "training_step", checked)
    run(tmp_path / "out", turns)
    assert len(checks) == 8 and sum(count > 0 for count in checks) == 6


def test_a_tokenizer_that_hardly_moves_is_frozen_early(turns, tmp_path):
    options = {"epochs": 4, "freeze_after": 0.9, "align_after": 0.0, "tokenizer_learning_rate": 1e-12}
    counts = run(tmp_path / "out", turns, **options)
    assert counts["cycles"] == 3 and counts["changed_items"] == 0
    assert [entry["step"] for entry in log_of(tmp_path / "out") if entry.get("sia")] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_restores_everything_but_the_llm(turns, tmp_path, monkeypatch):
    """A change after saving is gone after loading, and collator and table follow."""
    seen, save = [], stage.save

    def saving(config, inputs, trainer, *more):
        seen.append(trainer)
        return save(config, inputs, trainer, *more)

    monkeypatch.setattr(stage, "save", saving)
    run(tmp_path / "out", turns)
    state, optimizer = seen[0].turns, seen[0].turns.training.optimizer
    parts = {"tokenizer": state.training.tokenizer, "adapters": state.reader.adapters}
    expected = {name: copy_of(part) for name, part in parts.items()}
    codebooks, table = [codebook.clone() for codebook in state.sids.codebooks], state.sids.table
    progress, rate = copy.copy(state.progress), state.training.scheduler.get_last_lr()
    moments = [dict(moment) for moment in optimizer.state.values()]
    seen[0]._save_optimizer_and_scheduler(str(tmp_path))
    with torch.no_grad():
        for tensor in (*parts["tokenizer"].parameters(), *parts["adapters"].parameters(), *state.sids.codebooks):
            tensor.zero_()
    state.progress.cycle, state.progress.settled, state.progress.is_frozen = 7, 7, False
    state.training.scheduler.last_epoch = 0
    optimizer.state.clear()
    state.sids.restore(table.all_codes[::-1], codebooks)
    seen[0]._load_turns(str(tmp_path))
    for name, part in parts.items():
        assert unchanged(part, expected[name])
    assert all(torch.equal(*pair) for pair in zip(state.sids.codebooks, codebooks, strict=True))
    assert state.progress == progress and state.training.scheduler.get_last_lr() == rate
    assert state.training.scheduler.last_epoch > 0 and state.sids.table.sha256 == table.sha256
    for moment, old in zip(optimizer.state.values(), moments, strict=True):
        assert all(torch.equal(moment[name], old[name]) for name in old)
    assert (state.sids.collator.encoder.tokens_NL == state.sids.vocabulary.token_ids(table.all_codes)).all()


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
