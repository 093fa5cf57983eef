"""The losses of the decoder: SID cross-entropy, tree distillation, drawn answers, and the softmax over items.

Averaged over positions and levels: (1 - kd) CE(target's code, smoothed) + kd CE(teacher's distribution of the codes
that may follow the target's prefix). `drawn` adds kd times the second term alone, along the SID of an answer that is
drawn from the teacher at one random cut of each history (with `student_draws`, the student draws the SID). `dense`
adds (1 - kd) CE(item, smoothed by `item_smoothing`) + kd CE(teacher) over all items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from data import DEVICE, Data, to_device, to_device_together
from fitting import Job
from packing import Packing, pack
from sid_decoder import Decoder
from teacher import Teacher


@dataclass(frozen=True)
class Weights:
    """Weights of the terms of the loss, as a job gives them."""

    kd: float
    drawn: float
    dense: float
    smoothing: float
    item_smoothing: float
    sid: float
    student_draws: bool

    @classmethod
    def of(cls, job: Job) -> Weights:
        """Read the weights of a job."""
        dense = job.get("dense", 1.0) if job.get("items", False) else 0.0
        return cls(
            kd=job.get("kd", 0.0),
            drawn=job.get("drawn", 0.0),
            dense=dense,
            smoothing=job.get("ls", 0.1),
            item_smoothing=job.get("item_smoothing", 0.0),
            sid=job.get("sid_w", 1.0),
            student_draws=job.get("student_draws", False),
        )


@dataclass(frozen=True)
class Paths:
    """SIDs drawn for the cuts of a batch: (B, L) codes, and for each level the (B,) node above the code."""

    codes: torch.Tensor
    nodes: list[torch.Tensor]


@dataclass
class Batch:
    """Histories of a step, followed by their cut copies if answers are drawn.

    The P positions of the histories come first in `chosen`, then one position of each copy: the cut itself.

    Attributes:
        x: (B, T) item rows, -1 where padded.
        packing: All positions of histories and copies.
        item, previous: Item of each position of the packing, and the one before it or -1.
        row, place: (P,) history and place of each position of the histories.
        chosen: Positions of the packing that carry a loss.
        answer: For each of those, the position among the P whose teacher distribution it takes.
        cuts: (B,) positions of the cuts in the packing; empty without copies.
        cut: (B,) place of each history's cut, in numpy.
        cut_rows: (B,) history of each of `cuts`, in numpy.
    """

    x: torch.Tensor
    packing: Packing
    item: torch.Tensor
    previous: torch.Tensor
    row: torch.Tensor
    place: torch.Tensor
    chosen: torch.Tensor
    answer: torch.Tensor
    cuts: torch.Tensor
    cut: np.ndarray
    cut_rows: np.ndarray


def _items(x: torch.Tensor, row: torch.Tensor, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Item at each position, and the one before it or -1."""
    item = x[row, place]
    return item, torch.where(place > 0, x[row, (place - 1).clamp(min=0)], torch.full_like(item, -1))


def make_batch(data: Data, which: np.ndarray, rng: np.random.Generator, with_cuts: bool, per_item: int) -> Batch:
    """Pack the windows `which`, `per_item` tokens an item, with a copy of each up to a random cut if `with_cuts`."""
    lengths, size = data.lengths[which], len(which)
    x = data.windows[to_device(which)][:, : int(lengths.max())]
    cut = np.minimum(1 + (rng.random(size) * (lengths - 1)).astype(np.int64), lengths - 1)
    packing = pack(np.concatenate([lengths, cut + 1]) if with_cuts else lengths, per_item)
    row, place = packing.row, packing.place
    main = np.flatnonzero(row < size)
    cuts = answers = cut_rows = main[:0]
    if with_cuts:
        cuts = np.flatnonzero(row >= size)
        cuts = cuts[place[cuts] == cut[row[cuts] - size]]
        cut_rows = row[cuts] - size
        number = np.zeros((size, x.shape[1]), np.int64)
        number[row[main], place[main]] = np.arange(len(main))
        answers = number[cut_rows, cut[cut_rows]]
    history, place_, main_row, main_place, chosen, answer, cuts_ = to_device_together(
        np.where(row < size, row, row - size),
        place,
        row[main],
        place[main],
        np.concatenate([main, cuts]),
        np.concatenate([np.arange(len(main)), answers]),
        cuts,
    )
    item, previous = _items(x, history, place_)
    return Batch(x, packing, item, previous, main_row, main_place, chosen, answer, cuts_, cut, cut_rows)


def _gumbel(like: torch.Tensor) -> torch.Tensor:
    """Noise that makes the largest of log-probabilities a draw, up to its sign."""
    return torch.empty_like(like).exponential_().log()


