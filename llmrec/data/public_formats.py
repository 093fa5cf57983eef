"""Public formats of interaction data, each read into a Dataset.

Departures from the sources: ids become strings and are otherwise unchanged; ASINs and other numberings are left out of
the items, because they follow the order of first appearance and the order of same-day ties (measured on Amazon 2014:
the test item's ASIN is the larger one with probability .71). Items without a title have a null title.
"""

from __future__ import annotations

import io
import json
import lzma
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from llmrec.data.columns import HISTORY, ITEM_ID, SPLIT, TARGET, TEXT, TIMESTAMP, TITLE, USER_ID, WEIGHT
from llmrec.data.split import POSITION

TEXT_FIELDS = (
    *(TITLE, "year", "genres", "genre", "category", "categories", "brand", "store", "tags", "features", "description"),
)


@dataclass(frozen=True)
class Dataset:
    """A raw dataset, before filtering and splitting.

    Attributes:
        items: `item_id`, `title` (null if unknown), `text` and further fields; one row per item.
        interactions: `user_id`, `item_id`, `timestamp`, `weight`, in the order of the source.
        order_only: True if the source has no times and `timestamp` is the position in the user's history.
        split: Published split with the columns of `split.leave_one_out`, if the source has one.
        notes: Sentences that say how the files were read: separator, guessed columns, columns that were not read.
    """

    items: pl.DataFrame
    interactions: pl.DataFrame
    order_only: bool = False
    split: pl.DataFrame | None = None
    notes: tuple[str, ...] = ()


def read_bytes(path: Path) -> bytes:
    """Read a file; one whose name ends in .xz is uncompressed.

    Raises:
        ValueError: If an .xz file is cut or damaged.
    """
    if path.suffix != ".xz":
        return path.read_bytes()
    try:
        with lzma.open(path) as file:
            return file.read()
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"'{path}' is not a whole .xz file ({error}); get it again.") from error


def compose_text(items: pl.DataFrame) -> pl.DataFrame:
    """Add the column `text` for text encoders: the title and the descriptive fields that an item has, or "".

    Fields are text, numbers, dates, or lists of text; columns of other types are no part of it. Capital letters in the
    names of columns make no difference.
    """
    named = {name.lower(): name for name in items.columns} | {name: name for name in items.columns}
    parts = [pl.Series([None] * items.height, dtype=pl.String)]
    for name in (named[field] for field in TEXT_FIELDS if field in named):
        dtype = items.schema[name]
        if isinstance(dtype, pl.List) and dtype.inner == pl.String:
            parts.append(joined(items[name]))
        elif dtype.is_numeric() or dtype in (pl.String, pl.Boolean, pl.Date):
            parts.append(items[name].cast(pl.String))
    parts = [part.str.strip_chars().replace("", None) for part in parts]
    return items.with_columns(pl.concat_str(parts, separator=". ", ignore_nulls=True).fill_null("").alias(TEXT))


def joined(lists: pl.Series) -> pl.Series:
    """Join the values of each list with commas, or with a blank behind the end of a sentence.

    >>> joined(pl.Series([["Beauty", "Hair"], ["It shines.", "Really."]])).to_list()
    ['Beauty, Hair', 'It shines. Really.']
    """
    cells = lists.list.join("\x1f")
    return cells.str.replace_all(r"([.!?:;,…])\x1f", "${1} ").str.replace_all("\x1f", ", ")


def read_movietweetings(ratings: Path, movies: Path) -> Dataset:
    """Read MovieTweetings: `user::movie::rating::unix seconds` and `movie::Title (year)::Genre|Genre`."""
    fields = pl.Series(read_bytes(ratings).decode().splitlines()).str.split_exact("::", 3).struct
    interactions = pl.DataFrame(
        {
            USER_ID: fields.field("field_0"),
            ITEM_ID: fields.field("field_1"),
            TIMESTAMP: fields.field("field_3").cast(pl.Int64),
            WEIGHT: fields.field("field_2").cast(pl.Float64),
        }
    )
    lines = pl.Series(read_bytes(movies).decode().splitlines())
    pattern = r"^(?<item_id>\d+)::(?<title>.*) \((?<year>\d{4})\)::(?<genres>[^:]*)$"
    items = pl.DataFrame(lines.str.extract_groups(pattern).struct.unnest()).with_columns(
        pl.col("year").cast(pl.Int64), pl.col("genres").replace("", None).str.split("|")
    )
    return Dataset(compose_text(items), interactions)


def read_s3rec(histories: Path, items: Path) -> Dataset:
    """Read S3-Rec's `user item item …`, oldest first, with a table of titles and attribute numbers."""
    lines = [line.split() for line in read_bytes(histories).decode().splitlines()]
    table = pl.read_parquet(items).select(
        pl.col(ITEM_ID).cast(pl.String), TITLE, pl.col("s3rec_attribute_ids").alias("attributes")
    )
    return Dataset(compose_text(table), _in_order({user: rest for user, *rest in lines}), order_only=True)


def read_lcrec(histories: Path, items: Path) -> Dataset:
    """Read LC-Rec's inter.json, `{user: [item, …]}` oldest first, with a table of titles."""
    sequences = {user: [str(item) for item in rest] for user, rest in json.loads(read_bytes(histories)).items()}
    table = pl.read_parquet(items).select(pl.col(ITEM_ID).cast(pl.String), TITLE)
    return Dataset(compose_text(table), _in_order(sequences), order_only=True)


