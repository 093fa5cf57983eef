"""Fuzzed logs and item tables, read by `prepare`: cells, columns, lines and bytes of files in every format change.

A judge that reads the same rows slowly (`slow_prepare`) says what the result must be. Where it says that the rows
cannot be used, a finished run is a silent repair.
"""

from __future__ import annotations

import bz2
import contextlib
import datetime
import gzip
import io
import json
import lzma
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.configs import PrepareConfig
from llmrec.stages import prepare
from tests.faults.fuzz.judge import Case, Wrong
from tests.faults.fuzz.slow_prepare import Row, core, read_text, sequences, usable, without_repeats

NAMES = ("user_id", "item_id", "timestamp")
IDS = (str, "u{}".format, "0{:05d}".format, "Ünï{}".format, "id {}".format, "7{:018d}".format, "a-b_{}.x".format)
TIMES = (
    str,
    lambda t: f"{t}.5",
    lambda t: str(t * 1000),
    lambda t: str(t * 10**9 + 1),
    lambda t: datetime.datetime.fromtimestamp(t, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S"),
    lambda t: datetime.datetime.fromtimestamp(t, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    lambda t: datetime.datetime.fromtimestamp(t, datetime.UTC).strftime("%Y-%m-%d"),
    lambda t: datetime.datetime.fromtimestamp(t, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S+02:00"),
)
TITLES = ("Red apple", "Pear", "Blue plum", "Sweet melon 2", "Tea", "Café noir", "Plum; jam, 'old'", 'A "b" c')
WEIRD = ("", " ", "nan", "NaN", "None", "null", "NULL", "inf", "-inf", "1e400", "1e5", "-1", "0", "+3", "007", "1.0",
         "1,5", "9223372036854775808", "-9223372036854775809", "99999999999999999999999999", "2012-13-45", "2012-02-30",
         "0000-00-00", "9999-12-31 23:59:59", "10000-01-01", "-0001-01-01", "1/2/2012", "2012-01-01T25:00:00",
         "2012-01-01T00:00:00+99:00", "x" * 5000, "\x1b[2J", "a\x07b", "\u202eabc", "\u200b", "<a_1><b_2>", "=1+1",
         "true", "[1, 2]", "{'a': 1}", "https://x.y/?a=b&c=d", "&lt;b&gt;", "'", '"', '""', '"a', "a\"b", "\\", "\\N",
         "é", "𝕏", "\ufeff", "a\nb", "a,b", "a\tb", "a;b", "a|b", "a::b", "\x00", "１２", "٣", "1_000", "0x10",
         "1 000")  # fmt: skip
SEPARATORS = (",", ",", ",", "\t", ";", "|")
COMPRESSED = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": lambda b: pa.compress(
    b, codec="zstd", asbytes=True)}  # fmt: skip

UNPACK = {".gz": gzip.decompress, ".xz": lzma.decompress, ".bz2": bz2.decompress,
          ".zst": lambda content: pa.CompressedInputStream(pa.BufferReader(content), "zstd").read()}  # fmt: skip


@dataclass
class Input:
    """Log, item table and options of one run.

    Attributes:
        columns: Name of each column of the log, in order; a fourth and further ones are not read.
        rows: Cells of the log, text or None.
        items: item_id and title of each item; None for a log alone.
        is_judged: False once a change has left open what the result must be.
    """

    columns: list[str]
    rows: list[list[str | None]]
    items: list[list[str | None]] | None
    k_core: int
    order_only: bool
    drops_repeats: bool
    is_judged: bool = True
    told: list[str] = field(default_factory=list)

    def expected(self) -> dict[str, list[str]] | None:
        """Sequence of each user, or None if the rows cannot be used."""
        if any(self.columns.count(name) != 1 for name in NAMES[: 2 if self.order_only else 3]):
            return None
        places = [self.columns.index(name) if name in self.columns else None for name in NAMES]
        rows = [Row(*(None if place is None else row[place] for place in places)) for row in self.rows]
        items = None if self.items is None else [item_id or "" for item_id, _ in self.items]
        if not usable(rows, items, self.order_only):
            return None
        if self.drops_repeats and not self.order_only:
            rows = without_repeats(rows)
        return sequences(core(rows, self.k_core), self.order_only)


def case(seed: int, directory: Path) -> Case:
    """One fuzzed run of `prepare`."""
    rng = random.Random(seed)
    given = valid(rng)
    count = rng.choices((0, 1, 2, 3), (20, 62, 12, 6))[0]
    of_cells = count if rng.random() < 0.6 else 0
    for _ in range(of_cells):
        rng.choice(CHANGES)(rng, given)
    folder = directory / "files"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = write(rng, given, folder, count - of_cells)
    items = None
    if given.items is not None:
        items = folder / "items.csv"
        items.write_text(delimited(rng, ["item_id", "title"], given.items, ","), encoding="utf-8")
    config = PrepareConfig(
        out=str(folder / "out"), interactions=str(log), items=items and str(items), k_core=given.k_core,
        order_only=given.order_only, duplicates="drop" if given.drops_repeats else "keep",
    )  # fmt: skip

    def run() -> None:
        prepare.main(config)
        check(Path(config.out), given)

    return Case(count, run, f"seed {seed}: {config}; {'; '.join(given.told)}\n{log.name}: {head_of(log)}")


def head_of(log: Path) -> str:
    """First bytes of a log, out of its compression."""
    content = b"a directory" if log.is_dir() else log.read_bytes()
    with contextlib.suppress(Exception):
        content = {**UNPACK, "": bytes}[log.suffix if log.suffix in UNPACK else ""](content)
    return repr(content[:1500])


def valid(rng: random.Random) -> Input:
    """A log that `prepare` takes, with an item table or without."""
    user, item, time = rng.choice(IDS), rng.choice(IDS), rng.choice(TIMES)
    num_items = rng.randint(4, 9)
    rows: list[list[str | None]] = [
        [user(u), item(rng.randrange(num_items)), time(1_300_000_000 + 86_400 * rng.randrange(2000))]
        for u in range(rng.randint(3, 7))
        for _ in range(rng.randint(3, 6))
    ]
    rng.shuffle(rows)
    items = None
    if rng.random() < 0.5:
        items = [[item(i), rng.choice(TITLES)] for i in range(num_items)]
    return Input(list(NAMES), rows, items, rng.choice((0, 0, 1, 2)), rng.random() < 0.1, rng.random() < 0.7)


def change_cell(rng: random.Random, given: Input) -> None:
    row, place = rng.choice(given.rows), rng.randrange(len(given.columns))
    row[place] = rng.choice(WEIRD)
    given.told.append(f"a cell of {given.columns[place]} is {row[place]!r}")


def blur_cell(rng: random.Random, given: Input) -> None:
    """Change one character of a cell."""
    row, place = rng.choice(given.rows), rng.randrange(len(given.columns))
    text = row[place] or "x"
    at = rng.randrange(len(text) + 1)
    row[place] = rng.choice((text[:at] + text[at + 1 :], text[:at] + rng.choice(" ,\"'\t-.0x") + text[at:], f" {text}",
                             f"{text} ", text.upper(), f"{text}.0"))  # fmt: skip
    given.told.append(f"a cell of {given.columns[place]} was {text!r}, is {row[place]!r}")


def change_item(rng: random.Random, given: Input) -> None:
    if given.items is None:
        return change_cell(rng, given)
    row, place = rng.choice(given.items), rng.randrange(2)
    row[place] = rng.choice((*WEIRD, given.items[0][place], None))
    given.told.append(f"a cell of {('item_id', 'title')[place]} is {row[place]!r}")


def change_rows(rng: random.Random, given: Input) -> None:
    at = rng.randrange(len(given.rows))
    what = rng.choice(("repeat", "drop", "swap", "keep few"))
    if what == "repeat":
        given.rows.insert(at, list(given.rows[at]))
    elif what == "drop":
        del given.rows[at]
    elif what == "swap":
        given.rows[at], given.rows[0] = given.rows[0], given.rows[at]
    else:
        given.rows = given.rows[:2]
    given.told.append(f"{what} row {at}")


def change_columns(rng: random.Random, given: Input) -> None:
    at = rng.randrange(len(given.columns))
    what = rng.choice(("rename", "drop", "add", "repeat", "move"))
    if what == "rename":
        given.columns[at] = rng.choice(("userid", "ITEM_ID", "when", "", "weight", "Timestamp", "item_id", " user_id"))
        given.is_judged = False  # another common name may be understood
    elif what == "move":
        for cells in (given.columns, *given.rows):
            cells.insert(0, cells.pop(at))
    elif what == "drop":
        for cells in (given.columns, *given.rows):
            del cells[at]
    else:
        given.columns.append("extra" if what == "add" else given.columns[at])
        for row in given.rows:
            row.append(rng.choice(WEIRD[:12]) if what == "add" else row[at])
    given.told.append(f"{what} column {at}")


CHANGES = (change_cell, change_cell, blur_cell, blur_cell, change_item, change_rows, change_columns)


def write(rng: random.Random, given: Input, folder: Path, of_bytes: int) -> Path:
    """Write the log in a random format, and change bytes of it."""
    kind = rng.choices(("text", "json", "parquet", "parts"), (60, 15, 15, 10))[0]
    if kind == "parts":
        (folder / "log").mkdir()
        middle = len(given.rows) // 2
        for i, rows in enumerate((given.rows[:middle], given.rows[middle:])):
            if rows:
                (folder / "log" / f"part-{i}.csv").write_text(
                    delimited(rng, given.columns, rows, ","), encoding="utf-8"
                )
        if of_bytes:
            damage_file(rng, rng.choice(sorted((folder / "log").iterdir())), of_bytes)
            given.is_judged = False
        return folder / "log"
    if kind == "parquet":
        path = folder / "log.parquet"
        write_parquet(rng, given, path)
        if of_bytes:
            damage_file(rng, path, of_bytes)
            given.is_judged = False  # a flipped bit in a page without a checksum cannot be told
        return path
    separator = rng.choice(SEPARATORS)
    if kind == "json":
        if len(set(given.columns)) < len(given.columns):
            given.is_judged = False  # an object holds one value of a name
        content, name = json_lines(given).encode(), "log.jsonl"
        if of_bytes:
            given.is_judged = False
    else:
        content, name = text_of(rng, given, separator), "log.tsv" if separator == "\t" else "log.csv"
    for _ in range(of_bytes):
        content = damage(rng, content)
    if of_bytes and kind == "text":
        reread(given, content, separator)
    ending = rng.choice(("", "", "", *COMPRESSED))
    if ending:
        name, content = name + ending, COMPRESSED[ending](content)
        if of_bytes and rng.random() < 0.3:
            content = damage(rng, content)
            given.is_judged = False
    (folder / name).write_bytes(content)
    given.told.append(f"{name}, {of_bytes} changes of bytes")
    return folder / name


def reread(given: Input, content: bytes, separator: str) -> None:
    """Let the damaged text say what its rows are."""
    rows = read_text(content, separator)
    if rows is None:
        given.rows = []  # nothing that could be used
        return
    given.columns, given.rows = (
        [name.strip().strip('"') for name in rows[0]],
        [[cell or None for cell in r] for r in rows[1:]],
    )
    if set(given.columns) != set(NAMES):
        given.is_judged = False  # another common name may be understood, or another separator found


def text_of(rng: random.Random, given: Input, separator: str) -> bytes:
    text = delimited(rng, given.columns, given.rows, separator)
    if rng.random() < 0.2 and text.count("\n") == len(given.rows) + 1:
        text = text.replace("\n", "\r\n")
    encoding = rng.choices(("utf-8", "utf-8-sig", "utf-16"), (80, 15, 5))[0]
    return text.encode(encoding, "surrogatepass")


def delimited(rng: random.Random, columns: list[str], rows: list[list[str | None]], separator: str) -> str:
    quotes_all = rng.random() < 0.2
    out = io.StringIO()
    for cells in (columns, *rows):
        out.write(separator.join(cell_of(cell, separator, quotes_all) for cell in cells) + "\n")
    return out.getvalue()


def cell_of(cell: str | None, separator: str, quotes_all: bool) -> str:
    text = cell or ""
    needs = quotes_all or any(char in text for char in (separator, '"', "\n", "\r"))
    return '"' + text.replace('"', '""') + '"' if needs and text else text


def json_lines(given: Input) -> str:
    return "".join(json.dumps(dict(zip(given.columns, row, strict=True))) + "\n" for row in given.rows)


def write_parquet(rng: random.Random, given: Input, path: Path) -> None:
    frame = {}
    for i, name in enumerate(given.columns):
        column = pl.Series(str(i), [row[i] for row in given.rows], pl.String)
        typed = column.cast(rng.choice((pl.Int64, pl.Int32, pl.UInt64, pl.Float64, pl.Float32)), strict=False)
        if name == "timestamp" and typed.null_count() == column.null_count() and rng.random() < 0.5:
            if typed.cast(pl.String).to_list() != column.to_list():
                given.is_judged = False  # the type has rounded the times
            column = typed
        frame[name] = column.cast(pl.Categorical) if column.dtype == pl.String and rng.random() < 0.1 else column
    if len(frame) < len(given.columns):
        given.is_judged = False  # one of the columns of one name is lost here
    pl.DataFrame(frame).write_parquet(path)
    if rng.random() < 0.1:
        odd_type(rng, path)
        given.is_judged = False


def odd_type(rng: random.Random, path: Path) -> None:
    """Give a column a type that logs do not have."""
    table = pq.read_table(path)
    at, n = rng.randrange(table.num_columns), table.num_rows
    column = rng.choice((
        pa.array([[1, 2]] * n), pa.array([{"a": 1}] * n), pa.array([b"x"] * n, pa.binary()), pa.nulls(n),
        pa.array([True] * n), pa.array([datetime.date(2012, 1, 1)] * n), pa.array([2**62] * n, pa.timestamp("ns")),
        pa.array([-(2**31)] * n, pa.int32()).cast(pa.date32()), pa.array([1] * n, pa.decimal128(38, 10)),
        pa.array([10**6] * n, pa.duration("s")), pa.array([2**52] * n, pa.timestamp("s", "Europe/Paris")),
        pa.array([5] * n, pa.time64("us")), pa.array([2**63] * n, pa.uint64()),
    ))  # fmt: skip
    pq.write_table(table.set_column(at, table.column_names[at], column), path)


def damage(rng: random.Random, content: bytes) -> bytes:
    """Change some bytes: flip, cut, insert, remove, repeat."""
    if not content:
        return b"x"
    at = rng.randrange(len(content))
    to = min(len(content), at + rng.choice((1, 1, 2, 8, 40)))
    return rng.choice((
        content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :],
        content[:at],
        content[:at] + rng.choice((b",", b'"', b"\n", b"\r", b"\0", b"\xff", b"\xc3", b" ", b";", b"\t", b"\n\n", b"#",
                                   b"\xef\xbb\xbf", b"'", b"\\", b"1", b"x")) + content[at:],
        content[:at] + content[to:],
        content[:at] + content[at:to] + content[at:],
        content + content[at:],
        content + rng.choice((b"\n", b"\n\n\n", b"\0", b"total,3,\n", b"a", b"\x1a")),
    ))  # fmt: skip


