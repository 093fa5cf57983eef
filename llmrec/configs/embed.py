"""Options of `llmrec embed`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmrec.configs.options import Config, StageConfig, option

VIEW_NAMES = ("text", "collaborative", "sasrec", "lightgcn", "famae", "spatial", "geographic")


@dataclass(kw_only=True)
class EmbedConfig(StageConfig, Config):
    """Turn items into vectors, one file per view."""

    renamed: ClassVar = {
        "text_dim": "removed: TF-IDF vectors have 128 dimensions",
        "collaborative_window": "removed: items within 5 places of a training sequence co-occur",
        "spatial_neighbours": "removed: a place is joined to its 10 nearest places",
        "geographic_frequencies": "removed: there are 16 frequencies",
        "famae_field_weights": "removed: every field has the same weight, as in the paper",
    }

    catalog: str = option("Directory written by `llmrec prepare`.")
    views: list[str] = option(
        f"Views to build: {', '.join(VIEW_NAMES)}, and the names given by `external`.", ["text", "collaborative"]
    )
    text_encoder: str | None = option(
        "sentence-transformers model (Hub id or path) for the view 'text', or 'tfidf' for TF-IDF with truncated SVD.",
        None,
    )
    text_template: str = option("Template of the text to embed, with columns of items.parquet in braces.", "{text}")
    # That of LightGCN's paper (2002.02126); SASRec's (1808.09781) is 50.
    collaborative_dim: int = option("Dimension of the views collaborative, sasrec, lightgcn and spatial.", 64, least=1)
    # ReSID (2602.02338).
    famae_dim: int = option(
        "Dimension of each part of the view famae. The item itself is one part, and so is each field.", 128, least=1
    )
    # The content of the files, and not their paths, belongs to the run's identity: they are inputs.
    external: list[str] = option(
        "Views made elsewhere, each given as name=path: .parquet with item_id and vector, or .npy in catalogue order.",
        [],
        identity=False,
    )
    append: str | None = option(
        "Views of the catalogue before `prepare --append-to` added items. Items that it had keep their vectors. New "
        "ones get theirs by the encoder of `text`, by `geographic` or from `external`; other views lack them.",
        None,
    )
    batch_size: int = option("Number of texts per batch of the text encoder.", 128, identity=False, least=1)
    device: str = option(
        "Device of the text encoder, sasrec, lightgcn and famae: auto, cpu, cuda.", "auto", identity=False
    )
