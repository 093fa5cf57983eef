"""Supervised items per second: one packed pass over histories, beside one padded row per target.

    python scripts/benchmarks/targets.py --shape smollm2-135m

Every item of a history is a target, either in one sequence or in a row of its own that ends in it. First, in float32,
the two losses must be equal; then a forward and backward pass over all of them is timed, LoRA and SID rows training.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import torch
from common import emit, emit_machine, seconds
from models import CODEBOOK_SIZE, NUM_LEVELS, SHAPES, SIZES, random_model, vocabulary_of
from torch import Tensor, nn

from llmrec.configs import SftConfig
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.sft.examples import HistoryCollator, build_dataset
from llmrec.training.sft.losses import sid_loss_in_forward
from llmrec.training.weights import add_adapter

NUM_ITEMS, PREFIX, PAD = 10_000, tuple(range(10, 23)), 0
TOLERANCE = 1e-5
KEY_FIGURES = [{"case": "ratio", "figure": "one_pass_over_rows", "by": ["items"]}]
RUNS = {
    "quick-targets": ["--device", "cpu", "--shape", "tiny", "--items", "20", "--users", "16"],
    "h200-targets-smollm2-135m": ["--shape", "smollm2-135m"],
    "h200-targets-qwen3-0.6b": ["--shape", "qwen3-0.6b", "--items", "20"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--items", type=int, nargs="+", default=[20, 50], help="items of each history")
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--rows", type=int, default=64, help="rows of a forward pass, in both ways")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    emit_machine()
    for length in args.items:
        compare(args, length)


def compare(args: argparse.Namespace, length: int) -> None:
    """Both ways over histories of one length."""
    rng, device = np.random.default_rng(0), torch.device(args.device)
    vocabulary, rates = vocabulary_of(args.shape), {}
    codes = rng.integers(0, CODEBOOK_SIZE, (NUM_ITEMS, NUM_LEVELS))
    table = SidTable(list(map(str, range(NUM_ITEMS))), codes, level_sizes=SIZES)
    encoder = SidHistoryEncoder(table, vocabulary)
    sequences = [rng.integers(0, NUM_ITEMS, length) for _ in range(args.users)]
    ways = {way: build_dataset(sequences, length, way).to_list() for way in ("every_item", "last_item")}
    collators = {way: HistoryCollator(list(PREFIX), encoder, PAD, packing=way == "every_item") for way in ways}
    model = model_of(args, torch.float32, device)
    some = {"every_item": ways["every_item"][:2], "last_item": ways["last_item"][: 2 * length]}  # of two users
    losses = {way: float(run(model, vocabulary, collators[way], rows, args.rows)) for way, rows in some.items()}
    error = abs(losses["every_item"] - losses["last_item"]) / losses["last_item"]
    if error > TOLERANCE:
        raise SystemExit(f"The losses differ by {error:.2g}: {losses}.")
    emit("equal", dtype="float32", items=length, relative_difference=error)
    for way, rows in ways.items():
        model = model_of(args, torch.bfloat16 if device.type == "cuda" else torch.float32, device)
        call = partial(run, model, vocabulary, collators[way], rows, args.rows)
        rates[way] = args.users * length / seconds(call, args.repeats, device)
        emit("targets", way=way, items=length, items_per_s=rates[way], peak_gib=peak_gib(device))
    emit("ratio", items=length, one_pass_over_rows=rates["every_item"] / rates["last_item"])


def model_of(args: argparse.Namespace, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """LoRA and SID rows over a random model, dropout off."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    config = SftConfig(out="", catalog="", model="")
    return add_adapter(random_model(args.shape, dtype, device), config, vocabulary_of(args.shape))


def run(
    model: nn.Module, vocabulary: SidVocabulary, collator: HistoryCollator, examples: list[dict], num_rows: int
) -> Tensor:
    """Forward and backward over all examples, `num_rows` at a time; the summed loss."""
    device = next(model.parameters()).device
    total = torch.zeros((), device=device)
    with sid_loss_in_forward(model, vocabulary, "level"):
        for first in range(0, len(examples), num_rows):
            batch = collator(examples[first : first + num_rows])
            loss = model(**{name: x.to(device) for name, x in batch.items()}, num_items_in_batch=1).loss
            loss.backward()
            total += loss.detach()
    return total


def peak_gib(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None


if __name__ == "__main__":
    main()
