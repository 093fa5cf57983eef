"""SASRec view: the item vectors of a causal transformer that was trained to predict the next item.

The network, its loss and its trainer are those of the baseline (`llmrec.baselines.networks.sasrec`; Kang and McAuley,
arXiv:1808.09781, with a softmax over all items), and so are their departures. LETTER, ETEGRec and SimCIT use such
vectors as collaborative signal. Departure: the epoch is chosen by items held out of training (`llmrec.views.hold_out`),
because a view must not know the validation items.

Shapes: N items, D hidden.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from llmrec.baselines import NeuralRanker, SASRec
from llmrec.baselines.networks.trainer import best_epoch
from llmrec.data.catalog import Catalog
from llmrec.views import View, describe, scatter
from llmrec.views.hold_out import hold_out


def sasrec_view(catalog: Catalog, dim: int, seed: int, device: str, **options: Any) -> View:  # SASRec checks them
    """Train SASRec and return its item vectors, which are its input and output embeddings.

    Items that nothing precedes or follows are missing. Under `accelerate launch` every process has to call this
    function, and each returns the view of the first process.

    Args:
        catalog: Catalogue whose training examples are read.
        dim: Dimension D, a multiple of the network's two heads.
        seed: Seed of the held-out items, the first weights, dropout and the order of training.
        device: auto, cpu or cuda.
        options: Options of SASRec, except `hidden`.

    Raises:
        ValueError: If no training sequence can give a held-out item.
    """
    inner = hold_out(catalog, seed)
    ranker = NeuralRanker(SASRec, inner, seed, device, hidden=dim, **options)
    facts = describe(
        "sasrec", catalog, encoder="sasrec", seed=seed, judges=len(inner.examples("valid")),
        epoch=best_epoch(ranker.log) + 1, **dataclasses.asdict(ranker.chosen),
    )  # fmt: skip
    train = inner.train
    trained = np.union1d(train.values, train.targets[np.diff(train.offsets) > 0])
    vectors = ranker.network.vectors().detach().cpu().numpy()  # (N, D)
    return scatter(vectors[trained], trained, catalog.num_items, facts)
