"""Fuzzed tables that stages read beside the log: SIDs, views, scores, preferences and catalogues, made elsewhere.

Such a file has no manifest that would tell damage, so each value has to be checked by the reader. The judges look at
what was read: items of the catalogue, finite numbers, codes within their levels, and the values of the file.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from llmrec.baselines.scores import read_scores
from llmrec.configs import PrepareConfig
from llmrec.data.catalog import Catalog
from llmrec.decoding.trie.trie import SidTrie
from llmrec.runtime.manifest import adopt
from llmrec.sid.table import SidTable
from llmrec.stages import prepare
from llmrec.training.dpo.preference_file import read_preferences
from llmrec.views import ItemViews
from llmrec.views.external import external_view
from tests.faults.fuzz.files import WEIRD, damage
from tests.faults.fuzz.judge import Case, Wrong

CELLS: tuple[object, ...] = (None, 0, -1, 1, 2**31, 2**62, -(2**63), 1.5, math.nan, math.inf, -math.inf, 1e300, "", "x",
                             True, [], [1], [None], ["x"], {"a": 1}, b"x", *WEIRD[:20])  # fmt: skip
TYPES = (pa.int8(), pa.int32(), pa.uint64(), pa.float32(), pa.float16(), pa.string(), pa.large_string(), pa.bool_(),
         pa.decimal128(20, 2), pa.timestamp("us"), pa.date32(), pa.binary(), pa.null(), pa.list_(pa.int64()),
         pa.list_(pa.float64()), pa.list_(pa.string()), pa.dictionary(pa.int32(), pa.string()))  # fmt: skip


@dataclass
class Shared:
    """What all cases read.

    Attributes:
        catalog: A small catalogue.
        table: Semantic IDs of its items.
    """

    catalog: Catalog
    table: SidTable


def prepare_all(directory: Path) -> Shared:
    """Make the catalogue and its semantic IDs."""
    out = directory / "catalog"
    prepare.main(PrepareConfig(out=str(out), dataset="simulated:20x12", k_core=2))
    catalog = Catalog.load(out)
    n = catalog.num_items
    return Shared(catalog, SidTable(catalog.item_ids, np.stack([np.arange(n) // 4, np.arange(n) % 4], axis=1)))


def case(seed: int, directory: Path, shared: Shared) -> Case:
    """One fuzzed table."""
    rng = random.Random(seed)
    folder = directory / "tables"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return rng.choice((sids, view, views, scores, preferences, catalogue))(rng, folder, shared, f"seed {seed}")


def written(rng: random.Random, table: pa.Table, path: Path) -> tuple[int, list[str]]:
    """Write a table with some changes; their number, and what they were."""
    count, told = rng.choices((0, 1, 2, 3), (25, 60, 10, 5))[0], []
    of_bytes = count if rng.random() < 0.15 else 0
    for _ in range(count - of_bytes):
        table = change(rng, table, told)
    try:
        pq.write_table(table, path)
    except pa.ArrowException:  # a type that parquet does not have
        pq.write_table(table.slice(0, 0), path)
    for _ in range(of_bytes):
        path.write_bytes(damage(rng, path.read_bytes()))
        told.append("bytes")
    return count, told


def change(rng: random.Random, table: pa.Table, told: list[str]) -> pa.Table:
    """Change a cell, a column or the rows of a table."""
    what = rng.choice(("cell", "cell", "cell", "type", "drop", "rename", "add", "rows", "rows", "metadata"))
    if not table.num_columns:
        return table
    at = rng.randrange(table.num_columns)
    name = table.column_names[at]
    told.append(f"{what} {name}")
    if what == "cell" and table.num_rows:
        values, row = table.column(at).to_pylist(), rng.randrange(table.num_rows)
        values[row] = cell_of(rng, values, row)
        told[-1] += f" row {row}: {values[row]!r}"
        column = array_of(values, table.schema.field(at).type)
        return table if column is None else table.set_column(at, name, column)
    if what == "type":
        kind = rng.choice(TYPES)
        told[-1] += f" {kind}"
        return table.set_column(at, name, cast(table.column(at), kind))
    if what == "drop":
        return table.remove_column(at)
    if what == "rename":
        return table.rename_columns([*table.column_names[:at], rng.choice(("x", "item_id", "code_9", name.upper())),
                                     *table.column_names[at + 1 :]])  # fmt: skip
    if what == "add":
        added = rng.choice(("code_7", "x", "alias", "oracle"))
        return table.append_column(added, pa.array([rng.choice((0, 1, -1))] * table.num_rows))
    if what == "metadata":
        sizes = rng.choice((b"", b"4", b"x,y", b"-1,4", b"99999999999,4", b"1,1", b"4,4,4"))
        return table.replace_schema_metadata({b"level_sizes": sizes})
    rows = list(range(table.num_rows))
    rng.choice(
        (
            rows.reverse,
            lambda: rng.shuffle(rows),
            rows.clear,
            lambda: rows.extend(rows[:1]),
            lambda: rows.__delitem__(slice(1)),
        )
    )()
    return table.take(pa.array(rows, pa.int64()))


def cell_of(rng: random.Random, values: list, row: int) -> object:
    """A value that is odd, or from another row, or one entry of a list changed."""
    value = values[row]
    if isinstance(value, list) and value and rng.random() < 0.6:
        at = rng.randrange(len(value))
        return [*value[:at], rng.choice((*CELLS[:12], value[0])), *value[at + rng.randint(0, 1) :]]
    return rng.choice((*CELLS, rng.choice(values), rng.choice(values)))


def array_of(values: list, kind: pa.DataType) -> pa.Array | None:
    """The values as an array of a type, or of any; None if there is none that holds them."""
    for each in (kind, None):
        try:
            return pa.array(values, each)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            continue
    return None


def cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """A column of another type; empty cells where its values have none."""
    try:
        return column.cast(kind, safe=False)
    except pa.ArrowException:
        return pa.nulls(len(column), kind)


def sids(rng: random.Random, folder: Path, shared: Shared, shown: str) -> Case:
    """sid_table.parquet, and its trie."""
    shared.table.save(folder)
    path = folder / "sid_table.parquet"
    count, told = written(rng, pq.read_table(path), path)

    def run() -> None:
        table = SidTable.load(folder)
        if not all(isinstance(item_id, str) for item_id in table.item_ids):
            raise Wrong(f"item_ids that are no text: {[i for i in table.item_ids if not isinstance(i, str)][:3]}")
        leaves = {tuple(code for code in codes if code >= 0) for codes in table.all_codes.tolist()}
        if any(leaf[:end] in leaves for leaf in leaves for end in range(len(leaf))):
            raise Wrong("a SID is a prefix of another")
        if (table.all_codes >= np.asarray(table.level_sizes)).any() or (table.all_codes < -1).any():
            raise Wrong("codes outside their level")
        rows = pq.read_table(path)
        if len(table.all_codes) != rows.num_rows or set(table.item_ids) != set(rows["item_id"].to_pylist()):
            raise Wrong("SIDs or items are lost")
        if max(table.level_sizes) < 10**6:
            SidTrie(table)

    return Case(count, run, f"{shown} sids {told}")


def view(rng: random.Random, folder: Path, shared: Shared, shown: str) -> Case:
    """A file of vectors for `embed --external`."""
    n = shared.catalog.num_items
    vectors = np.random.default_rng(rng.randrange(100)).normal(size=(n, 3)).astype(rng.choice((np.float32, np.float64)))
    if rng.random() < 0.4:
        path, count = folder / "v.npy", rng.choices((0, 1, 2), (25, 65, 10))[0]
        for _ in range(count):
            vectors = odd_vectors(rng, vectors)
        np.save(path, vectors, allow_pickle=vectors.dtype == object)
        if count and rng.random() < 0.3:
            path.write_bytes(damage(rng, path.read_bytes()))
        told = [f"npy {vectors.dtype} {vectors.shape}"]
    else:
        path = folder / "v.parquet"
        table = pa.table({"item_id": shared.catalog.item_ids, "vector": vectors.tolist()})
        count, told = written(rng, table, path)

    def run() -> None:
        check_view(external_view("v", path, shared.catalog), shared.catalog)

    return Case(count, run, f"{shown} view {told}")


def odd_vectors(rng: random.Random, vectors: np.ndarray) -> np.ndarray:
    """Vectors of another type or shape, or with an odd number."""
    vectors = vectors.copy()
    what = rng.randrange(8)
    if what == 0 and vectors.size and vectors.dtype.kind == "f":
        vectors.flat[rng.randrange(vectors.size)] = rng.choice((math.nan, math.inf, 1e30, -1e38, 0.0))
    kinds = (None, np.float16, np.int64, np.complex64, np.bool_, object)
    if 0 < what < len(kinds):
        with np.errstate(all="ignore"):
            return vectors.astype(kinds[what])
    return (vectors, vectors[:-1], vectors.reshape(-1))[what - 5] if what > 5 else vectors


def check_view(found: Any, catalog: Catalog) -> None:
    """Check the shape and the numbers of a view."""
    if found.vectors.shape[0] != catalog.num_items or found.vectors.dtype != np.float32:
        raise Wrong(f"a view of {found.vectors.dtype} {found.vectors.shape}")
    if not np.isfinite(found.vectors).all() or found.vectors[found.missing].any():
        raise Wrong("a view with numbers that are none, or vectors of missing items")


def views(rng: random.Random, folder: Path, shared: Shared, shown: str) -> Case:
    """A directory of views in safetensors that another tool made."""
    n = shared.catalog.num_items
    tensors = {"vectors": np.random.default_rng(rng.randrange(100)).normal(size=(n, 3)).astype(np.float32),
               "missing": np.arange(n) < rng.randrange(2)}  # fmt: skip
    tensors["vectors"][tensors["missing"]] = 0
    count, told = rng.choices((0, 1, 2), (25, 65, 10))[0], []
    of_bytes = rng.random() < 0.3
    for _ in range(0 if of_bytes else count):
        name = rng.choice(("vectors", "missing", "name"))
        told.append(name)
        if name == "name":
            tensors["vector"] = tensors.pop(rng.choice([*tensors]))
        elif name in tensors:
            changed = odd_vectors(rng, tensors[name])
            tensors[name] = np.ascontiguousarray(changed) if changed.dtype.kind in "fib" else tensors[name] * 0
    save_file(tensors, folder / "made.safetensors")
    for _ in range(count if of_bytes else 0):
        (folder / "made.safetensors").write_bytes(damage(rng, (folder / "made.safetensors").read_bytes()))

    def run() -> None:
        for found in ItemViews.load(folder, shared.catalog).values():
            check_view(found, shared.catalog)

    return Case(count, run, f"{shown} views {told} bytes {of_bytes}")


def scores(rng: random.Random, folder: Path, shared: Shared, shown: str) -> Case:
    """A file of scores for `teach --ranker scores`."""
    train = shared.catalog.train
    lines = [
        {"user_id": train.user_ids[i], "position": rng.randint(1, 2), "item_id": item_id, "score": rng.gauss(0, 1)}
        for i in rng.sample(range(len(train)), 3)
        for item_id in rng.sample(shared.catalog.item_ids, 3)
    ]
    lines = list({(line["user_id"], line["item_id"]): line for line in lines}.values())
    count, told = written(rng, pa.Table.from_pylist(lines), folder / "s.parquet")

    def run() -> None:
        found = {name: tensor.numpy() for name, tensor in read_scores(folder / "s.parquet", shared.catalog).items()}
        shares = found["probabilities"]
        if not np.isfinite(shares).all() or (shares < 0).any() or (shares.sum(axis=1) > 1 + 1e-5).any():
            raise Wrong(f"probabilities {shares.min()} to {shares.max()}")
        if (found["items"] < 0).any() or (found["items"] >= shared.catalog.num_items).any():
            raise Wrong("items that there are not")
        if (found["keys"][1:] <= found["keys"][:-1]).any():
            raise Wrong("keys repeat")

    return Case(count, run, f"{shown} scores {told}")


def preferences(rng: random.Random, folder: Path, shared: Shared, shown: str) -> Case:
    """A file of preferences for `dpo`."""
    ids = shared.catalog.item_ids
    lines = []
    for user in range(4):
        history, (target, *negatives) = rng.sample(ids, 3), rng.sample(ids, 4)
        lines.append({"user_id": f"u{user}", "history": history, "target": target, "negatives": negatives,
                      "sources": ["hard"] * 3, "beam_ranks": [1, -1, 2], "oracle": [0.9, 0.5, 1.0]})  # fmt: skip
    count, told = written(rng, pa.Table.from_pylist(lines), folder / "p.parquet")
    path = folder / "p.parquet"
    if "bytes" not in told and rng.random() < 0.4:
        path = folder / "p.jsonl"
        text = "".join(f"{json_of(row)}\n" for row in pq.ParquetFile(folder / "p.parquet").read().to_pylist())
        path.write_bytes(damage(rng, text.encode()) if count and rng.random() < 0.5 else text.encode())

    def run() -> None:
        found = read_preferences(path, shared.catalog, shared.table)
        for history, target, negatives in zip(
            found.prompts.histories, found.prompts.targets, found.negatives, strict=True
        ):
            rows = np.concatenate([history, [target], negatives])
            if not len(history) or not len(negatives) or target in negatives:
                raise Wrong("a line without history or negatives, or with the target among the negatives")
            if rows.min() < 0 or rows.max() >= shared.catalog.num_items:
                raise Wrong("items that there are not")
        if found.oracle and any(not ((p >= 0) & (p <= 1)).all() for p in found.oracle):
            raise Wrong("an oracle that is no probability")

    return Case(count, run, f"{shown} preferences {told}")


def json_of(row: dict[str, Any]) -> str:
    """A line of JSON, whatever the values are."""
    return json.dumps(row, default=str)


def catalogue(rng: random.Random, folder: Path, shared: Shared, shown: str) -> Case:
    """A catalogue directory that another tool wrote, and adopted."""
    source = Path(shared.catalog.source)
    name = rng.choice(("items.parquet", "split.parquet"))
    for file in source.glob("*.parquet"):
        shutil.copy(file, folder)
    count, told = written(rng, pq.read_table(folder / name), folder / name)
    adopt(folder, "prepare")

    def run() -> None:
        catalog = Catalog.load(folder)
        if not all(isinstance(item_id, str) and item_id for item_id in catalog.item_ids):
            raise Wrong("item_ids that are no text")
        if not all(isinstance(title, str) for title in catalog.titles):
            raise Wrong("titles that are no text")
        for split in ("train", "valid", "test"):
            examples = catalog.examples(split)
            for i in range(len(examples)):
                sequence = examples.sequence(i)
                if len(sequence) and (sequence.min() < 0 or sequence.max() >= catalog.num_items):
                    raise Wrong("items that there are not")
            if not all(isinstance(user_id, str) for user_id in examples.user_ids):
                raise Wrong(f"user_ids that are no text: {examples.user_ids[:3]}")

    return Case(count, run, f"{shown} catalogue {name} {told}")
