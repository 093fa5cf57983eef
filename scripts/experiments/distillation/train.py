"""Training of the decoder of semantic IDs, and the scores by which its variants are ranked."""

from __future__ import annotations

import numpy as np
import torch
from data import DEVICE, WINDOW, Data
from fitting import BestStep, Fitted, Job, Surroundings, rank_both
from losses import Weights, loss_of, make_batch
from ranking import Histories
from sid_decoder import Decoder
from teacher import Teacher
from torch import nn

BEAMS = 50
MIXTURES = (0.0, 0.3, 0.5, 0.7, 1.0)  # weight of the item rows; 0.0 is SIDs alone, 1.0 items alone
TRAINING_TARGETS = 6.7e6  # the same number on every dataset
WARM_UP = 100


class Variants:
    """Scores of the decoder: SIDs alone, items alone, mixtures of both, and half of each with the teacher."""

    def __init__(self, model: Decoder, weights: Weights, teacher: Teacher | None):
        self.model, self.weights, self.teacher = model, weights, teacher

    def __call__(self, histories: Histories) -> dict[str, torch.Tensor]:
        """Score the variants that need no teacher."""
        return self._own(*self._answer(histories))

    def with_teacher(self, histories: Histories) -> dict[str, torch.Tensor]:
        """Score all variants."""
        sid, items = self._answer(histories)
        made = self._own(sid, items)
        if self.teacher is not None:
            answer = self.teacher.answer(histories)
            made["t0.5"] = 0.5 * sid + 0.5 * answer
            if self.weights.dense:
                made["t0.5 items"] = 0.5 * items + 0.5 * answer
        return made

    def _answer(self, histories: Histories) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.model.answer([history[-WINDOW:] for history in histories], BEAMS)

    def _own(self, sid: torch.Tensor, items: torch.Tensor | None) -> dict[str, torch.Tensor]:
        reached = torch.where(sid > 0, sid, torch.full_like(sid, -1e31))  # an item outside the beam is a miss
        return {
            f"{share}": reached if share == 0 else (1 - share) * sid + share * items
            for share in (MIXTURES if self.weights.dense else MIXTURES[:1])
            if self.weights.sid or share == 1.0
        }


def _optimizer(model: Decoder, decay: float, item_decay: float) -> torch.optim.AdamW:
    """AdamW with a decay of their own for the item rows."""
    items = [parameter for name, parameter in model.named_parameters() if name.startswith("items")]
    body = [parameter for name, parameter in model.named_parameters() if not name.startswith("items")]
    groups = [{"params": body, "weight_decay": decay}]
    if items:
        groups.append({"params": items, "weight_decay": item_decay})
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=True)


def _num_steps(job: Job, data: Data, shorten: float) -> int:
    rule = int(np.clip(TRAINING_TARGETS / (256 * data.lengths.mean()), 1000, 4000))
    return max(2, int(job.get("steps", rule) * job.get("longer", 1) * shorten))


def _make_model(data: Data, job: Job) -> Decoder:
    return Decoder(
        data,
        dim=job.get("h", 256),
        layers=job.get("layers", 4),
        heads=job.get("heads", 4),
        dropout=job.get("drop", 0.3),
        item_rows=job.get("items", False),
        item_tokens=job.get("item_tokens", False),
        hidden_rows=job.get("hidden_rows", 0.0),
        fused=job.get("compile", False),
    ).to(DEVICE)


def fit_sid(data: Data, job: Job, around: Surroundings) -> Fitted:
    """Train a decoder for a number of steps, and keep the best one on valid."""
    torch.manual_seed(job["seed"])
    rng = np.random.default_rng(job["seed"])
    model, weights, teacher = _make_model(data, job), Weights.of(job), None
    if job.get("teacher") and weights.kd:
        teacher = Teacher(data, around.checkpoints, job["teacher"], job.get("temp", 1.0), job.get("exclude", True))
    optimizer, rate = _optimizer(model, job.get("wd", 0.1), job.get("item_decay", 0.0)), job.get("lr", 1e-3)
    steps, step = _num_steps(job, data, around.shorten), 0
    every = max(1, steps // job.get("evals", 10))
    variants, best = Variants(model, weights, teacher), BestStep(model, examples=job.get("selection"))
    while step < steps:
        order = rng.permutation(len(data.lengths))
        for which in np.array_split(order, max(1, round(len(data.lengths) / job.get("batch", 256)))):
            batch = make_batch(data, which, rng, bool(weights.kd and weights.drawn), model.per_item)
            loss = loss_of(model, data, batch, weights, teacher)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            share = min(1, (step + 1) / WARM_UP) * max(0.02, 1 - step / steps)
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()
            step += 1
            if step % every == 0 or step == steps:
                best.evaluate(step, variants, data, True, round(float(loss.detach()), 3))
                around.note(step, best.curve)
            if step >= steps:
                break
    result = {**best.restore(step), "curve_s": round(best.seconds, 1)}
    result["params"] = sum(parameter.numel() for parameter in model.parameters())
    return Fitted(result, rank_both(variants.with_teacher, data, one_length=True), None)
