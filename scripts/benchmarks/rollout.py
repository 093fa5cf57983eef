"""Prompts per second that GRPO rolls out, beside `generate` with as many beams and a Python constraint.

    python scripts/benchmarks/rollout.py --shape smollm2-135m
    python scripts/benchmarks/rollout.py --shape qwen3-0.6b

Random weights of a real model's shape with a LoRA, a random catalogue of 4 levels of 256 codes, histories of one
length. A roll-out is all that a training step asks for: prompts from item rows, SIDs with log-probabilities, rewards,
advantages. First, in float32, beams are held against those of `generate`, and every roll-out must be an item; then
everything is timed in the precision of training, eagerly, as it runs there.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from common import emit, emit_machine, seconds
from decode import Bench as Search
from decode import nested_dicts
from models import CODEBOOK_SIZE, NUM_LEVELS, SHAPES, SIZES
from peft import get_peft_model
from torch import Tensor, nn

from llmrec.configs import GrpoConfig
from llmrec.decoding.ranker import SidRanker
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.checkpoint import SidConfig
from llmrec.model.prompts import Prompt
from llmrec.sid.table import SidTable
from llmrec.training.grpo.groups import Group, GroupSampler
from llmrec.training.grpo.rewards import build_rewards
from llmrec.training.weights import lora_config

PREFIX = range(10, 23)
WAYS = ("sampled", "distinct", "beams")
KEY_FIGURES = [{"case": "rollout", "figure": "times_generate", "by": ["way", "batch"]}]
RUNS = {
    "quick-rollout": ["--device", "cpu", "--shape", "tiny", "--batch-sizes", "16"],
    "h200-rollout-smollm2-135m": ["--shape", "smollm2-135m"],
    "h200-rollout-qwen3-0.6b": ["--shape", "qwen3-0.6b"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--history", type=int, default=20, help="items")
    parser.add_argument("--beams", type=int, default=16, help="roll-outs of a prompt")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 64, 256], help="prompts rolled out together")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(0)
    emit_machine()
    bench = Bench(args)
    bench.check_equality()
    bench.time_generate()
    bench.time_rollouts()


class Bench(Search):
    """One model shape and catalogue; prints a line per case."""

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        codes = np.random.default_rng(0).integers(0, CODEBOOK_SIZE, (args.items, NUM_LEVELS))
        self.table = SidTable(list(map(str, range(args.items))), codes, level_sizes=SIZES)
        self.trie = SidTrie(self.table, device=self.device)
        self.dicts = nested_dicts((codes + np.array(self.vocabulary.starts)).tolist())

    def model(self, dtype: torch.dtype) -> nn.Module:
        """With a LoRA that does something."""
        model = get_peft_model(
            super().model(dtype), lora_config(GrpoConfig(out="", catalog="", model=""), "all-linear")
        )
        generator = torch.Generator(self.device).manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.01, generator=generator)
        return model.eval()

    def sampler(self, model: nn.Module, way: str) -> GroupSampler:
        config = GrpoConfig(out="", catalog="", model="", rollouts=way, num_generations=self.args.beams)
        sid_config = SidConfig(self.vocabulary, Prompt(), self.args.history, "children")
        ranker = SidRanker(model, self.table, sid_config, list(PREFIX), capture=False)
        rng = np.random.default_rng(1)
        sequences = rng.integers(0, self.args.items, (max(self.args.batch_sizes), self.args.history + 1))
        return GroupSampler(ranker, list(sequences), build_rewards(config.rewards, [1, 1], None), config)

    def draw(self, sampler: GroupSampler, count: int) -> list[Group]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return sampler.draw(range(count), torch.Generator(self.device).manual_seed(0))

    def prompt_ids(self, sampler: GroupSampler, groups: list[Group]) -> Tensor:
        return sampler.batch(groups)["input_ids"].to(self.device)

    def check_equality(self) -> None:
        """Stop unless beams are those of `generate`, and every roll-out of each way is an item."""
        dtype, self.dtype = self.dtype, torch.float32
        model, invalid = self.model(torch.float32), {}
        for way in WAYS:
            sampler = self.sampler(model, way)
            groups = self.draw(sampler, 2)
            invalid[way] = sum(not self.is_item(sid) for group in groups for sid in group.completions)
        ids = self.prompt_ids(sampler, groups)
        codes, _ = self.generate(model, ids, renormalize=True, **self.with_dicts(ids))
        beams = sampler.batch(groups)["completions"].to(self.device)
        ours = beams - torch.tensor(self.vocabulary.starts, device=self.device)
        # Beams of nearly one score may trade places, or one may take the other's at the end.
        shared = [
            len(set(map(tuple, a)) & set(map(tuple, b))) for a, b in zip(ours.tolist(), codes.tolist(), strict=True)
        ]
        if min(shared) < self.args.beams - 1 or any(invalid.values()):
            raise SystemExit(
                f"Roll-outs differ from `generate`: {shared} of {self.args.beams} shared, invalid {invalid}."
            )
        emit("equal", dtype="float32", rows=len(groups), beams=self.args.beams, shared=shared, invalid=invalid)
        self.dtype = dtype

    def is_item(self, tokens: np.ndarray) -> bool:
        codes = [token - start for token, start in zip(tokens, self.vocabulary.starts, strict=True)]
        return len(self.table.rows(codes)) > 0

    def time_generate(self) -> None:
        model = self.model(self.dtype)
        sampler = self.sampler(model, "beams")
        for batch_size in self.args.batch_sizes:
            ids = self.prompt_ids(sampler, self.draw(sampler, batch_size))
            elapsed = self.generate_seconds(model, ids, self.with_dicts)
            if elapsed is None:
                emit("generate", constraint="dict trie", batch=batch_size, prompts_per_s="out of memory")
                break
            self.generate_rate = max(self.generate_rate, batch_size / elapsed)
            emit("generate", constraint="dict trie", batch=batch_size, prompts_per_s=batch_size / elapsed)

    def time_rollouts(self) -> None:
        model = self.model(self.dtype)
        for way in WAYS:
            sampler = self.sampler(model, way)
            for size in self.args.batch_sizes:
                elapsed = seconds(lambda r=sampler, s=size: self.draw(r, s), self.args.repeats, self.device)
                drawn = [sid for group in self.draw(sampler, size) for sid in group.completions]
                invalid = sum(not self.is_item(sid) for sid in drawn)
                emit("rollout", way=way, batch=size, roll_outs=len(drawn), prompts_per_s=size / elapsed,
                     invalid=invalid, times_generate=size / elapsed / self.generate_rate)  # fmt: skip


if __name__ == "__main__":
    main()
