"""`llmrec prepare` on files as people have them, from the terminal: what it says, and what the catalogue holds."""

from __future__ import annotations

import polars as pl
import pytest

from llmrec.cli import main as cli
from llmrec.data.catalog import Catalog

PAIRS = [("c0", 0, 0), ("c0", 1, 1), ("c0", 2, 2), ("c0", 3, 3), ("c1", 1, 10), ("c1", 2, 11), ("c1", 3, 12)]
PAIRS += [("c2", 2, 20), ("c2", 3, 21), ("c2", 4, 22), ("c2", 0, 23)]


def log(separator: str = ",", **columns) -> str:
    """Log of the pairs; a column is a function of user, item and time."""
    columns = {"timestamp": lambda user, item, time: time, **columns}
    rows = [[user, f"p{item}", *(make(user, item, time) for make in columns.values())] for user, item, time in PAIRS]
    return "".join(separator.join(map(str, row)) + "\n" for row in [["user_id", "item_id", *columns], *rows])


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    """Function that writes files, runs `llmrec prepare` and returns the status, what was said, and the directory."""
    monkeypatch.chdir(tmp_path)

    def run(files: dict[str, str], *flags: str, k_core: int = 0) -> tuple[int, str]:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content, encoding="utf-8")
        command = [
            "prepare",
            "--interactions",
            next(iter(files)),
            "--k-core",
            str(k_core),
            "--out",
            "cat",
            "--overwrite",
        ]
        status = cli([*command, *flags])
        return status, capsys.readouterr().err

    return run


def interactions() -> pl.DataFrame:
    return pl.read_parquet("cat/interactions.parquet")


@pytest.mark.parametrize(("separator", "word"), [("\t", "tabs"), (";", "semicolons"), ("|", "bars")])
def test_other_separators(prepare, separator, word):
    status, said = prepare({"log.csv": log(separator)})
    assert status == 0 and f"log.csv has {word} between its cells." in said
    assert interactions().rows()[4] == ("c1", "p1", 10, 1.0)


def test_a_quote_in_a_name_and_columns_that_are_not_read(prepare):
    status, said = prepare({"log.csv": log("\t", artist=lambda *_: 'Deep "Dish')})
    assert status == 0 and "not read: 'artist'" in said and interactions().height == len(PAIRS)


def test_a_directory_of_parts_and_upper_case_endings(prepare):
    header, *rows = log().splitlines(keepends=True)
    parts = {
        "log/part-0.csv": header + "".join(rows[:5]),
        "log/part-1.csv": header + "".join(rows[5:]),
        "log/_SUCCESS": "",
    }
    assert cli(["prepare", "--interactions", "log", "--out", "x"]) == 2
    for name, content in parts.items():
        prepare({name: content})
    assert cli(["prepare", "--interactions", "log", "--k-core", "0", "--out", "cat", "--overwrite"]) == 0
    of_parts = interactions()
    status, _ = prepare({"LOG.CSV": log()})
    assert status == 0 and interactions().equals(of_parts) and of_parts.height == len(PAIRS)


def test_item_columns_stand_in_the_log(prepare):
    columns = {"title": lambda _, item, __: f"Place {item}", "lat": lambda _, item, __: 30 + item / 10}
    status, said = prepare({"log.csv": log(**columns)})
    assert status == 0 and "columns of the items: title, lat." in said
    items = Catalog.load("cat").items.to_pylist()
    assert {(row["item_id"], row["title"], row["lat"]) for row in items} == {
        (f"p{n}", f"Place {n}", 30 + n / 10) for n in range(5)
    }


def test_a_rating_is_named_read_and_thresholded(prepare):
    files = {"log.csv": log(rating=lambda user, item, time: 2.5 if (user, item) == ("c0", 0) else 4.5)}
    status, said = prepare(files)
    assert status == 0 and "not read: 'rating'. --weight-column rating keeps it" in said
    status, said = prepare(files, "--weight-column", "rating")
    assert status == 0 and "rating" not in said and interactions()["weight"].to_list() == [2.5] + [4.5] * 10
    status, said = prepare(files, "--weight-column", "rating", "--min-weight", "4")
    assert status == 0 and "Dropped 1 of 11 interactions, whose weight is below 4." in said
    assert ("c0", "p0") not in interactions().select("user_id", "item_id").rows() and interactions().height == 10
    assert (
        "No interaction has a weight of at least 5"
        in prepare(files, "--weight-column", "rating", "--min-weight", "5")[1]
    )
    files = {"log.csv": log(rating=lambda user, item, time: "" if item == 1 else 4)}
    status, said = prepare(files, "--weight-column", "rating", "--min-weight", "4")
    assert status == 2 and "2 interactions have no weight" in said


def test_items_that_lose_their_interactions_to_min_weight_leave(prepare):
    files = {"log.csv": log(rating=lambda user, item, time: 1 if item == 4 else 5)}
    assert prepare(files, "--weight-column", "rating", "--min-weight", "3")[0] == 0
    assert sorted(Catalog.load("cat").item_ids) == ["p0", "p1", "p2", "p3"]


def test_a_log_without_times(prepare):
    rows = [line.rsplit(",", 1)[0] for line in log().splitlines()]
    files = {"log.csv": "\n".join(reversed([*rows[1:], rows[0]])) + "\n"}
    status, said = prepare(files)
    assert status == 2 and "give --order-only" in said
    assert prepare(files, "--order-only")[0] == 0
    assert Catalog.load("cat").histories("test")[0] == ["p3", "p2", "p1"]
    status, said = prepare(files, "--order-only", "--split", "temporal")
    assert status == 2 and "nothing can be split by time" in said


ISO = {
    "blanks": lambda *row: f" {1588687728 + row[2]} ",
    "UTC": lambda *row: f"2020-05-05 14:08:{row[2]:02d} UTC",
    "Z in some rows": lambda *row: f"2020-05-05T14:08:{row[2]:02d}{'Z' * (row[2] % 2)}",
    "Z, no seconds of a fraction": lambda *row: f"2020-05-05T14:08:{row[2]:02d}.000Z",
    "another zone": lambda *row: f"2020-05-05T16:08:{row[2]:02d}+02:00",
}


@pytest.mark.parametrize("kind", ISO)
def test_iso_times(prepare, kind):
    status, said = prepare({"log.csv": log(timestamp=ISO[kind])})
    assert status == 0 and interactions()["timestamp"].to_list()[:2] == [
        1588687680 + 48 * (kind == "blanks"),
        1588687681 + 48 * (kind == "blanks"),
    ]
    assert ("without a zone are read as UTC" in said) == (kind == "Z in some rows")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset", "simulated", "--order-only"), "--order-only goes with --interactions"),
        (("--dataset", "simulated", "--separator", ";"), "--separator goes with --interactions"),
        (("--dataset", "simulated", "--weight-column", "x"), "--weight-column goes with --interactions"),
        (("--interactions", "log.csv", "--item-file-column", "x"), "--item-file-column goes with --items"),
        (("--interactions", "log.csv", "--separator", '"'), "--separator is"),
        (("--interactions", "log.csv", "--separator", ""), "give the text between two cells"),
        (("--interactions", "."), "lies in the directory '.', of which it would become a part"),
    ],
)
def test_options_that_do_not_go_together(flags, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli(["prepare", "--out", str(tmp_path / "cat"), *flags]) == 2
    assert message in capsys.readouterr().err
