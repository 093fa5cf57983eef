"""prepare --append-to: new files join a catalogue whose item rows, and what models were trained on, stay."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

from llmrec.cli import main as cli
from llmrec.configs import PrepareConfig
from llmrec.data.catalog import Catalog
from llmrec.data.filters.append import joined_items
from llmrec.model.append_items import count_lost_training_pairs
from llmrec.stages.prepare import main

START = 1_600_000_000


def write(path: Path, header: str, rows) -> str:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows), ""]), encoding="utf-8")
    return str(path)


def write_log(path: Path, rows) -> str:
    return write(path, "user_id,item_id,timestamp", rows)


def write_items(path: Path, rows) -> str:
    return write(path, "item_id,title,category,price", rows)


OLD_ITEMS = [(f"i{n}", f"thing {n}", "ab"[n % 2], 10 + n) for n in range(8)]
OLD_LOG = [(f"u{u}", f"i{(u + step) % 8}", START + 100 * step + u) for u in range(12) for step in range(6)]


@pytest.fixture
def old(tmp_path) -> Path:
    files = {
        "interactions": write_log(tmp_path / "log.csv", OLD_LOG),
        "items": write_items(tmp_path / "items.csv", OLD_ITEMS),
    }
    main(PrepareConfig(out=str(tmp_path / "old"), max_history=4, **files))
    return tmp_path / "old"


def append(old: Path, name: str = "new", **options) -> dict:
    return main(PrepareConfig(out=str(old.parent / name), append_to=str(old), **options))


def items_of(path: str | Path) -> pl.DataFrame:
    return pl.read_parquet(Path(path) / "items.parquet")


def test_item_rows_stay_and_new_items_are_kept_whatever_the_core_says(old, capsys):
    log = write_log(old.parent / "more.csv", [("u0", "new-1", START + 900), ("u1", "new-2", START + 901)])
    items = write_items(old.parent / "more-items.csv", [(f"new-{n}", f"fresh {n}", "c", 5) for n in range(4)])
    result = append(old, interactions=log, items=items)
    before, after = Catalog.load(old), Catalog.load(result["out"])
    assert after.item_ids[: before.num_items] == before.item_ids
    assert sorted(after.item_ids[before.num_items :]) == ["new-0", "new-1", "new-2", "new-3"]
    assert "4 of the new ones have fewer than 5 interactions and are kept" in capsys.readouterr().err
    assert result["interactions"] == len(OLD_LOG) + 2 and result["items"] == 12
    assert [step["name"] for step in result["report"]["steps"]] == ["read", "joined with the catalogue"]
    assert "new items follow" in (Path(result["out"]) / "report.html").read_text(encoding="utf-8")


def test_what_was_trained_on_is_still_training_data(old):
    """Law 1 across an append: no training interaction of the old split is held out in the new one."""
    log = [(f"u{u}", f"i{(3 * u + step) % 8}", START + 50 * step) for u in range(12) for step in range(9)]
    result = append(old, interactions=write_log(old.parent / "more.csv", log))
    assert count_lost_training_pairs(Catalog.load(old), Catalog.load(result["out"])) == 0


def test_a_whole_new_export_joins_like_its_new_rows_alone(old):
    more = [("u0", "new-1", START + 900), ("u3", "i1", START + 950)]
    alone = append(old, "alone", interactions=write_log(old.parent / "more.csv", more))
    whole = append(old, "whole", interactions=write_log(old.parent / "whole.csv", [*OLD_LOG, *more]))
    for name in ("items", "interactions", "split"):
        one, other = (pl.read_parquet(Path(result["out"]) / f"{name}.parquet") for result in (alone, whole))
        assert one.equals(other)
    assert whole["report"]["exact_repeats"] == {"rows": len(OLD_LOG), "dropped": True}


def test_items_alone_may_be_appended_before_anybody_has_them(old):
    items = write_items(old.parent / "more-items.csv", [("new-1", "fresh", "c", 5)])
    result = append(old, items=items)
    assert Catalog.load(result["out"]).item_ids == [*Catalog.load(old).item_ids, "new-1"]
    split = [pl.read_parquet(path / "split.parquet") for path in (old, Path(result["out"]))]
    assert split[0].equals(split[1])


def test_an_item_that_is_given_again_takes_its_new_values_and_keeps_its_row(old):
    items = write_items(old.parent / "more-items.csv", [("i3", "", "z", 99), ("i4", "renamed", "", 1.5)])
    after, before = items_of(append(old, items=items)["out"]), items_of(old)
    assert after["item_id"].equals(before["item_id"])
    of = {row["item_id"]: row for row in after.iter_rows(named=True)}
    assert (of["i3"]["title"], of["i3"]["category"], of["i3"]["price"]) == ("thing 3", "z", 99)
    assert (of["i4"]["title"], of["i4"]["category"], of["i4"]["price"]) == ("renamed", "a", 1.5)
    assert of["i5"]["price"] == 15


def test_new_users_need_the_core_and_known_ones_do_not(old):
    more = [("few", "i0", START + step) for step in range(4)] + [
        ("many", f"i{step}", START + step) for step in range(5)
    ]
    result = append(old, interactions=write_log(old.parent / "more.csv", [*more, ("u0", "i1", START + 999)]))
    users = set(pl.read_parquet(Path(result["out"]) / "interactions.parquet")["user_id"])
    assert "many" in users and "few" not in users and result["users"] == 13
    assert result["report"]["steps"][-1]["name"] == "new users with 5 or more"


def test_a_catalogue_can_grow_twice(old):
    first = append(old, "first", interactions=write_log(old.parent / "a.csv", [("u0", "x", START + 900)]))
    second = main(
        PrepareConfig(
            out=str(old.parent / "second"), append_to=first["out"],
            interactions=write_log(old.parent / "b.csv", [("u1", "y", START + 910)]),
        )
    )  # fmt: skip
    assert Catalog.load(second["out"]).item_ids == [*Catalog.load(old).item_ids, "x", "y"]


def test_a_log_without_times_goes_on_where_the_histories_end(tmp_path):
    rows = [(f"u{u}", f"i{(u + step) % 6}") for u in range(8) for step in range(5)]
    log = write(tmp_path / "log.csv", "user_id,item_id", rows)
    main(PrepareConfig(out=str(tmp_path / "old"), interactions=log, order_only=True))
    more = write(tmp_path / "more.csv", "user_id,item_id", [("u0", "new"), ("u0", "i0"), ("u1", "new")])
    result = append(tmp_path / "old", interactions=more, order_only=True)
    kept = pl.read_parquet(Path(result["out"]) / "interactions.parquet")
    assert kept.filter(pl.col("user_id") == "u0")["item_id"].to_list() == ["i0", "i1", "i2", "i3", "i4", "new", "i0"]
    assert kept.filter(pl.col("user_id") == "u1")["timestamp"].to_list() == [0, 1, 2, 3, 4, 5]


REFUSED = {
    "another split": ({"split": "temporal"}, "split is 'temporal', there 'leave_one_out'. Leave these out"),
    "another core": ({"k_core": 2}, "k_core is 2, there 5"),
    "another history": ({"max_history": 7}, "max_history is 7, there 4"),
    "a sample": ({"num_users": 3}, "--append-to goes with your own files and all users"),
    "another unit": ({"log": [("u0", "i1", START * 1000)]}, "are seconds, those of the new log are milliseconds"),
    "numbers for times": ({"log": [("u0", "i1", 7)]}, "those of the new log are other numbers"),
    "no times": ({"order_only": True}, "has times, the new log has none; leave out --order-only"),
    "a foreign item": ({"items": [("new-9", "x", "c", 1)], "log": [("u0", "i9", START)]}, "names an item that"),
    "a category that is a number": ({"items": [("new-9", "x", 3, 1)]}, "'category' of the new items holds Int64"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_files_and_options_that_do_not_go_together_are_refused(old, case):
    options, message = REFUSED[case]
    options = {"log": [("u0", "i1", START + 900)], **options}
    files = {"interactions": write_log(old.parent / "more.csv", options.pop("log"))}
    if "items" in options:
        files["items"] = write_items(old.parent / "more-items.csv", options.pop("items"))
    with pytest.raises(ValueError, match=re.escape(message)):
        append(old, **files, **options)
    assert not (old.parent / "new").exists() and not (old.parent / "new.partial").exists()


def test_what_cannot_be_appended_to_is_refused(tmp_path, capsys, data_dir):
    log = write_log(tmp_path / "log.csv", OLD_LOG)
    command = ["prepare", "--interactions", log, "--out", str(tmp_path / "new"), "--append-to"]
    assert cli([*command, str(tmp_path / "absent")]) == 2 and "does not exist" in capsys.readouterr().err
    published = {"dataset": "minionerec-industrial", "split": "published", "k_core": 0}
    main(PrepareConfig(out=str(tmp_path / "published"), **published))
    assert cli([*command, str(tmp_path / "published")]) == 2 and "published split" in capsys.readouterr().err
    assert cli(["prepare", "--append-to", "x", "--out", str(tmp_path / "new")]) == 2
    assert "give either --dataset" in capsys.readouterr().err


def test_columns_of_either_side_are_joined():
    old = pl.DataFrame({"item_id": ["b", "a"], "price": [1, 2], "genres": [["x"], ["y"]], "text": ["B", "A"]})
    new = pl.DataFrame({"item_id": ["c", "a"], "price": [1.5, 2.5], "text": ["C", ""], "colour": ["red", "blue"]})
    assert joined_items(old, new, "cat").to_dict(as_series=False) == {
        "item_id": ["b", "a", "c"],
        "price": [1.0, 2.5, 1.5],
        "genres": [["x"], ["y"], None],
        "text": ["B", "A", "C"],
        "colour": [None, "blue", "red"],
    }


def test_a_value_joins_a_column_of_lists_as_a_list_of_itself():
    old = pl.DataFrame({"item_id": ["a"], "genres": [["x", "y"]]})
    new = pl.DataFrame({"item_id": ["b", "c"], "genres": ["x", None]})
    assert joined_items(old, new, "cat")["genres"].to_list() == [["x", "y"], ["x"], None]
