"""prepare --unknown-items: logs that name items which the item file lacks, in every form in which files come."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from llmrec.cli import main as cli
from llmrec.data.catalog import Catalog
from llmrec.runtime.manifest import read_manifest
from tests.data.intake.public import samples
from tests.data.intake.public.samples import INTERACTIONS, gzip, put

ROWS = [(f"c{user}", f"p{(user + step) % 6}", 100 * user + step) for user in range(4) for step in range(6)]
LISTED = [f"p{item}" for item in range(4)]  # p4 and p5 are unknown, in 8 of 24 rows
LOG = pl.DataFrame(ROWS, schema=["user_id", "item_id", "timestamp"], orient="row")
ITEMS = pl.DataFrame({"item_id": LISTED, "title": [f"Thing {item}" for item in LISTED], "year": range(1990, 1994)})


def csv(folder: Path) -> list[str]:
    LOG.write_csv(folder / "log.csv")
    ITEMS.write_csv(folder / "items.csv")
    return ["--interactions", str(folder / "log.csv"), "--items", str(folder / "items.csv")]


def json_lines(folder: Path) -> list[str]:
    LOG.write_ndjson(folder / "log.jsonl")
    ITEMS.write_ndjson(folder / "items.jsonl")
    return ["--interactions", str(folder / "log.jsonl"), "--items", str(folder / "items.jsonl")]


def parquet(folder: Path) -> list[str]:
    LOG.write_parquet(folder / "log.parquet")
    ITEMS.with_columns(tags=pl.lit(["a", "b"], pl.List(pl.String))).write_parquet(folder / "items.parquet")
    return ["--interactions", str(folder / "log.parquet"), "--items", str(folder / "items.parquet")]


def order_only(folder: Path) -> list[str]:
    files = csv(folder)
    LOG.drop("timestamp").write_csv(folder / "log.csv")
    return [*files, "--order-only"]


def run(folder: Path, files: list[str], *flags: str, k_core: int = 0) -> int:
    return cli(["prepare", *files, "--k-core", str(k_core), "--out", str(folder / "catalog"), *flags])


def histories(folder: Path) -> dict[str, list[str]]:
    log = pl.read_parquet(folder / "catalog" / "interactions.parquet").sort("user_id", "timestamp")
    return dict(log.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())


@pytest.mark.parametrize("form", [csv, json_lines, parquet, order_only])
def test_unknown_items_are_dropped_and_counted(tmp_path, capsys, form):
    assert run(tmp_path, form(tmp_path), "--unknown-items", "drop") == 0
    shown = capsys.readouterr()
    assert "2, such as 'p4'. Their 8 of 24 interactions (33.3%) are dropped." in shown.err
    assert "2 unknown items dropped" in shown.out
    assert histories(tmp_path) == {
        f"c{user}": [item for name, item, _ in ROWS if name == f"c{user}" and item in LISTED] for user in range(4)
    }
    assert sorted(Catalog.load(tmp_path / "catalog").item_ids) == LISTED
    counts = read_manifest(tmp_path / "catalog")["counts"]["report"]
    assert counts["unknown_items"] == {"items": 2, "interactions": 8, "dropped": True, "look_alike": None}
    page = (tmp_path / "catalog" / "report.html").read_text(encoding="utf-8")
    assert "2 unknown items dropped" in page and "Their 8 of 24 interactions" in page


@pytest.mark.parametrize("form", [csv, json_lines, parquet, order_only])
def test_unknown_items_are_kept_without_fields_and_counted(tmp_path, capsys, form):
    assert run(tmp_path, form(tmp_path), "--unknown-items", "keep", "--json") == 0
    shown = capsys.readouterr()
    assert "Their 8 of 24 interactions (33.3%) are kept; these items have no title and no text." in shown.err
    report = json.loads(shown.out)["report"]
    assert [step["name"] for step in report["steps"]] == ["read", "2 unknown items kept"]
    assert report["fields"]["no_title"] == report["fields"]["no_text"] == 2
    items = pl.read_parquet(tmp_path / "catalog" / "items.parquet").sort("item_id")
    assert items["item_id"].to_list() == [*LISTED, "p4", "p5"]
    assert items["title"].to_list()[3:] == ["Thing p3", None, None] and items["text"].to_list()[4:] == ["", ""]
    assert items["year"].to_list() == [1990, 1991, 1992, 1993, None, None]
    assert histories(tmp_path)["c0"] == ["p0", "p1", "p2", "p3", "p4", "p5"]
    assert "2 unknown items kept" in (tmp_path / "catalog" / "report.html").read_text(encoding="utf-8")


def test_the_core_counts_kept_items_as_any_other(tmp_path):
    assert run(tmp_path, csv(tmp_path), "--unknown-items", "keep", k_core=4) == 0
    assert len(Catalog.load(tmp_path / "catalog").item_ids) == 6


@pytest.mark.parametrize("choice", ["keep", "drop"])
def test_complete_files_give_the_same_catalogue_with_and_without_the_option(tmp_path, capsys, choice):
    for name, flags in (("plain", []), ("chosen", ["--unknown-items", choice])):
        folder = tmp_path / name
        folder.mkdir()
        files = csv(folder)
        LOG.filter(pl.col("item_id").is_in(LISTED)).write_csv(folder / "log.csv")
        assert run(folder, files, *flags) == 0
    assert "unknown items" not in capsys.readouterr().out
    for file in ("items", "interactions", "split"):
        plain, chosen = (
            pl.read_parquet(tmp_path / name / "catalog" / f"{file}.parquet") for name in ("plain", "chosen")
        )
        assert plain.equals(chosen)


@pytest.mark.parametrize("layout", ["steam", "yelp", "amazon_2023", "amazon_2014", "lastfm_hetrec"])
def test_public_files_without_some_of_their_items(tmp_path, capsys, layout):
    log, items = getattr(samples, layout)(tmp_path)
    is_packed = items.suffix == ".gz"
    content = gzip.decompress(items.read_bytes()) if is_packed else items.read_bytes()
    lines = content.splitlines(keepends=True)
    lines.pop(3)  # one of eight items; in `artists.dat` a header comes first
    put(items, gzip.compress(b"".join(lines)) if is_packed else b"".join(lines))
    lost = sum(item == (2 if layout == "lastfm_hetrec" else 3) for _, item, *_ in INTERACTIONS)
    files = ["--interactions", str(log), "--items", str(items)]
    assert run(tmp_path, files) == 2
    error = capsys.readouterr().err
    assert f"{lost} rows name an item that" in error and "--unknown-items keep or drop" in error
    assert run(tmp_path, files, "--unknown-items", "drop") == 0
    assert f"Their {lost} of {len(INTERACTIONS)} interactions" in capsys.readouterr().err
    listed = Catalog.load(tmp_path / "catalog").item_ids
    assert len(listed) == 7
    assert run(tmp_path, files, "--unknown-items", "keep", "--overwrite") == 0
    kept = pl.read_parquet(tmp_path / "catalog" / "items.parquet").filter(~pl.col("item_id").is_in(listed))
    assert kept.select("title", "text").rows() == [(None, "")]


ALIKE = {"a blank": ("p3 ", "blanks"), "a decimal point": ("3.0", "number"), "capitals": ("P3", "upper and lower case")}


@pytest.mark.parametrize("case", ALIKE)
def test_ids_in_another_form_are_refused_and_warned_of_when_they_are_dropped(tmp_path, capsys, case):
    unknown, difference = ALIKE[case]
    known = "3" if unknown == "3.0" else "p3"
    rows = [(user, unknown if (user, item) == ("c1", "p3") else item, time) for user, item, time in ROWS]
    items = [*(item for item in LISTED if item != "p3"), known, "p3", "p4", "p5"]
    put(tmp_path / "log.csv", "user_id,item_id,timestamp\n" + "".join(f'{u},"{i}",{t}\n' for u, i, t in rows))
    put(tmp_path / "items.csv", "item_id,title\n" + "".join(f"{item},T\n" for item in dict.fromkeys(items)))
    files = ["--interactions", str(tmp_path / "log.csv"), "--items", str(tmp_path / "items.csv")]
    assert run(tmp_path, files) == 2
    error = capsys.readouterr().err
    for said in (f"'{unknown}' looks like '{known}' there", difference, "in one form in both files", "--unknown-items"):
        assert said in error
    assert run(tmp_path, files, "--unknown-items", "drop") == 0
    assert (
        f"warning: Interactions are dropped although their items may be known: '{unknown}'" in capsys.readouterr().err
    )
    assert run(tmp_path, files, "--unknown-items", "keep", "--overwrite") == 0
    assert "look alike" in capsys.readouterr().err


def test_appended_logs_may_name_items_of_the_catalogue_and_unknown_ones(tmp_path, capsys):
    files = csv(tmp_path)
    LOG.filter(pl.col("item_id").is_in(LISTED)).write_csv(tmp_path / "log.csv")
    assert run(tmp_path, files) == 0
    before = Catalog.load(tmp_path / "catalog").item_ids
    put(tmp_path / "more.csv", "user_id,item_id,timestamp\nc0,p1,900\nc0,new,901\nc1,gone,902\nc1,gone,903\n")
    put(tmp_path / "more-items.csv", "item_id,title\nnew,New\n")
    more = ["--interactions", str(tmp_path / "more.csv"), "--items", str(tmp_path / "more-items.csv")]
    command = ["prepare", "--append-to", str(tmp_path / "catalog"), *more]
    capsys.readouterr()
    assert cli([*command, "--out", str(tmp_path / "refused")]) == 2
    assert "2 rows name an item" in capsys.readouterr().err
    for choice, added in (("keep", ["gone", "new"]), ("drop", ["new"])):
        out = tmp_path / choice
        assert cli([*command, "--unknown-items", choice, "--out", str(out)]) == 0
        error = capsys.readouterr().err
        assert "neither in" in error and "1, such as 'gone'. Their 2 of 4 interactions" in error
        items = Catalog.load(out).item_ids
        assert items[: len(before)] == before and sorted(items[len(before) :]) == added
        steps = read_manifest(out)["counts"]["report"]["steps"]
        assert [step["name"] for step in steps[:2]] == [
            "read",
            f"1 unknown items {'kept' if choice == 'keep' else 'dropped'}",
        ]


def test_the_words_that_the_option_takes(tmp_path, capsys):
    assert run(tmp_path, csv(tmp_path), "--unknown-items", "ignore") == 2
    error = capsys.readouterr().err
    assert "unknown_items" in error.replace("-", "_") and "error" in error and "keep" in error and "drop" in error


def test_ids_of_unknown_items_cannot_write_to_the_terminal(tmp_path, capsys):
    files = csv(tmp_path)
    LOG.with_columns(pl.col("item_id").replace("p4", "\x1b[2Jp4<b>")).write_csv(tmp_path / "log.csv")
    assert run(tmp_path, files, "--unknown-items", "keep") == 0
    assert "\x1b" not in capsys.readouterr().err
    assert "p4<b>" not in (tmp_path / "catalog" / "report.html").read_text(encoding="utf-8")
