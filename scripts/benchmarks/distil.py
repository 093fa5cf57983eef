"""Steps per second of `llmrec sft` with a teacher, beside the same training without one.

    python scripts/benchmarks/distil.py --catalog run/catalog --model run/base --teacher run/teacher

All runs are in one process, on the same examples in the same order, through the stage's own trainer; compilation and
captures fall into the warm-up steps, which are not timed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import emit, emit_machine, release
from transformers import TrainerCallback, TrainerControl, TrainerState

from llmrec.configs import SftConfig
from llmrec.stages import sft
from llmrec.training.sft.captured_step import CapturedLoss
from llmrec.training.sft.losses import IGNORED

VARIANTS = {
    "plain": {},
    "teacher": {"teacher_weight": 0.5},
    "teacher and drawn answers": {"teacher_weight": 0.5, "drawn_answers": True},
}
KEY_FIGURES = [{"case": "sft", "figure": "steps_per_s", "over": {"case": "sft", "variant": "plain"}, "by": ["variant"]}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--catalog", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--train", choices=["lora", "full"], default="lora")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--warmup-steps", type=int, default=60, help="not timed")
    parser.add_argument("--device", choices=["cpu", "auto"], default="auto")
    args = parser.parse_args()
    emit_machine()
    rates = {name: steps_per_second(args, name, options) for name, options in VARIANTS.items()}
    for name in list(VARIANTS)[1:]:
        emit("slow-down", variant=name, times=rates["plain"] / rates[name])


class Clock(TrainerCallback):
    """Seconds from the end of the warm-up steps to the end of the last step."""

    def __init__(self, warmup_steps: int):
        self.warmup_steps, self.started, self.seconds = warmup_steps, 0.0, 0.0

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step not in (self.warmup_steps, state.max_steps):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.started
        self.started = time.perf_counter()


def steps_per_second(args: argparse.Namespace, name: str, options: dict[str, Any]) -> float:
    """Train for some steps, and return the rate of those after the warm-up."""
    with tempfile.TemporaryDirectory() as directory:
        config = SftConfig(
            out=directory, catalog=args.catalog, model=args.model, train=args.train, batch_size=args.batch_size,
            micro_batch_size=args.batch_size, max_steps=args.steps, device=args.device, save_steps=10**6,
            logging_steps=10**6, compile=args.device != "cpu", teacher=[args.teacher] if options else [], **options,
        )  # fmt: skip
        start = sft.load(config)
        parts = sft.make_parts(config, start, *sft.make_examples(
            config, start.catalog, start.tokenizer, start.table.num_levels
        ))  # fmt: skip
        fills = (start.tokenizer.pad_token_id, 0, IGNORED)
        captured = CapturedLoss.of(config, parts.model, int(start.table.lengths.min()), fills, parts.device)
        clock = Clock(args.warmup_steps)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with sft.open_trainer(config, start, parts, Path(directory), captured=captured) as trainer:
            trainer.add_callback(clock)
            trainer.train()
    rate = (args.steps - args.warmup_steps) / clock.seconds
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    emit("sft", variant=name, train=args.train, batch=args.batch_size, steps_per_s=rate, peak_gib=peak)
    if torch.cuda.is_available():
        release()
    return rate


if __name__ == "__main__":
    main()
