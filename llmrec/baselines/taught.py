"""Rankers that `llmrec teach` keeps: saved without pickle, bound to their catalogue, loaded without training.

A directory holds ranker.json (name, options, the hash of the catalogue and what was measured on valid) and
ranker.safetensors (weights, or counts); that of a mixture holds such a directory for each member, too.

Shapes: B histories, Q queries, N items, k places.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmrec.baselines.best_items import Exclusions, best_items
from llmrec.baselines.counted import COUNTED_BASELINES, Popularity
from llmrec.baselines.mixture import Mixture
from llmrec.baselines.networks import TAUGHT_NETWORKS, NeuralRanker
from llmrec.baselines.queries import Queries, Teacher, queries_of
from llmrec.baselines.scores import Scores
from llmrec.configs.options import Config
from llmrec.data.catalog import Catalog
from llmrec.evaluation.learning import Epoch
from llmrec.evaluation.ranking import UNFILLED, Ranking
from llmrec.runtime.finite import check_finite
from llmrec.runtime.manifest import JsonObject, content_hash, verify, write_json

RANKER, TENSORS, MEMBERS = "ranker.json", "ranker.safetensors", "members"
LEAST = torch.finfo(torch.float32).tiny  # in a ranking, so that an item whose probability is rounded to 0 has a place


class Ranker(Protocol):
    """A ranker that can be kept: counted, trained, mixed or made of scores of one's own."""

    @property
    def name(self) -> str:
        """Name of the ranker."""

    @property
    def chosen(self) -> Config:
        """All options, defaults included."""

    @property
    def log(self) -> Sequence[Epoch]:
        """One entry per epoch of training."""

    def probabilities(self, queries: Queries, exclude_seen: bool, temperature: float = 1.0) -> Tensor:
        """Answer queries as `llmrec.baselines.queries.Teacher` says."""

    def tensors(self) -> dict[str, Tensor]:
        """Weights or counts, by name."""


@dataclass(frozen=True)
class Taught:
    """A ranker with what `llmrec teach` found out about it.

    Attributes:
        ranker: The ranker on its device.
        device: That device.
        exclude_seen: True if it was better on valid examples without the items of the history.
        facts: Further content of ranker.json: `valid`, `seconds` and `log`.
    """

    ranker: Ranker
    device: torch.device
    exclude_seen: bool = False
    facts: JsonObject = dataclasses.field(default_factory=dict)

    @property
    def log(self) -> list[Epoch]:
        """One entry per epoch of training; empty for a counted ranker."""
        return [Epoch(**entry) for entry in self.facts.get("log", ())]

    def probabilities(self, queries: Queries, exclude_seen: bool, temperature: float = 1.0) -> Tensor:
        """Answer queries as `llmrec.baselines.queries.Teacher` says."""
        return self.ranker.probabilities(queries, exclude_seen, temperature)

    def rank(self, histories: Sequence[np.ndarray], k: int, exclude: Sequence[np.ndarray] | None = None) -> Ranking:
        """Rank all items for each history.

        Args:
            histories: B arrays of item rows, oldest first; an empty one gets the popular items.
            k: Number of places.
            exclude: B arrays of item rows that may not be returned.

        Returns:
            Ranking of shape (B, k), each place a group of its own. Scores are log-probabilities; if `exclude` is the
            histories themselves, those among the other items.
        """
        found = best_items(self._likelihoods, histories, k, exclude)
        top = found.scores.astype(np.float32)
        scores = np.log(top, out=np.full_like(top, -np.inf), where=found.items != UNFILLED)
        return Ranking(found.items, found.groups, scores.astype(np.float64))

    def _likelihoods(self, histories: Sequence[np.ndarray], exclude: Exclusions) -> Tensor:
        """(B, N) probabilities after each history, none of which is 0."""
        seen = exclude is not None and all(map(np.array_equal, histories, exclude))
        return self.probabilities(queries_of(histories, self.device), seen).clamp_min_(LEAST)

    def with_power(self, power: float) -> Taught:
        """The same counted ranker with another power of its scores."""
        assert isinstance(self.ranker, Popularity)
        return dataclasses.replace(self, ranker=self.ranker.with_power(power))

    def save(self, directory: str | Path, catalog: Catalog) -> None:
        """Write ranker.json and ranker.safetensors into a directory, and the members of a mixture below it.

        Args:
            directory: Directory that exists.
            catalog: Catalogue that the ranker was fitted to.

        Raises:
            ValueError: If a weight is not finite.
        """
        path = Path(directory)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.ranker.tensors().items()}
        check_finite(tensors, f"{self.ranker.name}: its training diverged; lower learning_rate.")
        save_file(tensors, path / TENSORS)
        settings = {
            "ranker": self.ranker.name,
            "options": dataclasses.asdict(self.ranker.chosen),
            "catalog_sha256": content_hash(catalog.source),
            "exclude_seen": self.exclude_seen,
            **self.facts,
        }
        write_json(path / RANKER, settings)
        if isinstance(self.ranker, Mixture):
            for place, member in enumerate(self.ranker.members):
                assert isinstance(member, Taught)
                below = path / MEMBERS / str(place)
                below.mkdir(parents=True, exist_ok=True)
                member.save(below, catalog)


