"""Training steps without a trainer, the way of `llmrec sft` beside PEFT's layers, and the share of the GPU's rate.

    python scripts/benchmarks/sft_steps.py --shape smollm2-135m
    python scripts/benchmarks/sft_steps.py --shape qwen3-0.6b --batch-size 512

`sft` is what `llmrec sft` runs: LoRA with joined projections. `peft` runs PEFT's own LoRA layers, and `full` trains all
weights. First, in float32, `sft` must have the loss and the gradients of `peft`. A step is forward, backward, clipping
and AdamW, on batches that lie on the device.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from unittest import mock

import torch
from common import emit, emit_machine, release, seconds
from models import NUM_LEVELS, SHAPES, random_model
from sft import PAD, PREFIX, Bench
from torch import nn

from llmrec.model.backbone import compile_layers
from llmrec.training.sft.captured_step import CapturedLoss
from llmrec.training.sft.losses import IGNORED, sid_loss_in_forward
from llmrec.training.trainer import build_optimizer
from llmrec.training.weights import add_adapter

WAYS = ("sft", "peft", "full")
TOLERANCE, PASSES = 1e-4, 2
DENSE_RATE = 790e12  # bf16 FLOP per second that large matrix products reach on one H200
KEY_FIGURES = [
    {"case": "step", "way": "sft", "figure": "tokens_per_s", "over": {"case": "step", "way": "peft"}, "by": ["batch"]},
]
RUNS = {
    "h200-sft-steps-smollm2-135m": ["--shape", "smollm2-135m"],
    "h200-sft-steps-qwen3-0.6b": ["--shape", "qwen3-0.6b", "--batch-size", "512"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--ways", choices=WAYS, nargs="*", default=WAYS)
    parser.add_argument("--mean-items", type=float, default=9, help="of a sequence; lengths are geometric, up to 50")
    parser.add_argument("--batch-size", type=int, default=1024, help="sequences of a step")
    parser.add_argument("--steps", type=int, default=8, help="different batches, each taken twice before timing")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.trl_batch_size = args.batch_size
    emit_machine()
    bench = Steps(args)
    bench.check_gradients()
    for way in args.ways:
        bench.time(way)
        release()


class Steps(Bench):
    """One model shape and one set of batches."""

    def trained(self, way: str, shape: str, dtype: torch.dtype) -> tuple[nn.Module, CapturedLoss | None]:
        """Model of a way of training, with its captured steps."""
        config = dataclasses.replace(self.config, train="full" if way == "full" else "lora")
        if way == "full":
            model = random_model(shape, torch.float32, self.device)
        else:
            unjoined = mock.patch("llmrec.training.weights.join_lora") if way == "peft" else contextlib.nullcontext()
            with unjoined:
                model = add_adapter(random_model(shape, dtype, self.device), config, self.vocabulary)
        if config.compile:
            compile_layers(model)
        captured = CapturedLoss.of(config, model, NUM_LEVELS, (PAD, 0, IGNORED), self.device)
        return model.train(), captured

    def batches(self, count: int, size: int) -> list[dict]:
        """Packed batches on the device, each with the number of its labels."""
        found = []
        for first in range(0, count * size, size):
            examples = self.examples.select(range(first, first + size)).to_list()
            batch = {name: x.to(self.device) for name, x in self.collator(True)(examples).items()}
            found.append(batch | {"num_items_in_batch": (batch["labels"] != IGNORED).sum()})
        return found

    def check_gradients(self) -> None:
        """Stop unless a step of ours has the loss and the gradients of PEFT's own layers, in float32."""
        (batch,), found = self.batches(1, 8), []
        for way in ("peft", "sft"):
            model, captured = self.trained(way, self.args.shape, torch.float32)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:  # zero at first, which hides half of the gradients
                    torch.manual_seed(len(name))
                    nn.init.normal_(parameter, std=0.02)
            with sid_loss_in_forward(model, self.vocabulary, "level", captured=captured):
                loss = model(**batch).loss
                loss.backward()
            grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
            found.append((float(loss), grads))
            del model, captured
            release()
        (expected, own), (loss, grads) = found
        errors = abs(loss - expected) / expected, float((grads - own).norm() / own.norm())
        if max(errors) > TOLERANCE:
            raise SystemExit(f"The steps differ by {errors[0]:.2g} in the loss and {errors[1]:.2g} in the gradients.")
        emit("equal", dtype="float32", loss=errors[0], gradients=errors[1])

    def time(self, way: str) -> None:
        """Tokens per second of a way, and its share of the rate of dense products."""
        if self.args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        model, captured = self.trained(way, self.args.shape, self.dtype)
        optimizer = build_optimizer(model, self.config, fused=self.args.device == "cuda")
        batches = self.batches(self.args.steps, self.args.batch_size)
        trained = [p for p in model.parameters() if p.requires_grad]

        def step(batch: dict) -> None:
            with torch.autocast(self.args.device, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                loss = model(**batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        with sid_loss_in_forward(model, self.vocabulary, "level", captured=captured):
            for batch in batches * PASSES:
                step(batch)
            elapsed = seconds(lambda: [step(batch) for batch in batches], 2, self.device)
        lengths = [len(rows) for rows in self.examples["rows"][: self.args.batch_size * self.args.steps]]
        tokens = sum(len(PREFIX) + NUM_LEVELS * length for length in lengths)
        flop = self.flop_per_token(model, way)
        emit(
            "step", way=way, batch=self.args.batch_size, tokens_per_s=tokens / elapsed, captured=captured is not None,
            ms=elapsed / len(batches) * 1e3, flop_per_token=flop, share_of_rate=flop * tokens / elapsed / DENSE_RATE,
            peak_gib=torch.cuda.max_memory_allocated() / 2**30 if self.args.device == "cuda" else 0.0,
        )  # fmt: skip

    def flop_per_token(self, model: nn.Module, way: str) -> float:
        """Operations of the layers' products: two per weight forward, two for its input, and two if it trains."""
        matrices = [(name, p.numel()) for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2]
        lora = sum(count for name, count in matrices if "lora_" in name)
        others = sum(count for _, count in matrices) - lora
        return float(6 * others if way == "full" else 4 * others + 6 * lora)


if __name__ == "__main__":
    main()
