"""Small networks and catalogues for the tests of trained baselines."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from llmrec.baselines import NETWORKS, NeuralRanker
from llmrec.baselines.networks.examples import batches
from llmrec.data.catalog import Catalog

CPU = torch.device("cpu")
QUICK = {"learning_rate": 3e-3, "max_epochs": 30, "patience": 4}
SHORT = {"max_epochs": 2}
CAUSAL = ("sasrec", "gru4rec", "sasrec_fields")
every = pytest.mark.parametrize("name", NETWORKS)
causal = pytest.mark.parametrize("name", CAUSAL)
COLOURS = ["red", "red", None, "blue"] * 3
TAGS = [["a", "b"], [], ["b"], ["a", "b", "c"]] * 3


def quick(name, catalog, seed=0, training=QUICK) -> NeuralRanker:
    return NeuralRanker(NETWORKS[name], catalog, seed, "cpu", hidden=32, dropout=0.1, **training)


def network(name, max_history=8, **options):
    torch.manual_seed(0)
    return NETWORKS[name].of(split([], [], []), max_history, **{"hidden": 16, **options}).eval()


def split(train, valid, test, **fields) -> Catalog:
    """12 items, and rows of one user each; sequences are item rows, the last of each is the target."""
    rows = [
        {"user_id": f"{i}", "split": name, "history": [f"{row}" for row in items[:-1]], "target": f"{items[-1]}"}
        for name, sequences in (("train", train), ("valid", valid), ("test", test))
        for i, items in enumerate(sequences)
    ]
    ids = [f"{row}" for row in range(12)]
    items = pa.table({"item_id": ids, "title": ids, **(fields or {"colour": COLOURS, "tags": TAGS})})
    schema = pa.schema({**dict.fromkeys(("user_id", "split", "target"), pa.string()), "history": pa.list_(pa.string())})
    return Catalog(items, pa.Table.from_pylist(rows, schema))


def batch_of(examples):
    """All examples in one batch, in their order."""
    return next(batches(examples, [np.arange(len(examples.lengths))], CPU))
