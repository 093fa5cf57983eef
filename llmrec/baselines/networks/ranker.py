"""A baseline that trains a network: fitted on the training sequences, validated after every epoch, exact ranking.

Test examples are never read. Valid examples only decide when training stops and which weights are kept; their targets
are not trained on.

Shapes: B histories, N items, k places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from llmrec.baselines.checks import check_trainable
from llmrec.baselines.networks.network import Network
from llmrec.baselines.networks.trainer import best_epoch, train
from llmrec.baselines.queries import popularity
from llmrec.data.catalog import Catalog
from llmrec.data.examples import Examples
from llmrec.evaluation.learning import Epoch
from llmrec.evaluation.metrics import ndcg, target_position
from llmrec.evaluation.ranking import UNFILLED, Ranking
from llmrec.runtime import processes
from llmrec.runtime.console import say
from llmrec.runtime.device import resolve_device

BATCH = 512  # histories scored at once; bounds memory at BATCH x N scores
SELECTION_K = 10  # the best epoch is that of the largest ndcg at this cut-off, in the column `plain`


class NeuralRanker:
    """A baseline that trains a network on `Catalog.train`.

    The same seed gives the same weights on a CPU with the same number of threads. Under `accelerate launch` every
    process trains, and all use the weights of the first one.

    Args:
        network: Class to train, such as SASRec.
        catalog: Catalogue whose training sequences are learned and whose valid examples decide the epoch.
        seed: Seed of the initial weights, dropout, the order of the windows and the masked items. Torch's global state
            stays as it was.
        device: auto, cpu or cuda.
        options: Fields of `network.options`, such as `hidden` or `patience`.

    Attributes:
        options: All options, defaults included.
        max_history: Latest items of a history that are read.
        log: One entry per epoch.

    Raises:
        ValueError: If there are no valid examples, no training sequence has two items, or the network reads side fields
            and there are none.
    """

    def __init__(
        self,
        network: type[Network],
        catalog: Catalog,
        seed: int = 0,
        device: str = "auto",
        **options: Any,  # `network.options` checks them
    ):
        check_trainable(network.name, catalog)
        sequences, valid = catalog.train.sequences(), catalog.examples("valid")
        self.device, self.options = resolve_device(device), network.options(**options)
        self.max_history = self.options.max_history or max(1, int(np.diff(valid.offsets).max()))
        self.popularity = popularity(catalog.training_counts, self.device)  # (N,)
        by_length = valid.take(np.argsort(np.diff(valid.offsets), kind="stable"))  # to keep padding short
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            given = dataclasses.asdict(self.options) | {"max_history": self.max_history}
            self.network = network.of(catalog, **given).to(self.device)
            self.log: list[Epoch] = train(
                self.network, sequences, self.max_history, lambda: self._ndcg(by_length), self.options, seed
            )
        if processes.count() > 1:  # their weights may differ by rounding on GPUs
            weights = {key: value.cpu() for key, value in self.network.state_dict().items()}
            self.network.load_state_dict(processes.gather([weights] if processes.is_main() else [])[0])
        best = best_epoch(self.log)
        say(
            f"{network.name}: epoch {best + 1} of {len(self.log)} in {self.log[-1].seconds:.0f} s, "
            f"valid ndcg@{SELECTION_K} {self.log[best].quality:.4f}"
        )

    def rank(self, histories: Sequence[np.ndarray], k: int, exclude: Sequence[np.ndarray] | None = None) -> Ranking:
        """Rank all items by their exact scores.

        Args:
            histories: B arrays of item rows, oldest first; an empty one gets the popular items.
            k: Number of places.
            exclude: B arrays of item rows that may not be returned.

        Returns:
            Ranking of shape (B, k). Scores are logits; for an empty history, logs of the training counts plus one.
        """
        items, best = np.full((len(histories), k), UNFILLED), np.full((len(histories), k), -np.inf)
        for first in range(0, len(histories), BATCH):
            part = slice(first, first + BATCH)
            scores = self.scores(histories[part])
            if exclude is not None:
                lengths = np.fromiter(map(len, exclude[part]), dtype=np.int64, count=len(exclude[part]))
                scores[np.repeat(np.arange(len(lengths)), lengths), np.concatenate(exclude[part])] = -torch.inf
            top, order = (each.cpu().numpy() for each in scores.topk(min(k, scores.shape[1])))
            best[part, : top.shape[1]] = top
            items[part, : top.shape[1]] = np.where(np.isfinite(top), order, UNFILLED)
        return Ranking(items, np.broadcast_to(np.arange(k), items.shape), best)

    @torch.no_grad()
    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """(B, N) score of every item after each history."""
        scores = self.network.last_scores([history[-self.max_history :] for history in histories])
        scores[torch.tensor([len(history) == 0 for history in histories], device=self.device)] = self.popularity
        return scores

    def _ndcg(self, examples: Examples) -> float:
        """Mean ndcg of held-out examples in the column `plain`."""
        ranking = self.rank([examples.history(i) for i in range(len(examples))], SELECTION_K)
        return float(ndcg(target_position(ranking, examples.targets), SELECTION_K).mean())