def damage_file(rng: random.Random, path: Path, times: int) -> None:
    content = path.read_bytes()
    for _ in range(times):
        content = damage(rng, content)
    path.write_bytes(content)


def check(out: Path, given: Input) -> None:
    """Compare a catalogue with what its rows say.

    Raises:
        Wrong: If they differ.
    """
    split, items = pl.read_parquet(out / "split.parquet"), pl.read_parquet(out / "items.parquet")
    known = set(items["item_id"])
    if len(known) < items.height or None in known:
        raise Wrong("items repeat or lack their id")
    named = split.select(pl.col("history").explode().alias("item")).vstack(split.select(pl.col("target").alias("item")))
    if strangers := set(named["item"].drop_nulls()) - known:
        raise Wrong(f"the split names items that there are not: {sorted(strangers)[:3]}")
    if not given.is_judged:
        return
    expected = given.expected()
    if expected is None:
        raise Wrong("finished, though the rows cannot be used")
    found = {}
    for row in split.sort("split").iter_rows(named=True):  # test, train, valid: the longest first
        found.setdefault(row["user_id"], [*row["history"], row["target"]])
    if found != {user: sequence for user, sequence in expected.items() if user in found}:
        user = next(user for user in found if found[user] != expected.get(user))
        raise Wrong(f"user {user!r} has {found[user]}, the rows say {expected.get(user)}")
    if lost := {user for user, sequence in expected.items() if len(sequence) > 1} - found.keys():
        raise Wrong(f"users are lost: {sorted(lost)[:3]}")
    count = pl.read_parquet(out / "interactions.parquet").height
    if count != sum(map(len, expected.values())):
        raise Wrong(f"{count} interactions, the rows say {sum(map(len, expected.values()))}")
