"""SASRec and LiGR rankers: causal blocks over item vectors, scored by the same item vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from data import DEVICE, WINDOW, Data, positions_of, to_device
from fitting import BestStep, Fitted, Job, Surroundings, rank_both
from ranking import Histories
from torch import nn


class Block(nn.Module):
    """Attention and a feed-forward part.

    Args:
        dim: Size of the vectors.
        heads: Number of attention heads.
        dropout: Share of dropped activations.
        kind: `post` has the layer norm after each part (as torch's encoder layer), `pre` before it, and `ligr` before
            it with gated residuals and SwiGLU.
    """

    def __init__(self, dim: int, heads: int, dropout: float, kind: str):
        super().__init__()
        self.heads, self.dropout, self.kind = heads, dropout, kind
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm1, self.norm2, self.drop = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.Dropout(dropout)
        if kind == "ligr":
            self.up, self.down = nn.Linear(dim, 8 * dim), nn.Linear(4 * dim, dim)
            self.gate1, self.gate2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        else:
            self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, dim))

    def _feed(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "ligr":
            a, b = self.up(x).chunk(2, -1)
            return self.down(self.drop(F.silu(a) * b))
        return self.down(self.drop(F.gelu(self.up(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply both parts to (B, T, dim)."""
        if self.kind == "post":
            x = self.norm1(x + self.drop(self._attend(x)))
            return self.norm2(x + self.drop(self._feed(x)))
        if self.kind == "pre":
            x = x + self.drop(self._attend(self.norm1(x)))
            return x + self.drop(self._feed(self.norm2(x)))
        x = x + torch.sigmoid(self.gate1(x)) * self.drop(self._attend(self.norm1(x)))
        return x + torch.sigmoid(self.gate2(x)) * self.drop(self._feed(self.norm2(x)))


class Ranker(nn.Module):
    """SASRec: item and position vectors, causal blocks, scores by the same item vectors; pads on the right.

    Args:
        data: The dataset.
        job: `d` (128), `layers` (2), `heads` (2), `drop` (0.5), and `block` (post), the kind of Block.
    """

    def __init__(self, data: Data, job: Job):
        super().__init__()
        dim, dropout, self.kind = job.get("d", 128), job.get("drop", 0.5), job.get("block", "post")
        self.data = data
        self.items, self.places = nn.Embedding(data.num_columns, dim), nn.Embedding(WINDOW, dim)
        self.norm, self.drop = nn.LayerNorm(dim), nn.Dropout(dropout)
        blocks = (Block(dim, job.get("heads", 2), dropout, self.kind) for _ in range(job.get("layers", 2)))
        self.blocks = nn.ModuleList(blocks)
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode (B, T) item rows, -1 where padded, as (B, T, dim)."""
        vectors = self.items(torch.where(x < 0, torch.full_like(x, self.data.num_items), x))
        places = self.places.weight[: x.shape[1]]
        if self.kind == "post":
            h = self.drop(self.norm(vectors + places))
        else:
            h = self.drop(vectors * vectors.shape[-1] ** 0.5 + places)
        for block in self.blocks:
            h = block(h)
        return h if self.kind == "post" else self.norm(h)

    def scores(self, h: torch.Tensor) -> torch.Tensor:
        """Score all columns for states (..., dim)."""
        return F.linear(h, self.items.weight, self.data.no_item)

    @torch.inference_mode()
    def answer(self, histories: Histories) -> torch.Tensor:
        """Score all columns after each history: (B, N2)."""
        lengths = np.array([min(len(history), WINDOW) for history in histories])
        padded = np.full((len(histories), lengths.max()), -1, np.int64)
        for i, history in enumerate(histories):
            padded[i, : lengths[i]] = history[-WINDOW:]
        return self.scores(self(to_device(padded))[torch.arange(len(histories), device=DEVICE), to_device(lengths - 1)])


@dataclass(frozen=True)
class Schedule:
    """When a ranker is evaluated, and when it stops: small datasets are looked at more often."""

    limit: int
    every: int
    patience: int

    @classmethod
    def of(cls, job: Job, num_windows: int, shorten: float) -> Schedule:
        """Read the schedule of a job."""
        limit, large = int(job.get("limit", 12000) * shorten), num_windows > 8000
        every = job.get("every", 250 if large else 50) if shorten >= 1 else max(1, limit // 2)
        return cls(limit, every, job.get("patience", 8 if large else 20))


def _loss(model: Ranker, data: Data, which: np.ndarray, negatives: int) -> torch.Tensor:
    """Cross-entropy of the next item over all items, or over the target and uniform negatives of each position."""
    x = data.windows[to_device(which)][:, : int(data.lengths[which].max())]
    row, place = map(to_device, positions_of(data.lengths[which] - 1))
    h, target = model(x[:, :-1])[row, place], x[row, place + 1]
    if not negatives:
        return F.cross_entropy(model.scores(h), target)
    drawn = torch.randint(data.num_items, (len(target), negatives), device=DEVICE)
    own = (h * model.items(target)).sum(-1, keepdim=True)
    others = torch.einsum("pd,pnd->pn", h, model.items(drawn)).masked_fill(drawn == target[:, None], -1e9)
    return F.cross_entropy(torch.cat([own, others], 1), torch.zeros_like(target))


def fit_ranker(data: Data, job: Job, around: Surroundings) -> Fitted:
    """Train a ranker until it has not improved on valid for a while; that is looked at once an epoch."""
    torch.manual_seed(job["seed"])
    rng = np.random.default_rng(job["seed"])
    model = Ranker(data, job).to(DEVICE)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=job.get("lr", 1e-3), weight_decay=1e-4, betas=(0.9, 0.98), fused=True
    )
    schedule, best, step = Schedule.of(job, len(data.lengths), around.shorten), BestStep(model), 0

    def score(histories: Histories) -> dict[str, torch.Tensor]:
        return {"model": model.answer(histories)}

    while step < schedule.limit and step - best.step < schedule.every * schedule.patience:
        order = rng.permutation(len(data.lengths))
        for which in np.array_split(order, max(1, round(len(data.lengths) / 256))):
            loss = _loss(model, data, which, job.get("negatives", 0))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            if step % schedule.every == 0 or step == schedule.limit:
                best.evaluate(step, score, data)
                around.note(step, best.curve)
            if step >= schedule.limit:
                break
    result = best.restore(step)
    return Fitted(result, rank_both(score, data), {"state": model.state_dict(), "job": job})