def _in_order(sequences: dict[str, list[str]]) -> pl.DataFrame:
    """Interactions of histories without times: the position in the history is the timestamp."""
    return (
        pl.DataFrame({USER_ID: list(sequences), ITEM_ID: list(sequences.values())})
        .with_columns(pl.int_ranges(pl.col(ITEM_ID).list.len()).alias(TIMESTAMP), pl.lit(1.0).alias(WEIGHT))
        .explode(ITEM_ID, TIMESTAMP)
    )


def read_foursquare(train: Path, test: Path) -> Dataset:
    """Read GNPR-SID's check-ins `Uid,Pid,Time`; there is no text about items.

    The published test file repeats the training check-ins as histories, so the log is the distinct rows of both files.
    Repeated visits at other times stay.
    """
    log = pl.concat([pl.read_csv(io.BytesIO(read_bytes(path)), infer_schema=False) for path in (train, test)])
    interactions = log.unique(maintain_order=True).select(
        pl.col("Uid").alias(USER_ID),
        pl.col("Pid").alias(ITEM_ID),
        pl.col("Time").str.to_datetime("%Y-%m-%d %H:%M").dt.epoch("s").alias(TIMESTAMP),
        pl.lit(1.0).alias(WEIGHT),
    )
    return Dataset(untitled_items(interactions), interactions)


def untitled_items(interactions: pl.DataFrame) -> pl.DataFrame:
    """Items of a log without an item file; they have no title and empty text."""
    return interactions.select(
        pl.col(ITEM_ID).unique(maintain_order=True), pl.lit(None, pl.String).alias(TITLE), pl.lit("").alias(TEXT)
    )


def read_minionerec(items: Path, train: Path, valid: Path, test: Path) -> Dataset:
    """Read MiniOneRec's item.json and its pairs (history of at most 10 items, target), with the published split.

    The pairs of a user are joined into one sequence, because llmrec has one training example per user. The pairs have
    no times, but they are in order, which is enough for a published split.
    """
    table = pl.DataFrame(
        [{ITEM_ID: item_id, **fields} for item_id, fields in json.loads(read_bytes(items)).items()]
    ).select(ITEM_ID, pl.col(TITLE, "brand").replace("", None), _description())
    sequences, split = _fold(pl.concat([_pairs(train, "train"), _pairs(valid, "valid"), _pairs(test, "test")]))
    return Dataset(compose_text(table), _in_order(sequences), order_only=True, split=split)


def _fold(pairs: pl.DataFrame) -> tuple[dict[str, list[str]], pl.DataFrame]:
    """Join the pairs of each user into a sequence, and keep one training example per user.

    A sequence is the history of the user's first pair, followed by the targets of all pairs. `check_no_leak` proves
    that every other history is a part of it.

    Returns:
        User id -> sequence, and the examples.
    """
    before, targets = pl.col(HISTORY).list.len().first().cast(pl.Int64), pl.col(TARGET).cum_count().cast(pl.Int64)
    pairs = pairs.with_columns((before + targets - 1).over(USER_ID).alias(POSITION))
    sequences = pairs.group_by(USER_ID, maintain_order=True).agg(pl.col(HISTORY).first(), TARGET)
    sequences = sequences.select(USER_ID, pl.concat_list(HISTORY, TARGET).alias("sequence"))
    is_train = pl.col(SPLIT) == "train"
    is_last = pl.col(POSITION) == pl.col(POSITION).max().over(USER_ID, SPLIT)
    history = pl.when(is_train).then(pl.col("sequence").list.head(pl.col(POSITION))).otherwise(HISTORY)
    rows = pairs.join(sequences, on=USER_ID, maintain_order="left").filter(~is_train | is_last)
    return dict(sequences.iter_rows()), rows.select(USER_ID, SPLIT, history.alias(HISTORY), TARGET, POSITION)


def _description() -> pl.Expr:
    """Text of a description that was stored as a printed Python list of strings: `['one', 'two']`."""
    text = pl.col("description").str.strip_prefix("[").str.strip_suffix("]")
    return text.str.replace_all(r"""['"], ['"]""", " ").str.strip_chars(" '\"").replace("", None)


def _pairs(path: Path, split: str) -> pl.DataFrame:
    """Read pairs (user, split, history, target) from a published CSV, or a parquet file with the same numbering."""
    if ".csv" in path.suffixes:
        pairs = pl.read_csv(io.BytesIO(read_bytes(path)), infer_schema=False)
        pairs = pairs.with_columns(pl.col("history_item_id").str.json_decode(pl.List(pl.Int64)))
    else:
        # The CSV writes user 1959 as A1959, the parquet file as 1959.
        pairs = pl.read_parquet(path).with_columns(pl.format("A{}", USER_ID).alias(USER_ID))
    return pairs.select(
        USER_ID,
        pl.lit(split).alias(SPLIT),
        pl.col("history_item_id").cast(pl.List(pl.String)).alias(HISTORY),
        pl.col(ITEM_ID).cast(pl.String).alias(TARGET),
    )
