"""Ranks of the targets among all items, and the metrics made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from data import DEVICE, WINDOW, Data, to_device

CAP = 255  # ranks are kept up to this one
COLUMNS = ("plain", "excl")  # all items, and items of the history excluded
Histories = list[np.ndarray]
Scorer = Callable[[Histories], Mapping[str, torch.Tensor]]  # histories -> {variant of the model: (B, N2) scores}
Ranks = dict[tuple[str, str], np.ndarray]  # (variant, column) -> rank of each example's target, 0 is the best
Table = dict[str, dict[str, dict[str, float]]]  # variant -> column -> metric -> value


def metrics(ranks: np.ndarray) -> dict[str, float]:
    """Compute recall (R) and NDCG (N) at 5 and 10."""
    ranks, values = np.asarray(ranks, np.float64), {}
    for k in (5, 10):
        values[f"R@{k}"] = round(float((ranks < k).mean()), 5)
        values[f"N@{k}"] = round(float(((ranks < k) / np.log2(ranks + 2)).mean()), 5)
    return values


def table(ranks: Ranks) -> Table:
    """Compute the metrics of every variant and column."""
    made: Table = {}
    for (variant, column), values in ranks.items():
        made.setdefault(variant, {})[column] = metrics(values)
    return made


def selection_score(made: Table) -> float:
    """Mean of plain and seen-excluded N@10 of the best variant: the number by which steps and options are chosen."""
    return max((columns["plain"]["N@10"] + columns["excl"]["N@10"]) / 2 for columns in made.values())


def _batches(lengths: np.ndarray, size: int, one_length: bool) -> Iterator[np.ndarray]:
    """Group examples by length, at most `size` at once, and only of one length if the model needs that."""
    order, start = np.argsort(lengths, kind="stable"), 0
    while start < len(order):
        end = min(start + size, len(order))
        if one_length:
            end = start + int(np.searchsorted(lengths[order[start:end]], lengths[order[start]], "right"))
        yield order[start:end]
        start = end


def rank_targets(
    scorer: Scorer, data: Data, split: str, which: np.ndarray | None = None, one_length: bool = False
) -> Ranks:
    """Rank the target of every example among all items.

    A tie counts against the target. A target that the model cannot reach has the rank CAP.

    Args:
        scorer: The model.
        data: The dataset.
        split: valid or test.
        which: Positions of the examples; all by default.
        one_length: Whether the model takes only histories of one length at a time.
    """
    histories, targets = data.examples[split]
    which = np.arange(len(targets)) if which is None else np.asarray(which)
    lengths, made = np.array([min(len(histories[i]), WINDOW) for i in which]), {}
    for part in _batches(lengths, 512, one_length):
        given = [histories[i] for i in which[part]]
        target, place = to_device(targets[which[part]])[:, None], to_device(part)
        row = to_device(np.repeat(np.arange(len(given)), [*map(len, given)]))
        seen = to_device(np.concatenate(given))
        for variant, scores in scorer(given).items():
            for column in COLUMNS:
                if column == "excl":
                    scores = scores.clone()
                    scores[row, seen] = -torch.inf
                own = scores.gather(1, target)
                rank = (scores > own).sum(1) + (scores == own).sum(1) - 1
                rank = torch.where(own[:, 0] <= -1e30, torch.full_like(rank, CAP), rank)
                empty = torch.zeros(len(which), dtype=torch.uint8, device=DEVICE)
                made.setdefault((variant, column), empty)[place] = rank.clamp(max=CAP).to(torch.uint8)
    return {key: ranks.cpu().numpy() for key, ranks in made.items()}