def drawn_from_teacher(data: Data, teacher: torch.Tensor, batch: Batch) -> Paths:
    """Draw an item from the teacher at each cut, and take its SID."""
    p = teacher[batch.answer[len(batch.row) :], : data.num_items]
    item = (p.clamp(min=1e-30).log() - _gumbel(p)).argmax(1)
    return Paths(data.codes[item], [data.node[level][item] for level in range(data.num_levels)])


@torch.no_grad()
def drawn_from_student(model: Decoder, data: Data, batch: Batch) -> Paths:
    """Draw a SID at each cut from the student as it is, level by level among the codes that exist."""
    size, levels = len(batch.x), range(data.num_levels)
    codes = torch.zeros(size, data.num_levels, dtype=torch.long, device=DEVICE)
    nodes = [torch.zeros(size, dtype=torch.long, device=DEVICE)]
    model.eval()
    packing = pack(batch.cut + 1, model.per_item)
    cuts = np.flatnonzero(packing.place == batch.cut[packing.row])
    if not np.array_equal(packing.row[cuts], batch.cut_rows):
        raise RuntimeError("The cut copies lie in another order than in the batch.")
    row, place, cuts_ = to_device_together(packing.row, packing.place, cuts)
    item, previous = _items(batch.x, row, place)
    for level in levels:
        given = data.codes[item].index_copy(0, cuts_, codes)
        logits = model.level_logits(model.hidden(packing, given, previous)[cuts_])[:, level]
        child = data.child[level][nodes[-1]]
        code = (logits.masked_fill(child < 0, -torch.inf) - _gumbel(logits)).argmax(1)
        codes[:, level] = code
        nodes.append(child.gather(1, code[:, None])[:, 0])
    model.train()
    return Paths(codes, nodes[:-1])


def loss_of(model: Decoder, data: Data, batch: Batch, weights: Weights, teacher: Teacher | None) -> torch.Tensor:
    """Compute the loss of a batch; the module's docstring has the formula."""
    answers = teacher(batch.x, batch.row, batch.place) if teacher is not None else None
    target, codes = batch.x[batch.row, batch.place], data.codes[batch.item]
    nodes = [data.node[level][target] for level in range(data.num_levels)]
    if len(batch.cuts):
        if weights.student_draws:
            drawn = drawn_from_student(model, data, batch)
        else:
            drawn = drawn_from_teacher(data, answers, batch)
        codes = codes.index_copy(0, batch.cuts, drawn.codes)
        nodes = [torch.cat(pair) for pair in zip(nodes, drawn.nodes, strict=True)]
    hidden = model.hidden(batch.packing, codes, batch.previous)
    if len(batch.cuts):
        hidden = hidden[batch.chosen]
    loss = torch.zeros((), device=DEVICE)
    if weights.sid:
        soft = data.tree_targets(answers, batch.answer, nodes) if weights.kd else None
        loss = _sid_loss(model.level_logits(hidden).log_softmax(-1), data.codes[target], soft, weights)
    if weights.dense:
        log_p = model.item_logits(hidden[: len(target), 0]).log_softmax(-1)
        hard = (1 - weights.item_smoothing) * log_p.gather(1, target[:, None]).mean()
        if weights.item_smoothing:
            hard = hard + weights.item_smoothing * log_p[:, : data.num_items].mean()
        loss = loss - weights.dense * (1 - weights.kd) * hard
        if weights.kd:
            loss = loss - weights.dense * weights.kd * (answers * log_p).sum(-1).mean()
    return loss


def _sid_loss(log_p: torch.Tensor, codes: torch.Tensor, soft: torch.Tensor | None, weights: Weights) -> torch.Tensor:
    """Cross-entropy of the codes, and of the teacher's distributions at the positions and, after them, at the cuts.

    Args:
        log_p: (P + cuts, L, K) logarithms of the model's probabilities.
        codes: (P, L) codes of the targets.
        soft: (P + cuts, L, K) the teacher's distributions.
        weights: Weights of the terms.
    """
    count, main, smoothing = len(codes), log_p[: len(codes)], weights.smoothing
    hard = -(1 - smoothing) * main.gather(-1, codes[..., None]).mean() - smoothing * main.mean()
    loss = weights.sid * (1 - weights.kd) * hard
    if soft is not None:
        each = -(soft * log_p).sum((1, 2)) / log_p.shape[1]
        loss = loss + weights.sid * weights.kd * each[:count].mean()
        if len(each) > count:
            loss = loss + weights.drawn * weights.sid * weights.kd * each[count:].mean()
    return loss
