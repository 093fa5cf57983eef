"""`llmrec prepare` on item tables as people have them: what reaches the catalogue, conditions and encoders."""

from __future__ import annotations

import gzip
import json

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from llmrec.cli import main
from llmrec.configs import EmbedConfig
from llmrec.data.catalog import Catalog
from llmrec.stages import embed

LOG = [("c0", "0123"), ("c1", "1234"), ("c2", "2340")]
USERS = [user for user, items in LOG for _ in items]
ITEMS = [f"p{item}" for _, items in LOG for item in items]


@pytest.fixture
def prepare(tmp_path, capsys, monkeypatch):
    """Run `llmrec prepare` on a log of 3 users and 5 items; returns the status and what it said."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{user},{item},{place}\n" for place, (user, item) in enumerate(zip(USERS, ITEMS, strict=True))]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "".join(rows))

    def run(*flags: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["prepare", "--interactions", "log.csv", "--k-core", "0", "--out", "cat", *flags])
        return status, capsys.readouterr().err

    return run


def items(tmp_path) -> dict[str, dict[str, object]]:
    return {row["item_id"]: row for row in pl.read_parquet(tmp_path / "cat" / "items.parquet").to_dicts()}


def test_lists_saved_as_text_and_items_of_which_nothing_is_known(prepare, tmp_path):
    (tmp_path / "items.csv").write_text(
        "item_id,title,categories,description\n"
        "p0,Lamp 0,\"['Beauty', 'Hair']\",[]\n"
        "p1,,[],[]\n"
        "p2,,[],[]\n"
        "p3,Lamp 3,[],\"['It shines.', 'Really.']\"\n"
        "p4,Lamp 4,['Beauty' 'Hair'],[]\n"
    )
    status, said = prepare("--items", "items.csv")
    assert status == 0 and "read from text as lists: categories, description" in said
    texts = {item: row["text"] for item, row in items(tmp_path).items()}
    assert texts == {
        "p0": "Lamp 0. Beauty, Hair",
        "p1": "",
        "p2": "",
        "p3": "Lamp 3. It shines. Really.",
        "p4": "Lamp 4. Beauty, Hair",
    }
    catalog = Catalog.load(tmp_path / "cat")
    assert sorted(catalog.where("array_contains(categories, 'Hair')")) == ["p0", "p4"]
    embed.main(EmbedConfig(catalog="cat", out="views", views=["text"], text_encoder="tfidf"))
    missing = load_file(tmp_path / "views" / "text.safetensors")["missing"]
    assert {item for item, is_missing in zip(catalog.item_ids, missing, strict=True) if is_missing} == {"p1", "p2"}


RECORD = {"id": 1, "name": "Light"}


def test_records_are_no_text(prepare, tmp_path):
    table = {"item_id": [f"p{k}" for k in range(5)], "title": [f"Lamp {k}" for k in range(5)]}
    pq.write_table(pa.table({**table, "category": [RECORD] * 5, "categories": [[RECORD]] * 5}), tmp_path / "i.parquet")
    status, said = prepare("--items", "i.parquet")
    assert status == 0 and "'category' holds records" in said and "'categories' holds records" in said
    assert items(tmp_path)["p0"]["text"] == "Lamp 0"


def test_a_title_that_is_a_record_is_refused_in_one_line(prepare, tmp_path):
    pq.write_table(pa.table({"item_id": [f"p{k}" for k in range(5)], "title": [RECORD] * 5}), tmp_path / "i.parquet")
    status, said = prepare("--items", "i.parquet")
    assert status == 2 and said.count("\n") == 1
    assert "i.parquet: column title holds Struct" in said and "a title is text, so convert it" in said


@pytest.mark.parametrize("price", ["$12.99", "12,99 €", "EUR 12.99", "US$ 12.99", "12.99"])
def test_conditions_read_prices(prepare, tmp_path, price):
    prices = [price, "$1,299.00", "", "from $5", "$7 - $30"]
    rows = [f'p{k},t,"{cell}"\n' for k, cell in enumerate(prices)]
    (tmp_path / "items.csv").write_text("item_id,title,price\n" + "".join(rows))
    status, said = prepare("--items", "items.csv")
    assert status == 0 and "read from text as numbers: price" in said
    catalog = Catalog.load(tmp_path / "cat")
    assert sorted(catalog.where("price <= 20")) == ["p0", "p3", "p4"]
    assert catalog.where("price > 1000") == ["p1"] and catalog.where("price IS NULL") == ["p2"]


def test_markup_and_terminal_codes_reach_neither_titles_nor_texts(prepare, tmp_path):
    titles = ["Tom &amp;amp; Jerry", "\x1b[31mRed\x1b[0m", "A<br>B", "line\nforged", "nan"]
    pl.DataFrame({"item_id": [f"p{k}" for k in range(5)], "title": titles}).write_csv(tmp_path / "items.csv")
    status, said = prepare("--items", "items.csv")
    assert status == 0 and "invisible characters: 3 cells (title 3)" in said and "a word such as 'nan'" in said
    found = {item: (row["title"], row["text"]) for item, row in items(tmp_path).items()}
    assert found == {
        "p0": ("Tom & Jerry", "Tom & Jerry"),
        "p1": ("Red", "Red"),
        "p2": ("A B", "A B"),
        "p3": ("line forged", "line forged"),
        "p4": (None, ""),
    }


def test_public_files_need_no_options(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = list(zip(USERS, ITEMS, range(len(USERS)), strict=True))
    reviews = [{"user_id": u, "parent_asin": i, "timestamp": 1588687728923 + t, "rating": 5.0} for u, i, t in rows]
    numbers = [(u[1:], i[1:], 1_500_000_000 + t) for u, i, t in rows]
    histories = {user: [int(item) for item in items] for user, items in LOG}
    files: dict[str, str | bytes] = {
        "reviews.jsonl": "".join(json.dumps(row) + "\n" for row in reviews),
        "ratings.dat": "".join(f"{u}::{i}::5::{t}\n" for u, i, t in numbers),
        "d.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        + "".join(f"{u}\t{i}\t5\t{t}\n" for u, i, t in numbers),
        "checkins.txt": "".join(f"{u}\t2010-10-19T23:55:{int(t) % 60:02d}Z\t30.2\t-97.7\t{i}\n" for u, i, t in numbers),
        "seq.txt": "".join(f"{user[1:]} {' '.join(items)}\n" for user, items in LOG),
        "inter.json": json.dumps(histories),
        "log.tsv": "user_id\tparent_asin\ttimestamp\n" + "".join(f"{u}\t{i}\t{t}\n" for u, i, t in rows),
    }
    files["reviews.jsonl.gz"] = gzip.compress(str(files["reviews.jsonl"]).encode())
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        flags = ["prepare", "--interactions", name, "--k-core", "0", "--out", f"cat-{name}", "--json"]
        assert main(flags) == 0, (name, capsys.readouterr().err)
        answer = json.loads(capsys.readouterr().out)
        assert (answer["users"], answer["items"], answer["interactions"]) == (3, 5, 12), name
