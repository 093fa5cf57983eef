"""ItemKNN: cosine similarity of items by the users that they share, the last items of a history weighted most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from data import DEVICE, WINDOW, Data, to_device
from fitting import Fitted, Job, Surroundings, rank_both
from ranking import Histories, rank_targets, selection_score, table
from scipy import sparse

NEIGHBOURS = 200  # similarities that an item keeps


def similarities(data: Data, shrink: float) -> torch.Tensor:
    """Similarity of every pair of items, (N2, N2), 0 but for the nearest neighbours of each."""
    user = np.repeat(np.arange(len(data.train)), [*map(len, data.train)])
    ones, shape = np.ones(len(user), np.float32), (len(data.train), data.num_items)
    seen = sparse.csr_matrix((ones, (user, np.concatenate(data.train))), shape=shape)
    seen.data[:] = 1
    seen.sum_duplicates()
    seen.data[:] = 1
    shared = torch.zeros(data.num_columns, data.num_columns, device=DEVICE)
    shared[: data.num_items, : data.num_items] = torch.tensor((seen.T @ seen).toarray(), device=DEVICE)
    norm = shared.diagonal().sqrt().clone()
    shared.fill_diagonal_(0)
    shared /= norm[:, None] * norm[None] + shrink + 1e-9
    values, neighbours = shared.topk(min(NEIGHBOURS, data.num_items), 1)
    return torch.zeros_like(shared).scatter_(1, neighbours, values)


@dataclass(frozen=True)
class ItemKNN:
    """Similarities, the weight of each earlier item relative to the next one, and the power that a mixture takes."""

    data: Data
    similarities: torch.Tensor
    decay: float
    power: float = 1.0

    def answer(self, histories: Histories) -> torch.Tensor:
        """Score all columns after each history, (B, N2); popularity breaks ties."""
        cut = [history[-WINDOW:] for history in histories]
        weights = to_device(
            np.concatenate([self.decay ** np.arange(len(items) - 1, -1, -1.0) for items in cut]), torch.float
        )
        row = to_device(np.repeat(np.arange(len(cut)), [*map(len, cut)]))
        profile = torch.zeros(len(cut), self.data.num_columns, device=DEVICE)
        profile.index_put_((row, to_device(np.concatenate(cut))), weights, accumulate=True)
        return profile @ self.similarities + 1e-6 * self.data.log_popularity.exp()


def fit_knn(data: Data, job: Job, around: Surroundings) -> Fitted:
    """Choose shrink and decay on valid."""
    best, chosen, curve = -1.0, (0, 0.0), []

    def scorer(model: ItemKNN):
        return lambda histories: {"model": model.answer(histories)}

    for shrink in (0, 5, 20, 50):
        similar = similarities(data, shrink)
        for decay in (0.3, 0.5, 0.7, 0.85):
            ranks = rank_targets(scorer(ItemKNN(data, similar, decay)), data, "valid", data.selection)
            score = selection_score(table(ranks))
            curve.append(((shrink, decay), round(score, 5)))
            if score > best:
                best, chosen = score, (shrink, decay)
    shrink, decay = chosen
    ranks = rank_both(scorer(ItemKNN(data, similarities(data, shrink), decay)), data)
    result = {"best_step": chosen, "curve": curve, "steps": 0, "train_s": 0}
    return Fitted(result, ranks, {"shrink": shrink, "decay": decay})
