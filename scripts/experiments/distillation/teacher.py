"""Teachers: weighted means of the distributions of fitted rankers and ItemKNN, at every position of a batch."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from data import DEVICE, Data
from fitting import Fitted, Job, Surroundings, rank_both
from itemknn import ItemKNN, similarities
from ranking import Histories, rank_targets, selection_score, table
from sasrec import Ranker

Member = Ranker | ItemKNN
RECENT = 10  # items of a history that ItemKNN reads in training


class Teacher:
    """The weighted mean of the distributions of fitted jobs. A `mix` job stands for its members.

    Args:
        data: The dataset.
        checkpoints: Directory of the fitted jobs.
        names: Their ids; each has the same weight.
        temperature: What the logarithms of the scores are divided by.
        exclude: Whether items before a position have probability 0 there.
    """

    def __init__(self, data: Data, checkpoints: Path, names: list[str], temperature: float = 1.0, exclude: bool = True):
        self.data, self.temperature, self.exclude = data, temperature, exclude
        self.members: list[tuple[float, Member]] = []
        for name in names:
            self._add(checkpoints, name, 1 / len(names))

    def _add(self, checkpoints: Path, name: str, weight: float, power: float = 1.0) -> None:
        stored = torch.load(checkpoints / f"{name}.pt", map_location=DEVICE, weights_only=True)
        if "members" in stored:
            for member, share in stored["members"]:
                self._add(checkpoints, member, weight * share, stored["power"])
        elif "state" in stored:
            model = Ranker(self.data, stored["job"]).to(DEVICE)
            model.load_state_dict(stored["state"])
            self.members.append((weight, model.eval()))
        else:
            similar = similarities(self.data, stored["shrink"])
            self.members.append((weight, ItemKNN(self.data, similar, stored["decay"], power)))

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, row: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Answer positions from the items before each; the first position of a history is answered by popularity.

        Args:
            x: (B, T) item rows.
            row: (P,) history of each position.
            place: (P,) its place in the history.

        Returns:
            (P, N2) probabilities.
        """
        column = torch.arange(x.shape[1], device=DEVICE)
        padding = torch.full_like(x[row], self.data.num_items)
        before, first = torch.where(column[None] < place[:, None], x[row], padding), (place == 0)[:, None]
        mean = None
        for weight, member in self.members:
            logits = self._logits(member, x, row, place)
            if self.temperature != 1.0:
                logits = logits / self.temperature
            if self.exclude:
                logits.scatter_(1, before, -torch.inf)
            p = torch.where(first, self.data.log_popularity, logits).softmax(-1)
            if len(self.members) == 1:
                return p
            mean = p * weight if mean is None else mean.add_(p, alpha=weight)
        return mean

    def _logits(self, member: Member, x: torch.Tensor, row: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        if isinstance(member, Ranker):
            return member.scores(member(x)[row, (place - 1).clamp(min=0)])
        back = torch.arange(RECENT, device=DEVICE)
        at = place[:, None] - 1 - back
        padding = torch.full_like(at, self.data.num_items)
        recent = torch.where(at >= 0, x[row[:, None], at.clamp(min=0)], padding)
        weights = (member.decay ** back.float()).expand(len(row), RECENT).contiguous()
        similar = F.embedding_bag(
            recent, member.similarities, mode="sum", per_sample_weights=weights, padding_idx=self.data.num_items
        )
        return (similar + 1e-4 * self.data.log_popularity.exp()).log() * member.power

    @torch.inference_mode()
    def parts(self, histories: Histories) -> list[tuple[float, torch.Tensor]]:
        """Answers (B, N2) of each member after whole histories, with its weight; nothing is excluded."""
        made = []
        for weight, member in self.members:
            scores = member.answer(histories)
            logits = scores if isinstance(member, Ranker) else scores.log() * member.power
            made.append((weight, logits.softmax(-1)))
        return made

    def answer(self, histories: Histories) -> torch.Tensor:
        """(B, N2) mean answer after whole histories; nothing is excluded."""
        return sum(weight * p for weight, p in self.parts(histories))


def fit_mix(data: Data, job: Job, around: Surroundings) -> Fitted:
    """Mix a ranker and ItemKNN by probabilities; choose the ranker's weight and ItemKNN's power on valid."""
    names = ranker, knn = job["teacher"]
    best, chosen, curve = -1.0, (0.0, 0.0), []

    def mixture(weight: float, power: float) -> Teacher:
        made = Teacher(data, around.checkpoints, names)
        (_, ranks), (_, near) = made.members
        made.members = [(weight, ranks), (1 - weight, ItemKNN(data, near.similarities, near.decay, power))]
        return made

    for power in (0.5, 1.0, 2.0):
        teacher = mixture(0.5, power)

        def mixed(histories: Histories, teacher: Teacher = teacher) -> dict[float, torch.Tensor]:
            (_, a), (_, b) = teacher.parts(histories)
            return {weight: weight * a + (1 - weight) * b for weight in (0.3, 0.5, 0.7, 0.85)}

        for weight, columns in table(rank_targets(mixed, data, "valid", data.selection)).items():
            score = selection_score({weight: columns})
            curve.append(((weight, power), round(score, 5)))
            if score > best:
                best, chosen = score, (weight, power)
    weight, power = chosen
    teacher = mixture(weight, power)
    ranks = rank_both(lambda histories: {"model": teacher.answer(histories)}, data)
    result = {"best_step": chosen, "curve": curve, "steps": 0, "train_s": 0}
    return Fitted(result, ranks, {"members": [(ranker, weight), (knn, 1 - weight)], "power": power})