def load_ranker(directory: str | Path, catalog: Catalog, device: torch.device) -> Taught:
    """Read the ranker that `llmrec teach` wrote.

    Args:
        directory: The directory.
        catalog: Catalogue that the ranker was taught on.
        device: Device that it computes on.

    Raises:
        ValueError: If the directory is unfinished, changed or of another stage, the ranker was taught on another
            catalogue, or a weight is not finite.
    """
    path = verify(directory, "teach")
    try:
        taught = json.loads((path / RANKER).read_text(encoding="utf-8"))["catalog_sha256"]
        if taught == content_hash(catalog.source):
            return _read(path, catalog, device)
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"'{path}' holds no whole ranker: {error}; run `llmrec teach` again.") from error
    raise ValueError(
        f"'{path}' was taught on another catalogue than '{catalog.source}', whose held-out items it may have learned. "
        "Run `llmrec teach` on this one, or give the catalogue that it was taught on."
    )


def load_teacher(directories: Sequence[str], catalog: Catalog, device: torch.device) -> Teacher:
    """Read one or more rankers of `llmrec teach` as one teacher; the probabilities of several are averaged.

    Raises:
        ValueError: As `load_ranker` does, or if no directory is given or one is given twice.
    """
    if not directories or len({Path(each).resolve() for each in directories}) < len(directories):
        raise ValueError(f"teacher is {list(directories)}; give one or more different directories of `llmrec teach`.")
    teachers = [load_ranker(each, catalog, device) for each in directories]
    return teachers[0] if len(teachers) == 1 else Mixture(teachers, [1 / len(teachers)] * len(teachers))


def _read(path: Path, catalog: Catalog, device: torch.device) -> Taught:
    settings, tensors = json.loads((path / RANKER).read_text(encoding="utf-8")), load_file(path / TENSORS)
    check_finite(tensors, "no ranker can answer with them")
    name, options = settings.pop("ranker"), settings.pop("options")
    exclude_seen = settings.pop("exclude_seen")
    del settings["catalog_sha256"]
    ranker: Ranker
    if name == Mixture.name:
        weights = tensors["weights"].tolist()
        ranker = Mixture([_read(path / MEMBERS / str(i), catalog, device) for i in range(len(weights))], weights)
    elif name in TAUGHT_NETWORKS:
        ranker = NeuralRanker(TAUGHT_NETWORKS[name], catalog, device=device, weights=tensors, **options)
    else:
        ranker = {**COUNTED_BASELINES, Scores.name: Scores}[name](catalog, device, tensors, **options)
    return Taught(ranker, device, exclude_seen, settings)
