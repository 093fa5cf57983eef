"""The checkpoint that evaluate and ensemble are given: what is known and refused before its weights are read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmrec.configs.recommend import RankBy
from llmrec.data.catalog import Catalog
from llmrec.data.examples import Examples
from llmrec.evaluation.overlap import Overlap
from llmrec.evaluation.protocol import Batch, Rank
from llmrec.evaluation.ranking import UNFILLED, Ranking
from llmrec.runtime import processes
from llmrec.runtime.console import say
from llmrec.runtime.manifest import (
    MANIFEST,
    PARTIAL,
    JsonObject,
    content_hash,
    read_manifest,
    verify,
    write_json,
)
from llmrec.sid.catalogs.catalog_record import CatalogRecord
from llmrec.sid.catalogs.given_catalog import APPEND_TO, match_catalog
from llmrec.sid.table import SidTable

if TYPE_CHECKING:
    from llmrec.decoding.grounding.ranker import GroundedRanker
    from llmrec.decoding.ranker import SidRanker

HASH = "catalog_sha256"  # among the details of llmrec.json
TRAINING_LOG = "training_log.json"


def load_table(model: str) -> SidTable:
    """Read the SID table of a checkpoint, whose files are checked first.

    Raises:
        ValueError: If `model` is no directory, is unfinished or was changed, or its table cannot be read.
    """
    if not Path(model).is_dir():
        if Path(f"{model}{PARTIAL}").is_dir():
            read_manifest(model)  # raises an error that says that it is unfinished
        raise ValueError(
            f"model '{model}' is not a directory; give the output of `llmrec sft` or `llmrec extend`, "
            "or download a Hub model first with `hf download`."
        )
    if (Path(model) / MANIFEST).is_file():
        verify(model)  # before any file of it is read
    return SidTable.load(model)


def is_own(catalog: Catalog, table: SidTable, details: JsonObject) -> bool:
    """True if a checkpoint was made on this catalogue, as far as it says; one that names none needs the same items."""
    return table.item_ids == catalog.item_ids and details.get(HASH) in (None, content_hash(catalog.source))


def check_own(model: str, catalog: Catalog) -> None:
    """Refuse a checkpoint that was made on another catalogue, whose training may have read what is tested here.

    Raises:
        ValueError: If it was, or it cannot be used.
    """
    from llmrec.model.checkpoint import SidConfig  # transformers, whose import takes seconds

    table = load_table(model)
    if not is_own(catalog, table, SidConfig.load(model)[2]):
        raise ValueError(
            f"model '{model}' has SIDs for {table.num_items} items and was made on another catalogue, or another split "
            f"of it, than '{catalog.source}' with {catalog.num_items} items. So it may have learned the targets that "
            "are tested here. Give the catalogue that it was made on, or run `llmrec embed`, `tokenize`, `extend` and "
            "`sft` on this one."
        )


def find_overlap(model: str, table: SidTable, catalog: Catalog, split: str) -> Overlap | None:
    """Find by what a checkpoint can be tested on a catalogue; None if it is its own, where all can.

    Args:
        model: Directory of the checkpoint.
        table: Its SID table.
        catalog: The catalogue.
        split: The examples to evaluate, valid or test.

    Raises:
        ValueError: If the catalogue is of other items, nothing tells what the checkpoint was trained on, or no example
            is left.
    """
    from llmrec.model.checkpoint import SidConfig

    _, _, details = SidConfig.load(model)
    if is_own(catalog, table, details):
        return None
    given = match_catalog(catalog, table, CatalogRecord.load(model, details, table.num_items), details)
    named = list(dict.fromkeys(catalogs_named_by(model, catalog.source)))
    own = next((path for path in named if content_hash(path) == details.get(HASH)), None)
    if own is None:
        tried = f" (tried: {', '.join(named)})" if named else ""
        raise ValueError(
            f"model '{model}' was not made on '{catalog.source}', and the catalogue that it was made on is not here "
            f"unchanged{tried}. So nothing tells which targets it has learned. Put that catalogue back, or evaluate on "
            "it."
        )
    return Overlap.find(catalog, given, table, Catalog.load(own), split)


def shared_ranking(ranker: SidRanker, overlap: Overlap, num_beams: int) -> Rank:
    """Ranking of the items that a checkpoint and a catalogue have in common, by item rows of the catalogue."""
    from llmrec.decoding.trie.allow_list import AllowList

    rows, num_known = overlap.rows, ranker.table.num_items
    shared = None if len(rows) == num_known else AllowList(ranker.trie, rows)
    row_here = np.full(num_known + 1, UNFILLED)  # the last one stands for UNFILLED, as a place from the end
    row_here[rows] = np.arange(len(rows))

    def rank(batches: Iterable[Batch], k: int) -> Iterator[Ranking]:
        asked = (
            (
                [rows[history] for history in histories],
                None if exclude is None else [rows[items] for items in exclude],
                None if shared is None else [shared] * len(histories),
            )
            for histories, exclude in batches
        )
        for ranking in ranker.rank_batches(asked, k, num_beams):
            yield replace(ranking, items=row_here[ranking.items])

    return rank


def catalogs_named_by(*directories: str) -> Iterator[str]:
    """Catalogues that directories are or were made on, as their manifests name them, and that are still there."""
    for directory in directories:
        if not (Path(directory) / MANIFEST).is_file():
            continue
        manifest = read_manifest(directory)
        if manifest["stage"] == "prepare":
            yield directory
        named = manifest.get("inputs", {})
        yield from catalogs_named_by(*(named[key] for key in (APPEND_TO, "catalog", "sid", "model") if key in named))


def head_of(model: str | None) -> str | None:
    """Kind of the head that a checkpoint answers by; None without one, or without a model."""
    if model is None:
        return None
    from llmrec.model.checkpoint import SidConfig

    head = SidConfig.load(model)[0].vocabulary.head
    return None if head is None else head.kind


def check_rank(model: str, rank: RankBy) -> None:
    """Refuse scores to rank by that a checkpoint does not have, before its weights are read.

    Raises:
        ValueError: If it lacks them.
    """
    from llmrec.model.checkpoint import SidConfig

    SidConfig.load(model)[0].vocabulary.check_rank(rank)


def choose_power(ranker: GroundedRanker, valid: Examples | None, batch_size: int, path: Path) -> None:
    """Choose how much popularity counts beside the distance of titles.

    Args:
        ranker: Ranker of the checkpoint, whose power is set.
        valid: Valid examples of the checkpoint's own catalogue; None if another one is evaluated.
        batch_size: Number of examples of a batch.
        path: File that the power is written to.
    """
    if valid is None:
        say("evaluate: popularity does not count, as its power is chosen on valid examples of the own catalogue.")
        return
    power = ranker.choose_power(valid, batch_size)
    say(f"evaluate: popularity counts with the power {power:g}, which ranks the valid examples best.")
    if processes.is_main():
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"popularity_power": power})


def trained(model: str) -> JsonObject | None:
    """The stage, config and input hashes that made the checkpoint; None for a copy without a manifest."""
    return read_manifest(model)["identity"] if (Path(model) / MANIFEST).is_file() else None


def training_log(model: str | None) -> list[JsonObject]:
    """The log of the training of a checkpoint, step by step; empty if it has none, or there is no model."""
    path = Path(model or "") / TRAINING_LOG
    return json.loads(path.read_text(encoding="utf-8")) if model and path.is_file() else []
