"""Tokens per second of fine-tuning, beside TRL's SFTTrainer on the same sequences, padded.

    python scripts/benchmarks/sft.py --shape smollm2-135m
    python scripts/benchmarks/sft.py --shape qwen3-0.6b

Ours: LoRA and SID rows, packed rows, the softmax over a level's codes. TRL's: LoRA alone (with trained token rows its
fused head crashes), one padded row per sequence, the softmax over the vocabulary. Both run through their trainers; only
tokens that are no padding count, from the end of the warm-up steps on. First, in float32, the summed loss of ours must
be the same padded and packed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import emit, emit_machine
from datasets import Dataset
from models import CODEBOOK_SIZE, NUM_LEVELS, SHAPES, SIZES, random_model, vocabulary_of
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainerControl, TrainerState
from trl import SFTConfig as TrlSftConfig
from trl import SFTTrainer

from llmrec.configs import SftConfig
from llmrec.model.backbone import compile_layers
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.sid.table import SidTable
from llmrec.training.sft.captured_step import CapturedLoss
from llmrec.training.sft.examples import HistoryCollator, build_dataset
from llmrec.training.sft.losses import IGNORED, sid_loss_in_forward
from llmrec.training.sft.trainer import make_trainer
from llmrec.training.weights import add_adapter

NUM_ITEMS, PREFIX, PAD = 10_000, tuple(range(10, 23)), 0
TOLERANCE = 1e-5
KEY_FIGURES = [{"case": "ratio", "figure": "ours_over_trl", "by": []}]
RUNS = {
    "h200-sft-smollm2-135m": ["--shape", "smollm2-135m"],
    "h200-sft-qwen3-0.6b": ["--shape", "qwen3-0.6b", "--batch-size", "512", "--trl-batch-size", "128"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--mean-items", type=float, default=9, help="of a sequence; lengths are geometric, up to 50")
    parser.add_argument("--batch-size", type=int, default=1024, help="sequences of a step of ours")
    parser.add_argument("--trl-batch-size", type=int, default=256, help="of TRL's, which needs more memory for each")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup-steps", type=int, default=20, help="not timed; compilation and captures")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    emit_machine()
    bench = Bench(args)
    bench.check_equality()
    rates = {name: bench.measure(name, make) for name, make in (("ours", bench.ours), ("trl", bench.trl))}
    emit("ratio", ours_over_trl=rates["ours"] / rates["trl"])


class Clock(TrainerCallback):
    """When the warm-up steps, and the last step, were done.

    The device is waited for at these two steps alone: in between, as in training, the host prepares the next batch
    while one runs.
    """

    def __init__(self, warmup_steps: int):
        self.warmup_steps, self.started, self.ended = warmup_steps, 0.0, 0.0

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step not in (self.warmup_steps, state.max_steps):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if state.global_step == self.warmup_steps:
            self.started = time.perf_counter()
        else:
            self.ended = time.perf_counter()


class Bench:
    """One model shape and one set of sequences."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.device, self.vocabulary = args, torch.device(args.device), vocabulary_of(args.shape)
        self.dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
        rng = np.random.default_rng(0)
        codes = rng.integers(0, CODEBOOK_SIZE, (NUM_ITEMS, NUM_LEVELS))
        self.encoder = SidHistoryEncoder(
            SidTable(list(map(str, range(NUM_ITEMS))), codes, level_sizes=SIZES), self.vocabulary
        )
        lengths = np.minimum(rng.geometric(1 / args.mean_items, args.batch_size * args.steps), 50)
        self.batch_sizes = {"ours": args.batch_size, "trl": args.trl_batch_size}
        self.examples = build_dataset([rng.integers(0, NUM_ITEMS, n) for n in lengths], 50, "every_item")
        core = Tokenizer(WordLevel({"<pad>": PAD, "<unk>": 1, "<eos>": 2}, unk_token="<unk>"))
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
        )
        self.config = SftConfig(
            out="", catalog="", model="", max_steps=args.steps, batch_size=args.batch_size, warmup_steps=0,
            micro_batch_size=args.batch_size, device=args.device, save_steps=10**6, logging_steps=10**6,
            compile=args.device == "cuda",
        )  # fmt: skip

    def collator(self, packing: bool) -> HistoryCollator:
        return HistoryCollator(list(PREFIX), self.encoder, PAD, packing)

    def check_equality(self) -> None:
        """Stop unless packed rows have the loss of padded ones."""
        model, some = random_model(self.args.shape, torch.float32, self.device), self.examples.to_list()[:4]
        with torch.no_grad(), sid_loss_in_forward(model, self.vocabulary, "level"):
            padded, packed = (
                float(model(**{n: x.to(self.device) for n, x in self.collator(packing)(some).items()}).loss)
                for packing in (False, True)
            )
        error = abs(packed - padded) / padded
        if error > TOLERANCE:
            raise SystemExit(f"The losses differ by {error:.2g}: {padded} padded, {packed} packed.")
        emit("equal", dtype="float32", relative_difference=error)

    def ours(self, directory: Path) -> Trainer:
        model = add_adapter(random_model(self.args.shape, self.dtype, self.device), self.config, self.vocabulary)
        if self.config.compile:
            compile_layers(model)
        self.captured = CapturedLoss.of(self.config, model, NUM_LEVELS, (PAD, 0, IGNORED), self.device)
        return make_trainer(
            self.config, model, self.tokenizer, self.examples, self.collator(True), directory, self.device, self.dtype
        )

    def trl(self, directory: Path) -> Trainer:
        examples = self.examples.select(range(self.batch_sizes["trl"] * self.args.steps))
        rows = [[*PREFIX, *self.encoder.encode_history(each["rows"]).tolist()] for each in examples]
        masks = [[0] * len(PREFIX) + [1] * (len(row) - len(PREFIX)) for row in rows]
        arguments = TrlSftConfig(
            output_dir=str(directory), max_steps=self.args.steps,
            per_device_train_batch_size=self.args.trl_batch_size,
            bf16=self.dtype == torch.bfloat16, use_cpu=self.args.device == "cpu", gradient_checkpointing=False,
            max_length=None, report_to="none", save_strategy="no", logging_steps=10**6, disable_tqdm=True,
        )  # fmt: skip
        lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
        return SFTTrainer(
            model=random_model(self.args.shape, self.dtype, self.device),
            args=arguments,
            train_dataset=Dataset.from_dict({"input_ids": rows, "completion_mask": masks}),
            processing_class=self.tokenizer,
            peft_config=lora,
        )

    def measure(self, name: str, make: Any) -> float:
        """Tokens per second of a trainer."""
        if self.args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        clock = Clock(self.args.warmup_steps)
        with tempfile.TemporaryDirectory() as directory:
            trainer = make(Path(directory))
            trainer.add_callback(clock)
            if name == "ours":
                with sid_loss_in_forward(trainer.model, self.vocabulary, "level", captured=self.captured):
                    trainer.train()
            else:
                trainer.train()
        rows = self.examples["rows"][: self.batch_sizes[name] * self.args.steps]
        tokens = sum(len(PREFIX) + NUM_LEVELS * len(each) for each in rows) / self.args.steps
        rate = tokens * (self.args.steps - self.args.warmup_steps) / (clock.ended - clock.started)
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.args.device == "cuda" else None
        emit("sft", trainer=name, batch=self.batch_sizes[name], tokens_per_s=rate, peak_gib=peak)
        return rate


if __name__ == "__main__":
    main()
