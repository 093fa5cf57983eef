"""The catalogue that a checkpoint is given when it answers: of the same items, or refused; it says what may be shown.

item_ids of two catalogues may overlap by chance: rows numbered from 1 do. So ids prove nothing. A catalogue is accepted
if it is the one that the checkpoint was made on or was appended to that one (by hashes of the files), or if its items
have the titles that the checkpoint has seen (by the hash of each title). Then items may be gone, others new, and a few
titles corrected.

Shapes: N items of the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.data.item_ids import UNKNOWN_ROW
from llmrec.data.requests.item_lists import shown
from llmrec.runtime.manifest import MANIFEST, JsonObject, content_hash, read_manifest
from llmrec.sid.catalogs.catalog_record import NOTHING_KNOWN, CatalogRecord, title_hashes
from llmrec.sid.table import SidTable

APPEND_TO = "append_to"  # input of `llmrec prepare`
LEAST_AGREEMENT = 0.9  # of the items that both have must have the title that the checkpoint was trained on


@dataclass(frozen=True)
class GivenCatalog:
    """Items that a catalogue and a checkpoint have in common, and those that differ.

    Attributes:
        source: Directory of the catalogue.
        is_shown: (N,) bool, items of the checkpoint that the catalogue has.
        gone: item_ids that the catalogue lacks; they are not shown.
        new: item_ids of the catalogue that the checkpoint does not know.
        retitled: item_ids whose title is another one now.
        record: Record of the catalogue, if it is the one that the checkpoint was trained on, which has none itself.
    """

    source: str
    is_shown: np.ndarray
    gone: list[str]
    new: list[str]
    retitled: list[str]
    record: CatalogRecord | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Number of items shown, gone, new and retitled."""
        lists = {"gone": self.gone, "new": self.new, "retitled": self.retitled}
        return {"shown": int(self.is_shown.sum()), **{name: len(items) for name, items in lists.items()}}

    def notes(self) -> list[str]:
        """Sentences about the items that differ; none if the catalogue is the checkpoint's own."""
        notes = []
        if self.gone:
            notes.append(f"{_items(self.gone)} not in catalogue '{self.source}', so never recommended")
        if self.new:
            notes.append(
                f"{_items(self.new)} in catalogue '{self.source}', but unknown to the model until appended "
                "(`llmrec tokenize --append`, `llmrec extend`)"
            )
        if self.retitled:
            notes.append(f"{_items(self.retitled)} under another title than the model was trained on")
        return notes


def _items(item_ids: list[str]) -> str:
    return f"{len(item_ids)} item{'s' if len(item_ids) > 1 else ''} (first {shown(item_ids[0])}):"


def match_catalog(catalog: Catalog, table: SidTable, record: CatalogRecord | None, details: JsonObject) -> GivenCatalog:
    """Find what a catalogue and a checkpoint have in common.

    Args:
        catalog: The catalogue.
        table: SID table of the checkpoint.
        record: Record of the catalogue that the checkpoint was trained on; None if it has none.
        details: Of its llmrec.json.

    Raises:
        ValueError: If they have no item in common, or the catalogue is not of the checkpoint's items, or nothing tells
            whether it is.
    """
    is_shown = catalog.row_of.rows(table.item_ids) != UNKNOWN_ROW
    if not is_shown.any():
        raise ValueError(
            f"catalogue '{catalog.source}' has none of the {table.num_items} items that the model knows, such as "
            f"{shown(table.item_ids[0])}. Give the catalogue that the model was trained on, or one made from it."
        )
    own_hash = details.get("catalog_sha256")
    lineage = lineage_of(catalog.source)
    retitled = [] if own_hash in lineage else find_retitled(catalog, table, record)
    gone = table.item_ids.of(np.flatnonzero(~is_shown))
    new = catalog.item_ids.of(np.flatnonzero(table.row_of.rows(catalog.item_ids) == UNKNOWN_ROW))
    is_own = record is None and own_hash in lineage[:1] and catalog.item_ids == table.item_ids
    own_record = CatalogRecord.of(catalog) if is_own else None
    return GivenCatalog(catalog.source, is_shown, gone, new, retitled, own_record)


def lineage_of(source: str | Path) -> list[str]:
    """Hash of a catalogue, and of those that it was appended to, as far as they are here and unchanged."""
    if not (Path(source) / MANIFEST).is_file():
        return []
    manifest = read_manifest(source)
    older, hash_then = manifest.get("inputs", {}).get(APPEND_TO), manifest["identity"].get("inputs", {}).get(APPEND_TO)
    if older is None or hash_then is None:
        return [content_hash(source)]
    before = lineage_of(older)
    return [content_hash(source), *(before if before[:1] == [hash_then] else [hash_then])]


def find_retitled(catalog: Catalog, table: SidTable, record: CatalogRecord | None) -> list[str]:
    """Find the item_ids that a catalogue has under another title than the checkpoint was trained on.

    Raises:
        ValueError: If more than a tenth of them are, or nothing tells.
    """
    remedy = "Give the catalogue that the model was trained on, or one made from it (docs/recommend.md)."
    if record is None:
        raise ValueError(
            f"catalogue '{catalog.source}' is not the one that the model was trained on, and the checkpoint keeps no "
            f"titles' hashes to tell whether it is of the same items: an earlier llmrec wrote it. {remedy}"
        )
    theirs, ours = title_hashes(catalog, table.item_ids), record.title_hashes
    is_comparable = (theirs != NOTHING_KNOWN) & (ours != NOTHING_KNOWN)
    if not is_comparable.any():
        raise ValueError(
            f"catalogue '{catalog.source}' is not the one that the model was trained on, and without titles nothing "
            f"tells whether it is of the same items. {remedy}"
        )
    rows = np.flatnonzero(is_comparable & (theirs != ours))
    same = is_comparable.sum() - len(rows)
    if same < LEAST_AGREEMENT * is_comparable.sum():
        first = table.item_ids[rows[0]]
        raise ValueError(
            f"catalogue '{catalog.source}' is of other items than the model knows: of {is_comparable.sum()} item_ids "
            f"that both have, {same} have the title that the model was trained on ({LEAST_AGREEMENT:.0%} are needed); "
            f"{shown(first)} is {shown(catalog.titles[catalog.row_of[first]])} here. {remedy}"
        )
    return table.item_ids.of(rows)
