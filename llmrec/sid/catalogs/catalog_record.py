"""CatalogRecord: what a checkpoint keeps of the catalogue that it was trained on, item by item.

A hash of each item's title tells whether another catalogue has the same items (`given_catalog.py`), and the number of
its training interactions ranks items for users without a history. The titles themselves are not kept.

Shapes: N items.
"""

from __future__ import annotations

import hashlib
import unicodedata
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data import columns
from llmrec.data.catalog import Catalog
from llmrec.data.item_ids import BLOCK, UNKNOWN_ROW, ItemIds, RowOf
from llmrec.runtime.manifest import JsonObject, sha256_file

FILE = "catalog_record.parquet"
KEY = "catalog_record_sha256"  # among the details of llmrec.json
TITLE_HASH, TRAIN_COUNT = "title_hash", "train_count"
NOTHING_KNOWN = 0


class CatalogRecord:
    """Hashes of titles and counts of training interactions, in the order of a SID table.

    Args:
        title_hashes: (N,) uint64; 0 for an item of which neither title nor text is known.
        train_counts: (N,) int64.
    """

    def __init__(self, title_hashes: np.ndarray, train_counts: np.ndarray):
        self.title_hashes, self.train_counts = title_hashes, train_counts

    @classmethod
    def of(cls, catalog: Catalog) -> CatalogRecord:
        """Make the record of a catalogue.

        >>> items = pa.table({"item_id": ["a", "b"], "title": ["Saw", None]})
        >>> split = {"user_id": ["u"], "split": ["train"], "history": [["a", "b"]], "target": ["a"]}
        >>> record = CatalogRecord.of(Catalog(items, pa.table(split)))
        >>> record.title_hashes > 0, record.train_counts
        (array([ True, False]), array([2, 1]))
        """
        return cls(title_hashes(catalog), catalog.training_counts)

    def grown(self, row_of: RowOf, item_ids: ItemIds, catalog: Catalog | None) -> CatalogRecord:
        """Make the record of a table that items were appended to; the new ones have no training interactions.

        Args:
            row_of: Item row of each item of this record.
            item_ids: Items of the new table.
            catalog: Has their titles, if it is known.
        """
        hashes = np.zeros(len(item_ids), np.uint64) if catalog is None else title_hashes(catalog, item_ids)
        counts = np.zeros(len(item_ids), np.int64)
        old = row_of.rows(item_ids)
        known = old != UNKNOWN_ROW
        hashes[known], counts[known] = self.title_hashes[old[known]], self.train_counts[old[known]]
        return CatalogRecord(hashes, counts)

    @cached_property
    def by_popularity(self) -> np.ndarray:
        """(N,) item rows, most training interactions first; ties in the order of the catalogue."""
        return np.argsort(-self.train_counts, kind="stable")

    @cached_property
    def log_shares(self) -> np.ndarray:
        """(N,) log of each item's share of the training interactions, one added to each so that none is 0."""
        return np.log((self.train_counts + 1) / (self.train_counts.sum() + len(self.train_counts)))

    def save(self, directory: str | Path) -> JsonObject:
        """Write the record beside the weights.

        Returns:
            Entry of the details of llmrec.json, which binds the file.
        """
        path = Path(directory) / FILE
        pq.write_table(pa.table({TITLE_HASH: self.title_hashes, TRAIN_COUNT: self.train_counts}), path)
        return {KEY: sha256_file(path)}

    @classmethod
    def load(cls, directory: str | Path, details: JsonObject, num_items: int) -> CatalogRecord | None:
        """Read the record of a checkpoint; None if it was written without one.

        Args:
            directory: Directory of the checkpoint.
            details: Of its llmrec.json.
            num_items: Number of items of its SID table.

        Raises:
            ValueError: If the file is absent, or not the one that was written.
        """
        if KEY not in details:
            return None
        path = Path(directory) / FILE
        if not path.is_file() or sha256_file(path) != details[KEY]:
            problem = "was changed" if path.is_file() else "is missing"
            raise ValueError(f"{path} {problem} since the checkpoint was written; restore it, or get it again.")
        table = pq.read_table(path)
        if table.num_rows != num_items:
            raise ValueError(f"{path} is of {table.num_rows} items, the SID table of {num_items}; get both again.")
        return cls(*(table[name].to_numpy() for name in (TITLE_HASH, TRAIN_COUNT)))


def title_hashes(catalog: Catalog, item_ids: ItemIds | None = None) -> np.ndarray:
    """(N,) uint64 hashes of titles, of all items or of those given; 0 for an item that is unknown or has no title."""
    has_text = columns.TEXT in catalog.items.column_names
    hashes = []
    for first in range(0, catalog.num_items, BLOCK):  # never all texts as Python's own
        titles = catalog.titles[first : first + BLOCK]
        texts = catalog.items[columns.TEXT].slice(first, BLOCK).to_pylist() if has_text else titles
        known = (str(title or text or "") for title, text in zip(titles, texts, strict=True))
        hashes.append(np.fromiter(map(title_hash, known), np.uint64, len(titles)))
    found = np.concatenate([np.empty(0, np.uint64), *hashes])
    if item_ids is None:
        return found
    rows = catalog.row_of.rows(item_ids)
    return np.where(rows == UNKNOWN_ROW, np.uint64(NOTHING_KNOWN), found[rows])


def title_hash(title: str) -> int:
    """Hash of the letters and digits of a title, of which case, accents' encoding, blanks and signs are no part.

    >>> title_hash("Jaws (1975)") == title_hash("JAWS, 1975") != title_hash("Jaws 2")
    True
    """
    letters = "".join(filter(str.isalnum, unicodedata.normalize("NFKC", title).casefold())) or title.strip()
    if not letters:
        return NOTHING_KNOWN
    digest = hashlib.blake2b(letters.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1
