"""Items in clusters, as a catalogue and views, for tests of item tokenizers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from llmrec.data.catalog import Catalog
from llmrec.tokenizers import Encoded, ItemTokenizer
from llmrec.views import ItemViews, View

SPLIT = pa.table({"user_id": ["u"], "split": ["train"], "history": [["0"]], "target": ["0"]})


def points(num_points: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_points, dim, generator=torch.Generator().manual_seed(seed))


def clusters(num_points: int, dim: int, num_clusters: int, spread: float = 0.2) -> torch.Tensor:
    """Point i belongs to cluster i % num_clusters."""
    return points(num_clusters, dim, seed=1).repeat(-(-num_points // num_clusters), 1)[:num_points] + spread * points(
        num_points, dim
    )


def catalog_of(num_items: int) -> Catalog:
    ids = [str(row) for row in range(num_items)]
    return Catalog(pa.table({"item_id": ids, "title": ids}), SPLIT)


def views_of(**vectors: torch.Tensor | np.ndarray) -> ItemViews:
    """Views by name; an item whose vector is zero is missing."""
    blocks = {name: np.array(block, np.float32) for name, block in vectors.items()}
    return ItemViews({name: View(block, ~block.any(axis=1)) for name, block in blocks.items()})


def books_of(tokenizer: ItemTokenizer) -> list[torch.Tensor]:
    """Codebooks that a tokenizer has fitted, behind an encoder or without."""
    quantizer = tokenizer.coder.quantizer
    return quantizer.books if hasattr(quantizer, "books") else quantizer.codebooks.books


def rebuilt_cosine(encoded: Encoded) -> float:
    """Mean cosine of the items' vectors and what their codes stand for."""
    rows = np.arange(len(encoded.codes))
    return float(torch.cosine_similarity(encoded.vectors(rows), encoded.reconstruction(rows)).mean())
