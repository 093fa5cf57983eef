"""Options of `llmrec embed`."""

from __future__ import annotations

from dataclasses import dataclass

from llmrec.configs.options import StageConfig, option


@dataclass(kw_only=True)
class EmbedConfig(StageConfig):
    """Turn items into vectors, one file per view."""

    catalog: str = option("Directory written by `llmrec prepare`.")
    views: list[str] = option(
        "Views to build: text, collaborative, sasrec, lightgcn, famae, spatial, geographic, and the names given by "
        "`external`.",
        ["text", "collaborative"],
    )
    text_encoder: str | None = option(
        "sentence-transformers model (Hub id or path), or 'tfidf' for TF-IDF with truncated SVD.", None
    )
    text_template: str = option("What is embedded, from the columns of items.parquet.", "{text}")
    text_dim: int = option("Dimension of TF-IDF vectors after SVD.", 128, least=1)
    # That of LightGCN's paper (2002.02126); SASRec's (1808.09781) is 50.
    collaborative_dim: int = option("Dimension of collaborative, sasrec, lightgcn and spatial vectors.", 64, least=1)
    collaborative_window: int = option(
        "Items on either side that count as co-occurring in a training sequence.", 5, least=1
    )
    spatial_neighbours: int = option("Nearest places that an item is joined to in the graph of spatial.", 10, least=1)
    # 2^15 waves per turn of the globe: the shortest is 1.2 km.
    geographic_frequencies: int = option("Frequencies of latitude and longitude in geographic vectors.", 16, least=1)
    # ReSID (2602.02338).
    famae_dim: int = option("Dimension of each field's part of famae vectors, the item's own included.", 128, least=1)
    famae_field_weights: list[str] = option(
        "Weights of parts of famae vectors, each as field=weight, the item's own part being item_id; 1 when left out.",
        [],
    )
    # The content of the files, and not their paths, belongs to the run's identity: they are inputs.
    external: list[str] = option(
        "Views made elsewhere, each as name=path: .parquet with item_id and vector, or .npy in catalogue order.",
        [],
        identity=False,
    )
    batch_size: int = option("Texts per encoder batch.", 128, identity=False, least=1)
    device: str = option(
        "Device of the text encoder, sasrec, lightgcn and famae: auto, cpu, cuda.", "auto", identity=False
    )
