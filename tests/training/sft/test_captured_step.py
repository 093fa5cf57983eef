"""Captured steps: losses and gradients equal those of eager steps, on the CPU with a stand-in for CUDA graphs."""

import json

import numpy as np
import pytest
import torch

from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.sft.captured_step import LEAST_STEP, CapturedLoss
from llmrec.training.sft.examples import build_dataset
from llmrec.training.sft.losses import IGNORED, sid_loss_in_forward
from llmrec.training.weights import add_adapter
from tests.conftest import tiny_llm
from tests.support.extended import fine_tune, sft_config
from tests.training.sft.test_examples import make_collator

LENGTHS = (2, 12, 5, 3, 1, 8)


class Eager:
    """Stand-in for `CudaGraphs` that calls the function and records the shapes of its inputs."""

    def __init__(self):
        self.shapes = []

    def run(self, function, inputs, kind):
        self.shapes.append([tensor.shape for tensor in inputs])
        return function(*inputs)


@pytest.fixture
def no_graphs(monkeypatch):
    monkeypatch.setattr("llmrec.training.sft.captured_step.CudaGraphs", Eager)


def captured_of(model, table):
    return CapturedLoss(model, int(table.lengths.min()), (0, 0, IGNORED))


def packed_batch(tokenizer, table, vocabulary, seed=0, device="cpu"):
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(0, table.num_items, size) for size in LENGTHS]
    collator = make_collator(tokenizer, table, vocabulary)
    collator.packing = True
    batch = collator(list(build_dataset(sequences, 20, "every_item")))
    return {name: tensor.to(device) for name, tensor in batch.items()}


def gradients(model, vocabulary, batches, captured=None, normalize_over="level", **options):
    """Losses of batches, and the gradients that they add up to."""
    model.train()
    model.zero_grad()
    losses = []
    with sid_loss_in_forward(model, vocabulary, normalize_over, captured=captured, **options):
        for batch in batches:
            count = torch.tensor(7.0, device=batch["labels"].device)
            loss = model(**batch, num_items_in_batch=count).loss
            (loss * 0.5).backward()
            losses.append(loss.item())
    return losses, [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]


def assert_equal(found, expected, tolerance=1e-5):
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    for a, b in zip(found[1], expected[1], strict=True):
        assert torch.allclose(a, b, atol=tolerance)


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3_text"])
def test_captured_loss_and_gradients_equal_eager_ones(no_graphs, tokenizer, sid_table, vocabulary, architecture):
    model = tiny_llm(len(tokenizer), architecture)
    batches = [packed_batch(tokenizer, sid_table, vocabulary, seed) for seed in (0, 1)]
    captured = captured_of(model, sid_table)
    found = gradients(model, vocabulary, batches, captured, label_smoothing=0.1)
    assert_equal(found, gradients(model, vocabulary, batches, label_smoothing=0.1))
    shapes = [shape for call in captured.graphs.shapes for shape in call[:3]]
    assert shapes and all(rows % LEAST_STEP == 0 for rows, _ in shapes)


@pytest.mark.parametrize("train", ["full", "lora", "sid_tokens"])
def test_captured_batches_with_words(no_graphs, tokenizer, sid_table, vocabulary, train):
    model = tiny_llm(len(tokenizer))
    if train != "full":
        model = add_adapter(model, sft_config("", "", "", train=train), vocabulary)
    batch = packed_batch(tokenizer, sid_table, vocabulary)
    batch["labels"][:, 1:4] = batch["input_ids"][:, 1:4]  # of the instruction
    expected = gradients(model, vocabulary, [batch])
    found = gradients(model, vocabulary, [{**batch, "most_words": 64}], captured_of(model, sid_table))
    assert_equal(found, expected)


def test_captured_batches_with_sids_of_different_lengths(no_graphs, tokenizer):
    """Half of the SIDs have one code, so level 0 has more tokens than half of the positions."""
    codes = [[i, -1] if i < 6 else [6 + i % 2, i] for i in range(12)]
    table = SidTable(list(map(str, range(12))), np.array(codes), level_sizes=[8, 12])
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes)
    model = tiny_llm(len(tokenizer))
    batches = [packed_batch(tokenizer, table, vocabulary)]
    captured = captured_of(model, table)
    assert_equal(gradients(model, vocabulary, batches, captured), gradients(model, vocabulary, batches))


def test_calls_that_do_not_train_are_not_captured(no_graphs, llm, tokenizer, sid_table, vocabulary):
    batch = packed_batch(tokenizer, sid_table, vocabulary)
    captured = captured_of(llm, sid_table)
    with sid_loss_in_forward(llm, vocabulary, "level", captured=captured):
        with torch.no_grad():
            llm.train()(**batch)
        llm.eval()(**batch)
    assert captured.graphs.shapes == []


@pytest.mark.gpu
def test_replays_have_the_gradients_of_eager_calls(tokenizer, sid_table, vocabulary):
    model = tiny_llm(len(tokenizer)).cuda()
    batches = [packed_batch(tokenizer, sid_table, vocabulary, seed, "cuda") for seed in range(4)]
    captured = captured_of(model, sid_table)
    assert_equal(gradients(model, vocabulary, batches, captured), gradients(model, vocabulary, batches))
    assert captured.graphs.graphs


@pytest.mark.gpu
def test_dropout_changes_between_replays(tokenizer, sid_table, vocabulary):
    """Every call draws new random numbers, and the same seed repeats a series of captured calls."""
    model = tiny_llm(len(tokenizer), attention_dropout=0.5).cuda()
    batches = [packed_batch(tokenizer, sid_table, vocabulary, 0, "cuda")] * 4
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        captured = captured_of(model, sid_table)
        losses.append(gradients(model, vocabulary, batches, captured)[0])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == len(batches)


@pytest.mark.gpu
@pytest.mark.parametrize("train", ["lora", "sid_tokens", "full"])
def test_captured_sft_has_the_losses_of_eager_sft(tmp_path, toy, train, monkeypatch):
    options = {"train": train, "max_steps": 12, "precision": "float32", "device": "auto"}
    fine_tune(tmp_path / "captured", *toy, **options)
    monkeypatch.setattr(CapturedLoss, "of", lambda *arguments: None)
    fine_tune(tmp_path / "eager", *toy, **options)
    captured, eager = (losses(tmp_path / name) for name in ("captured", "eager"))
    assert captured == pytest.approx(eager, rel=1e-4)


def losses(directory):
    log = json.loads((directory / "training_log.json").read_text(encoding="utf-8"))
    return [entry["loss"] for entry in log if "loss" in entry]
