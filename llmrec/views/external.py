"""External view: vectors that were made elsewhere, of images or of anything, read from a file.

llmrec runs no image model: users with pictures run an encoder such as CLIP themselves and give its vectors. There are
two formats, neither of which can contain code: .parquet with `item_id` and `vector`, in any order and for any of the
items, and .npy with one vector per item in the order of items.parquet. A file in the format of llmrec's own views is
put into the directory as it is (docs/embed.md).

Shapes: R rows of the file, N items, D dimension.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data import columns
from llmrec.data.catalog import Catalog
from llmrec.runtime.console import say
from llmrec.runtime.manifest import sha256_file
from llmrec.runtime.parquet import parquet_table
from llmrec.runtime.reading import reading
from llmrec.views import VectorError, View, describe, scatter

FORMATS = (".parquet", ".npy")
VECTOR = "vector"
UNKNOWN = -1  # item row of what is not in the catalogue


def external_view(name: str, path: str | Path, catalog: Catalog) -> View:
    """Read the vectors of a file into catalogue order; items without a vector are missing.

    Args:
        name: Name of the view.
        path: .parquet with `item_id` (text or integers) and `vector` (lists of D numbers; null means missing), or .npy
            (N, D) float in the order of items.parquet.
        catalog: Catalogue of the items.

    Raises:
        ValueError: If the file is absent or unreadable, repeats or lacks ids, has no item of the catalogue, has vectors
            of different lengths, has a number of vectors that is not N, or has a vector that is not finite or longer
            than 1e15.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"external '{name}': '{path}' is neither {' nor '.join(FORMATS)}; convert it to one of them.")
    if not path.is_file():
        raise ValueError(f"external '{name}': '{path}' does not exist; check the path.")
    rows, vectors = _read_parquet(path, catalog) if path.suffix == ".parquet" else _read_npy(path, catalog)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        vectors = vectors.astype(np.float32)
    facts = describe(name, catalog, encoder="external", file=path.name, file_sha256=sha256_file(path))
    try:
        return scatter(vectors, rows, catalog.num_items, facts)
    except VectorError as error:
        raise ValueError(
            f"{path} has {error.problem}, first of item_id '{catalog.item_ids[error.row]}'. Make them again, or leave "
            "these items out of a .parquet: an item without a row is missing."
        ) from error


def _read_npy(path: Path, catalog: Catalog) -> tuple[np.ndarray, np.ndarray]:
    """(N,) item rows and their (N, D) vectors."""
    with reading(path, "a .npy of numbers", "save it again"):
        vectors = np.load(path, allow_pickle=False)
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype.kind != "f":
        raise ValueError(f"{path} holds {vectors.dtype} {vectors.shape}; floats of shape (num_items, dim) are needed.")
    if len(vectors) != catalog.num_items:
        raise ValueError(
            f"{path} has {len(vectors)} vectors, the catalogue '{catalog.source}' has {catalog.num_items} items; give "
            f"one for each in the order of items.parquet, or a .parquet with '{columns.ITEM_ID}' and '{VECTOR}'."
        )
    return np.arange(len(vectors)), vectors


def _read_parquet(path: Path, catalog: Catalog) -> tuple[np.ndarray, np.ndarray]:
    """Item rows of the catalogue's items that have a vector in the file, and these vectors."""
    table = _open(path)
    ids, lists = table[columns.ITEM_ID].cast(pa.string()).to_pylist(), table[VECTOR]
    repeated = [item_id for item_id, count in Counter(ids).items() if count > 1]
    if repeated or None in ids:
        problem = f"repeats {len(repeated)} item_ids, first {repeated[:3]}" if repeated else "has a row without item_id"
        raise ValueError(f"{path} {problem}; give every item one row, or none.")
    lengths = pc.unique(pc.list_value_length(lists).drop_null()).sort().to_pylist()
    if len(lengths) > 1 or lengths == [0]:
        raise ValueError(
            f"{path} has vectors of {lengths[:5]} numbers; give every item equally many, and one at least."
        )
    rows = np.array([catalog.row_of.get(item_id, UNKNOWN) for item_id in ids], dtype=np.int64)
    unknown = [item_id for item_id, row in zip(ids, rows, strict=True) if row == UNKNOWN]
    kept = (rows != UNKNOWN) & lists.is_valid().to_numpy()
    if not kept.any():
        raise ValueError(
            f"{path} has no vector of any item of '{catalog.source}' ({len(ids)} rows, first item_ids {ids[:3]}; the "
            f"catalogue's are like {catalog.item_ids[:3]}); give the item_ids of items.parquet."
        )
    if unknown:
        say(f"{path}: {len(unknown)} of {len(ids)} items are not in the catalogue and left out, first {unknown[:3]}.")
    vectors = pc.list_flatten(lists.filter(pa.array(kept))).to_numpy()
    return rows[kept], vectors.reshape(kept.sum(), lengths[0])


def _open(path: Path) -> pa.Table:
    table = parquet_table(path, "write it again")
    lacking = [name for name in (columns.ITEM_ID, VECTOR) if name not in table.column_names]
    if lacking:
        raise ValueError(f"{path} lacks the columns {lacking}; it has {table.column_names}. Rename yours.")
    ids, lists = table.schema.field(columns.ITEM_ID).type, table.schema.field(VECTOR).type
    is_list = pa.types.is_list(lists) or pa.types.is_large_list(lists) or pa.types.is_fixed_size_list(lists)
    if not (is_list and pa.types.is_floating(lists.value_type)):
        raise ValueError(f"{path}: column {VECTOR} holds {lists}; lists of floats are needed, so convert it.")
    if not (pa.types.is_integer(ids) or pa.types.is_string(ids) or pa.types.is_large_string(ids)):
        raise ValueError(f"{path}: column {columns.ITEM_ID} holds {ids}; ids are text or integers, so convert it.")
    return table
