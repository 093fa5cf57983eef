"""A step of DPO or GRPO with each prompt computed once, beside the same step with a prompt for every completion.

    python scripts/benchmarks/preference.py --shape smollm2-135m
    python scripts/benchmarks/preference.py --shape qwen3-0.6b

A step is a pass of the policy (LoRA) with its gradients and a pass of the reference (LoRA off), without an optimiser;
both routes score the same codes over the same rows. The slow route repeats prompts padded on the right under plain
causal attention, which its kernels are made for. First, in float32, losses and gradients of both must be the same.
Then each route takes the batch of its best speed, among those that fit: small batches measure launches of kernels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from common import emit, emit_machine, fitting, seconds
from models import CODEBOOK_SIZE, NUM_LEVELS, SHAPES, SIZES, random_model, vocabulary_of
from peft import PeftModel, get_peft_model
from torch import Tensor

from llmrec.configs import DpoConfig
from llmrec.model.backbone import causal_lm, logits, run_backbone
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.sid.table import SidTable
from llmrec.training.dpo.preferences import PreferenceCollator
from llmrec.training.dpo.trainer import preference_loss
from llmrec.training.preference.shared_prompt import sibling_scores_in_forward
from llmrec.training.weights import lora_config, train_in_float32

NUM_ITEMS, PREFIX, PAD = 10_000, tuple(range(10, 23)), 0
TOLERANCE = 1e-4  # relative, of sums over all weights in float32
CASES = {"dpo": 2, "sdpo": 4, "grpo": 16}  # completions of a prompt
Scores = Callable[[PeftModel, dict[str, Tensor]], Tensor]
KEY_FIGURES = [{"case": "ratio", "figure": "shared_over_repeated", "by": ["of"]}]
RUNS = {
    "quick-preference": ["--device", "cpu", "--shape", "tiny", "--batch-sizes", "16"],
    "h200-preference-smollm2-135m": ["--shape", "smollm2-135m"],
    "h200-preference-qwen3-0.6b": ["--shape", "qwen3-0.6b"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--mean-items", type=float, default=20, help="of a history; lengths are geometric, up to 50")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 64, 256], help="prompts of a step")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    emit_machine()
    bench = Bench(args)
    for name in args.cases:
        bench.check_equality(name)
        bench.measure(name)


class Bench:
    """One model shape and one set of prompts."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.device, self.vocabulary = args, torch.device(args.device), vocabulary_of(args.shape)
        self.dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
        codes = np.random.default_rng(0).integers(0, CODEBOOK_SIZE, (NUM_ITEMS, NUM_LEVELS))
        table = SidTable(list(map(str, range(NUM_ITEMS))), codes, level_sizes=SIZES)
        self.collator = PreferenceCollator(list(PREFIX), SidHistoryEncoder(table, self.vocabulary), 50, PAD)

    def batch(self, completions: int, size: int) -> dict[str, Tensor]:
        rng = np.random.default_rng(size)  # the same rows for both routes
        lengths = np.minimum(rng.geometric(1 / self.args.mean_items, size), 50)
        draws = [
            {"history": rng.integers(0, NUM_ITEMS, length), "items": rng.integers(0, NUM_ITEMS, completions),
             "smoothing": []} for length in lengths
        ]  # fmt: skip
        return {name: tensor.to(self.device) for name, tensor in self.collator(draws).items() if name != "smoothing"}

    def policy(self, dtype: torch.dtype) -> PeftModel:
        """A random model with a LoRA that does something."""
        config = DpoConfig(out="", catalog="", model="")
        model = get_peft_model(random_model(self.args.shape, dtype, self.device), lora_config(config, "all-linear"))
        generator = torch.Generator(self.device).manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.01, generator=generator)
        train_in_float32(model)
        return model

    def routes(self) -> dict[str, Scores]:
        return {"repeated": self.repeated, "shared": lambda model, batch: model(**batch).log_probs.sum(-1)}

    def repeated(self, model: PeftModel, batch: dict[str, Tensor]) -> Tensor:
        """(B, M) log-probabilities, by a row of prompt and completion for each."""
        base, completions = causal_lm(model), batch["completions"]
        size, many, num_levels = completions.shape
        lengths = batch["attention_mask"].sum(dim=1).repeat_interleave(many)  # of the prompts
        prompts = torch.nn.functional.pad(batch["input_ids"].repeat_interleave(many, dim=0), (0, num_levels - 1))
        places = lengths.unsqueeze(1) + torch.arange(num_levels - 1, device=self.device)
        rows = prompts.scatter(1, places, completions.flatten(0, 1)[:, :-1])
        hidden = run_backbone(base, input_ids=rows, use_cache=False).last_hidden_state
        places = torch.cat([lengths.unsqueeze(1) - 1, places], dim=1)
        states = hidden.gather(1, places.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])).unbind(dim=1)
        scores = []
        for level, (state, token) in enumerate(zip(states, completions.flatten(0, 1).unbind(dim=1), strict=True)):
            block = self.vocabulary.block(level)
            chosen = (token - block.start).unsqueeze(1)
            scores.append(logits(base, state, block).log_softmax(dim=-1).gather(1, chosen).squeeze(1))
        return torch.stack(scores).sum(dim=0).view(size, many)

    def step(self, model: PeftModel, route: Scores, batch: dict[str, Tensor]) -> Tensor:
        """Loss of a batch, whose gradients are left in the model."""
        model.zero_grad(set_to_none=True)
        with torch.autocast(self.args.device, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            policy = route(model, batch)
            with torch.no_grad(), model.disable_adapter():
                reference = route(model, batch)
            is_pair = torch.ones_like(policy[:, 1:], dtype=torch.bool)
            loss = preference_loss(policy - reference, is_pair, torch.zeros_like(policy[:, 1:]), 1.0, "sdpo")[0].mean()
        loss.backward()
        return loss.detach()

    def check_equality(self, name: str) -> None:
        """Stop unless both routes have the same loss and gradients."""
        dtype, self.dtype = self.dtype, torch.float32
        model, batch, found = self.policy(torch.float32), self.batch(CASES[name], 4), {}
        with sibling_scores_in_forward(model, self.vocabulary, normalize_over="level"):
            for route, scores in self.routes().items():
                loss = self.step(model, scores, batch)
                gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
                found[route] = (loss, torch.cat(gradients))
        self.dtype = dtype
        (loss, gradient), (ours, own) = found["repeated"], found["shared"]
        errors = {"loss": abs(ours - loss) / loss, "gradient": (own - gradient).norm() / gradient.norm()}
        errors = {what: float(error) for what, error in errors.items()}
        if not max(errors.values()) < TOLERANCE:
            raise SystemExit(f"{name}: shared and repeated prompts differ by {errors}.")
        emit("equal", of=name, dtype="float32", **errors)

    def measure(self, name: str) -> None:
        model, best = self.policy(self.dtype), {}
        with sibling_scores_in_forward(model, self.vocabulary, normalize_over="level"):
            for route, scores in self.routes().items():
                best[route] = 0.0
                for size in self.args.batch_sizes:
                    rate = self.prompts_per_second(model, scores, name, size, route)
                    if rate is None:
                        break
                    best[route] = max(best[route], rate)
        emit("ratio", of=name, shared_over_repeated=best["shared"] / best["repeated"])

    def prompts_per_second(self, model: PeftModel, scores: Scores, name: str, size: int, route: str) -> float | None:
        """Prints a line; None where the batch does not fit."""
        batch, on_gpu = self.batch(CASES[name], size), self.args.device == "cuda"
        facts = {"of": name, "route": route, "completions": CASES[name], "prompts": size}
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        took = fitting(lambda: seconds(lambda: self.step(model, scores, batch), self.args.repeats, self.device))
        if took is None:
            emit("step", **facts, prompts_per_s="out of memory")
            return None
        peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
        tokens = int(batch["attention_mask"].sum())
        emit("step", **facts, prompt_tokens=tokens, ms=took * 1e3, prompts_per_s=size / took, peak_gib=peak)
        return size / took


if __name__ == "__main__":
    main()
