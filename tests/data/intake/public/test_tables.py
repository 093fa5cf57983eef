"""Tables as pandas, Spark and Excel write them, with the values that they mean."""

from __future__ import annotations

import datetime

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.data.intake.read import read_tables
from tests.data.intake.public import samples
from tests.data.intake.public.samples import INTERACTIONS, TITLES, put

ROWS = sorted((f"u{user}", f"i{item}", time, rating + 0.5) for user, item, time, rating in INTERACTIONS)


def test_a_directory_of_pandas(tmp_path):
    """`DataFrame.to_parquet(partition_cols=…)`: categories, pandas's own index, times in nanoseconds."""
    for part in range(2):
        rows = INTERACTIONS[part::2]
        table = pa.table(
            {
                "user_id": pa.array([f"u{row[0]}" for row in rows]).dictionary_encode(),
                "item_id": pa.array([f"i{row[1]}" for row in rows]).dictionary_encode(),
                "timestamp": pa.array([row[2] * 10**9 for row in rows], pa.timestamp("ns")),
                "weight": pa.array([row[3] + 0.5 for row in rows]),
                "__index_level_0__": pa.array(range(len(rows))),
            }
        )
        (tmp_path / "log" / f"country={part}").mkdir(parents=True)
        pq.write_table(table, tmp_path / "log" / f"country={part}" / "a1b2-0.parquet")
    items = pa.table(
        {
            "item_id": [f"i{item}" for item in range(8)],
            "title": TITLES,
            "year": [1990.0 + item if item else None for item in range(8)],
            "genres": [["Drama"], None, [], ["Crime", "War"], None, None, None, None],
            "released": [datetime.date(2020, 1, 2)] * 8,
            "__index_level_0__": list(range(8)),
        }
    )
    (tmp_path / "items").mkdir()
    pq.write_table(items, tmp_path / "items" / "part.parquet")
    dataset = read_tables(tmp_path / "log", tmp_path / "items")
    assert sorted(dataset.interactions.rows()) == ROWS
    assert dataset.items["year"].to_list() == [None, *range(1991, 1998)]
    assert dataset.items["text"][3] == "Saw. 1993. Crime, War" and "__index_level_0__" not in dataset.items.columns


def test_a_directory_of_spark(tmp_path):
    """`DataFrame.write.parquet`: text as bytes (older Spark), decimals, an empty part, _SUCCESS and .crc files."""
    folder = tmp_path / "log.parquet"
    folder.mkdir()
    for part in range(3):
        rows = INTERACTIONS[part::2] if part < 2 else []
        table = pa.table(
            {
                "user_id": pa.array([f"u{row[0]}".encode() for row in rows], pa.binary()),
                "item_id": pa.array([f"i{row[1]}".encode() for row in rows], pa.binary()),
                "timestamp": pa.array([row[2] for row in rows], pa.int64()),
                "weight": pa.array([row[3] + 0.5 for row in rows]).cast(pa.decimal128(10, 2)),
            }
        )
        pq.write_table(table, folder / f"part-0000{part}-c0ffee.snappy.parquet", compression="snappy")
        put(folder / f".part-0000{part}-c0ffee.snappy.parquet.crc", b"crc\x00")
    put(folder / "_SUCCESS", b"")
    assert sorted(read_tables(folder).interactions.rows()) == ROWS


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_an_export_of_excel(tmp_path, encoding):
    """Unicode text or CSV of a German Excel: UTF-16 or a mark, semicolons, decimal commas, CRLF, prices in euros."""
    log = ["Kunde;Artikel;Zeit;Bewertung"]
    log += [f"u{user};i{item};{time};{rating},5" for user, item, time, rating in INTERACTIONS]
    prices = ["12,99 €", "1.299,00 €", "5 €", "", "ab 7,50 €", "0,99 €", "3,- €", "auf Anfrage"]
    items = ["Artikel;Name;price;lat;lon;Gewicht;genres"]
    items += [
        f'i{item};"{TITLES[item]}"'.replace('"Dish', '""Dish') + f";{prices[item]};52,5{item};13,4;{item},25;A|B"
        for item in range(8)
    ]
    dataset = read_tables(
        put(tmp_path / "log.csv", "\r\n".join(log) + "\r\n", encoding),
        put(tmp_path / "items.csv", "\r\n".join(items) + "\r\n", encoding),
        user_column="Kunde",
        item_column="Artikel",
        timestamp_column="Zeit",
        title_column="Name",
        weight_column="Bewertung",
    )
    assert sorted(dataset.interactions.rows()) == ROWS
    assert dataset.items["price"].to_list() == [12.99, 1299.0, 5.0, None, 7.5, 0.99, 3.0, None]
    assert dataset.items["lat"].to_list() == [52.5 + item / 100 for item in range(8)]
    assert dataset.items["Gewicht"].to_list() == [item + 0.25 for item in range(8)]
    assert dataset.items["title"].to_list() == TITLES
    assert dataset.items["genres"].to_list() == [["A", "B"]] * 8


@pytest.mark.parametrize("name", ["movielens_25m", "yelp", "amazon_2018", "minionerec"])
def test_a_public_layout_in_parquet_is_the_same(tmp_path, name):
    """Hugging Face offers many of these files as parquet, with numbers and lists as such."""
    log, items = getattr(samples, name)(tmp_path)
    typed = []
    for path in (log, items):
        if path is None:
            typed.append(None)
            continue
        read = pl.read_csv if path.suffix == ".csv" else pl.read_ndjson
        typed.append(tmp_path / f"{path.stem}.parquet")
        read(path).write_parquet(typed[-1])
    of_text, of_types = read_tables(log, items), read_tables(*typed)
    assert of_types.interactions.sort(of_types.interactions.columns).rows() == (
        of_text.interactions.sort(of_text.interactions.columns).rows()
    )
    assert (
        of_types.items.select("item_id", "title", "text").rows()
        == of_text.items.select("item_id", "title", "text").rows()
    )


def weighted(weights: list[str]) -> str:
    return samples.lines(["user_id,item_id,timestamp,weight", *(f'u,i,1,"{weight}"' for weight in weights)])


@pytest.mark.parametrize(("weights", "read"), [(["4,5", "5"], [4.5, 5.0]), (["nan", "5"], [None, 5.0])])
def test_weights_with_commas_and_words_for_missing(tmp_path, weights, read):
    log = put(tmp_path / "log.csv", weighted(weights))
    assert read_tables(log).interactions["weight"].to_list() == read


@pytest.mark.parametrize("weights", [["4,5", "5.5"], ["1,299", "5"], ["4,5,6", "1"], ["x", "1"]])
def test_a_weight_that_can_be_read_in_two_ways_is_refused(tmp_path, weights):
    log = put(tmp_path / "log.csv", weighted(weights))
    with pytest.raises(ValueError, match="a weight that is no number, first at line 2"):
        read_tables(log)
