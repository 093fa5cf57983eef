"""A baseline that trains a network: fitted on the training sequences, validated after every epoch, exact ranking.

Test examples are never read. Valid examples only decide when training stops and which weights are kept; their targets
are not trained on.

Shapes: B histories, N items, k places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmrec.baselines.best_items import BATCH, best_items
from llmrec.baselines.checks import check_trainable
from llmrec.baselines.networks.network import Network
from llmrec.baselines.networks.trainer import best_epoch, train
from llmrec.baselines.queries import Queries, before, normalised, popularity
from llmrec.data.catalog import Catalog
from llmrec.data.examples import Examples
from llmrec.evaluation.learning import Epoch
from llmrec.evaluation.metrics import ndcg, target_position
from llmrec.evaluation.ranking import Ranking
from llmrec.runtime import processes
from llmrec.runtime.console import say
from llmrec.runtime.device import resolve_device

SELECTION_K = 10  # the best epoch is that of the largest ndcg at this cut-off, in the column `plain`


class NeuralRanker:
    """A baseline that trains a network on `Catalog.train`.

    The same seed gives the same weights on a CPU with the same number of threads. Under `accelerate launch` the
    processes share out the windows of each step and the valid examples, and all use the weights of the first one.

    Args:
        network: Class to train, such as SASRec.
        catalog: Catalogue whose training sequences are learned and whose valid examples decide the epoch.
        seed: Seed of the initial weights, dropout, the order of the windows and the masked items. Torch's global state
            stays as it was.
        device: auto, cpu or cuda.
        weights: Result of `tensors` of a trained ranker with the same network and options; nothing is trained then.
        features: Tensors about the items that `network.features` names; `weights` have them too.
        options: Fields of `network.options`, such as `hidden` or `patience`.

    Attributes:
        chosen: All options, `max_history` included.
        max_history: Latest items of a history that are read.
        log: One entry per epoch of this training.

    Raises:
        ValueError: If there are no valid examples, no training sequence has two items, or the network reads side fields
            and there are none.
    """

    def __init__(
        self,
        network: type[Network],
        catalog: Catalog,
        seed: int = 0,
        device: str | torch.device = "auto",
        weights: Mapping[str, Tensor] | None = None,
        features: Mapping[str, Tensor] | None = None,
        **options: Any,  # `network.options` checks them
    ):
        self.name, self.device, self.chosen = network.name, resolve_device(str(device)), network.options(**options)
        if weights is None:
            check_trainable(network.name, catalog)
        self.max_history = self.chosen.max_history or max(1, int(np.diff(catalog.examples("valid").offsets).max()))
        self.chosen = dataclasses.replace(self.chosen, max_history=self.max_history)
        self.popularity = popularity(catalog.training_counts, self.device)  # (N,)
        self.log: list[Epoch] = []
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            given: dict[str, Any] = dataclasses.asdict(self.chosen)
            if network.features:
                given["features"] = features if weights is None else weights
            self.network = network.of(catalog, **given).to(self.device)
            if weights is None:
                self._train(catalog, seed)
            else:
                self.network.load_state_dict(weights)
                self.network.eval()

    def rank(self, histories: Sequence[np.ndarray], k: int, exclude: Sequence[np.ndarray] | None = None) -> Ranking:
        """Rank all items by their exact scores.

        Args:
            histories: B arrays of item rows, oldest first; an empty one gets the popular items.
            k: Number of places.
            exclude: B arrays of item rows that may not be returned.

        Returns:
            Ranking of shape (B, k). Scores are logits; for an empty history, logs of the training counts plus one.
        """
        return best_items(lambda part, _: self.scores(part), histories, k, exclude)

    @torch.no_grad()
    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """(B, N) score of every item after each history."""
        scores = self.network.last_scores([history[-self.max_history :] for history in histories])
        scores[torch.tensor([len(history) == 0 for history in histories], device=self.device)] = self.popularity
        return scores

    def probabilities(self, queries: Queries, exclude_seen: bool, temperature: float = 1.0) -> Tensor:
        """Answer queries as `llmrec.baselines.queries.Teacher` says; a causal network reads each window once."""
        return normalised(self.logits(queries), queries, exclude_seen, temperature)

    @torch.no_grad()
    def logits(self, queries: Queries) -> Tensor:
        """(Q, N) score of every item to be the answer to each query, as `scores` of the items before it."""
        network, most = self.network, queries.items.shape[1]
        if network.causal and most <= self.max_history:
            vectors = self._vectors
            states = network(queries.items, vectors)  # (S, H, D)
            found = network.scores(states[queries.sequence, (queries.length - 1).clamp_min(0)], vectors)
        else:  # a history of its own for each query: its last `max_history` items
            items, _ = before(queries)
            skipped = (queries.length - self.max_history).clamp_min(0)
            place = skipped[:, None] + torch.arange(min(most, self.max_history), device=items.device)
            rows, lengths = items.gather(1, place.clamp_max(most - 1)), queries.length - skipped
            parts = zip(rows.split(BATCH), lengths.split(BATCH), strict=True)
            found = torch.cat([network.scores_after(*part) for part in parts])
        return torch.where(queries.length[:, None] == 0, self.popularity, found)

    @cached_property
    def _vectors(self) -> Tensor:
        """Vectors of the trained network, which a teacher needs at every step; CCFRec fuses every item for them."""
        return self.network.vectors()

    def tensors(self) -> dict[str, Tensor]:
        """Weights of the network, by name."""
        return dict(self.network.state_dict())

    def _train(self, catalog: Catalog, seed: int) -> None:
        """Train the network; all processes end with the weights of the first."""
        valid, network = catalog.examples("valid"), self.network
        by_length = valid.take(np.argsort(np.diff(valid.offsets), kind="stable"))  # to keep padding short
        sequences = catalog.train.sequences()
        self.log = train(network, sequences, self.max_history, lambda: self._ndcg(by_length), self.chosen, seed)
        if processes.count() > 1:  # their weights may differ by rounding on GPUs
            weights = {key: value.cpu() for key, value in network.state_dict().items()}
            network.load_state_dict(processes.gather([weights] if processes.is_main() else [])[0])
        best = best_epoch(self.log)
        say(
            f"{network.name}: epoch {best + 1} of {len(self.log)} in {self.log[-1].seconds:.0f} s, "
            f"valid ndcg@{SELECTION_K} {self.log[best].quality:.4f}"
        )

    def _ndcg(self, examples: Examples) -> float:
        """Mean ndcg of held-out examples in the column `plain`; each process ranks its part."""
        rows = np.arange(len(examples))
        own = rows[processes.rank() :: processes.count()] if len(rows) >= processes.count() else rows
        ranking = self.rank([examples.history(i) for i in own], SELECTION_K)
        values = ndcg(target_position(ranking, examples.targets[own]), SELECTION_K)
        return float(processes.joined(torch.from_numpy(values)).numpy().mean())
