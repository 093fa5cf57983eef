"""A trained network as a baseline: fitted on the training sequences, its epoch chosen on the valid rows, exact ranking.

Test rows are never read. Valid rows decide when training stops and which weights are kept, and nothing else: no target
of theirs is trained on, and what is ranked for a test row was learned from the training sequences.

Shapes: B rows, N items, k places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from llmrec.baselines.checks import check_trainable
from llmrec.baselines.network import Network
from llmrec.baselines.trainer import Epoch, best_epoch, train
from llmrec.baselines.training_options import TrainingOptions
from llmrec.data.catalog import Catalog
from llmrec.data.examples import Examples
from llmrec.evaluation.metrics import ndcg, target_position
from llmrec.evaluation.ranking import UNFILLED, Ranking
from llmrec.runtime import processes
from llmrec.runtime.console import say
from llmrec.runtime.device import resolve_device

BATCH = 512  # rows scored at once; bounds memory at B x N scores
SELECTION_K = 10  # the epoch is chosen by ndcg at this cut-off, in the column `plain`


class NeuralRanker:
    """A network trained on `Catalog.train`, with the `rank` of every baseline.

    The same seed gives the same weights on a CPU with the same number of threads. Under `accelerate launch` every
    process trains, and the weights of the first one are used.

    Args:
        network: Class to train, such as SASRec.
        catalog: Whose training sequences are learned and whose valid rows choose the epoch.
        seed: Of the first weights, dropout, the order of the windows and what is hidden in them. Torch's global state
            is left as it was.
        device: auto, cpu or cuda.
        training: Options of the trainer; those of the network when left out.
        options: Options of the network.

    Raises:
        ValueError: If there are no valid rows, no training sequence has two items, or the network reads side fields and
            there are none.
    """

    def __init__(
        self,
        network: type[Network],
        catalog: Catalog,
        seed: int = 0,
        device: str = "auto",
        training: TrainingOptions | None = None,
        **options: Any,
    ):
        check_trainable(network.name, catalog)
        sequences, valid = catalog.train.sequences(), catalog.examples("valid")
        self.device, training = resolve_device(device), training or network.training
        # Held-out histories are cut when the catalogue is prepared; longer positions would never be asked for.
        self.max_history = max(1, int(np.diff(valid.offsets).max()))
        self.popularity = torch.from_numpy(catalog.training_counts).float().log1p().to(self.device)  # (N,)
        by_length = valid.take(np.argsort(np.diff(valid.offsets), kind="stable"))  # so that little is padded
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.network = network.of(catalog, self.max_history, **options).to(self.device)
            self.log: list[Epoch] = train(
                self.network, sequences, self.max_history, lambda: self._ndcg(by_length), training, seed
            )
        if processes.count() > 1:  # on GPUs their weights may differ by rounding
            weights = {key: value.cpu() for key, value in self.network.state_dict().items()}
            self.network.load_state_dict(processes.gather([weights] if processes.is_main() else [])[0])
        best = best_epoch(self.log)
        say(
            f"{network.name}: epoch {best + 1} of {len(self.log)} in {self.log[-1].seconds:.0f} s, "
            f"valid ndcg@{SELECTION_K} {self.log[best].quality:.4f}"
        )

    def rank(self, histories: Sequence[np.ndarray], k: int, exclude: Sequence[np.ndarray] | None = None) -> Ranking:
        """The k best items of each history, by exact scores of all items.

        Args:
            histories: B arrays of item rows, oldest first; an empty one gets the popular items.
            k: Places to fill.
            exclude: B arrays of item rows that may not be returned.

        Returns:
            Ranking of shape (B, k). Scores are logits; after an empty history, logs of the training counts plus one.
        """
        items, best = np.full((len(histories), k), UNFILLED), np.full((len(histories), k), -np.inf)
        for first in range(0, len(histories), BATCH):
            part = slice(first, first + BATCH)
            scores = self.scores(histories[part])
            if exclude is not None:
                lengths = np.fromiter(map(len, exclude[part]), dtype=np.int64, count=len(exclude[part]))
                scores[np.repeat(np.arange(len(lengths)), lengths), np.concatenate(exclude[part])] = -torch.inf
            found, order = (each.cpu().numpy() for each in scores.topk(min(k, scores.shape[1])))
            best[part, : found.shape[1]] = found
            items[part, : found.shape[1]] = np.where(np.isfinite(found), order, UNFILLED)
        return Ranking(items, np.broadcast_to(np.arange(k), items.shape), best)

    @torch.no_grad()
    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """(B, N) score of every item after each history."""
        scores = self.network.last_scores([history[-self.max_history :] for history in histories])
        scores[torch.tensor([len(history) == 0 for history in histories], device=self.device)] = self.popularity
        return scores

    def _ndcg(self, rows: Examples) -> float:
        """Mean ndcg of rows in the column `plain`."""
        ranking = self.rank([rows.history(i) for i in range(len(rows))], SELECTION_K)
        return float(ndcg(target_position(ranking, rows.targets), SELECTION_K).mean())
