"""The prepare stage through its config and the CLI: what it writes, what it refuses, what it leaves out of training."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from llmrec.cli import main as cli
from llmrec.configs import EvaluateConfig, PrepareConfig
from llmrec.data import catalog_files
from llmrec.data import split as splits
from llmrec.data.catalog import Catalog
from llmrec.runtime.manifest import content_hash, read_manifest
from llmrec.stages import evaluate, prepare
from llmrec.stages.prepare import main


def simulated(out: Path, **options) -> PrepareConfig:
    return PrepareConfig(**{"dataset": "simulated:80x30", "out": str(out), **options})


@pytest.mark.parametrize("split", ["leave_one_out", "temporal"])
def test_catalogue_directory(tmp_path, split):
    result = main(simulated(tmp_path / "catalog", split=split, max_history=4))
    catalog = Catalog.load(result["out"])
    assert catalog.num_items == result["items"]
    for name in ("train", "valid", "test"):
        assert len(catalog.examples(name)) == result[name] > 0
    assert {len(catalog.examples("test").history(i)) for i in range(result["test"])} <= {1, 2, 3, 4}
    assert catalog.items.column_names == ["item_id", "title", "category", "lat", "lon", "text"]
    log = pq.read_table(tmp_path / "catalog" / "interactions.parquet")
    assert log.column_names == ["user_id", "item_id", "timestamp", "weight"] and log.num_rows == result["interactions"]


@pytest.mark.parametrize("at_a_time", [1, 7, 100])
def test_examples_are_the_same_in_slices_of_any_size(tmp_path, monkeypatch, at_a_time):
    """Two routes: polars writes them at once. Histories may be empty, and ids of any length."""
    rows = pl.DataFrame({
        "user_id": [f"user {'x' * n}" for n in range(20)],
        "split": ["train", "valid"] * 10,
        "history": [[f"{'é' * (n % 3)}{i}" for i in range(n % 4)] for n in range(20)],
        "target": [str(n) for n in range(20)],
        "position": range(20),
    })  # fmt: skip
    monkeypatch.setattr(catalog_files, "WRITTEN_AT_A_TIME", at_a_time)
    catalog_files.write_examples(tmp_path / "slices.parquet", rows)
    rows.drop("position").write_parquet(tmp_path / "whole.parquet")
    assert pq.read_table(tmp_path / "slices.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))


def test_held_out_items_are_in_no_training_row(tmp_path):
    main(simulated(tmp_path / "catalog"))
    catalog = Catalog.load(tmp_path / "catalog")
    log = pq.read_table(tmp_path / "catalog" / "interactions.parquet").to_pylist()
    whole: dict[str, list[str]] = {}
    for row in sorted(log, key=lambda row: row["timestamp"]):
        whole.setdefault(row["user_id"], []).append(row["item_id"])
    train = catalog.train
    assert len(set(train.user_ids)) == len(train)
    for i, user in enumerate(train.user_ids):
        assert train.sequence(i).tolist() == catalog.item_rows(whole[user][:-2]).tolist()


def test_a_split_that_leaks_leaves_no_catalogue(tmp_path, monkeypatch):
    """Law 1: the stage proves what it splits, whatever made the split."""

    def leaky(interactions, max_history):
        held_out = splits.leave_one_out(interactions, 1000).filter(pl.col("split") != "train")
        copies = held_out.filter(pl.col("split") == "valid").with_columns(pl.lit("train").alias("split"))
        return pl.concat([copies, held_out])

    monkeypatch.setitem(prepare.METHODS, "leave_one_out", leaky)
    with pytest.raises(ValueError, match="have a held-out interaction in a training example"):
        main(simulated(tmp_path / "catalog"))
    assert not (tmp_path / "catalog").exists()


def test_item_rows_are_shuffled_by_the_seed(tmp_path):
    ids = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},t{n}\n" for n in range(40)))
        rows = [f"u{u},i{(u * 7 + step) % 40},{step}\n" for u in range(40) for step in range(6)]
        (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "".join(rows))
        files = {"interactions": str(tmp_path / "log.csv"), "items": str(tmp_path / "items.csv")}
        main(PrepareConfig(out=str(tmp_path / name), seed=seed, **files))
        ids[name] = Catalog.load(tmp_path / name).item_ids
    assert ids["a"] == ids["b"] != ids["c"]
    assert sorted(ids["a"]) == sorted(ids["c"]) != ids["a"]


def test_num_users_keeps_the_core_and_drops_unused_items(tmp_path):
    result = main(simulated(tmp_path / "catalog", num_users=3))
    assert result["users"] == result["test"] == 3
    used = set(pq.read_table(tmp_path / "catalog" / "interactions.parquet")["item_id"].to_pylist())
    assert set(Catalog.load(tmp_path / "catalog").item_ids) == used


def test_cold_items_stay_without_a_core(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "".join(f"u,i{n},{n}\n" for n in range(3)))
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},t\n" for n in range(5)))
    files = {"interactions": str(tmp_path / "log.csv"), "items": str(tmp_path / "items.csv")}
    assert main(PrepareConfig(out=str(tmp_path / "catalog"), k_core=0, **files))["items"] == 5


REFUSED = {
    "no data": ([], "either --dataset"),
    "two sources": (["--dataset", "simulated", "--interactions", "log.csv"], "either --dataset"),
    "items of a known dataset": (["--dataset", "simulated", "--items", "items.csv"], "--items goes with"),
    "bad numbers": (["--dataset", "simulated", "--max-history", "0", "--num-users", "0"], "history is 0.*users is 0"),
    "malformed size": (["--dataset", "simulated:0x5"], "unknown dataset 'simulated:0x5'; did you mean 'simulated:20"),
    "too large": (["--dataset", "simulated:60x10000001"], "at most 10,000,000 users and 10,000,000 items"),
    "half a size": (["--dataset", "simulated:60"], "unknown dataset 'simulated:60'; choose from simulated:2000x500"),
    "size as a flag": (["--simulated-users", "60"], "'simulated_users' in the command line; removed: .*:2000x500"),
    "unknown dataset": (["--dataset", "movietweeting"], "did you mean 'movietweetings'"),
    "empty core": (["--dataset", "simulated:40x20", "--k-core", "500"], "lower --k-core"),
    "nobody to test": (["--dataset", "simulated:40x20", "--split", "temporal", "--num-users", "1"], "leave no"),
    "not published": (["--dataset", "simulated:40x20", "--split", "published"], "has no published split"),
    "absent file": (["--interactions", "absent.csv"], "absent.csv' does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(tmp_path, capsys, case):
    flags, message = REFUSED[case]
    assert cli(["prepare", "--out", str(tmp_path / "catalog"), *flags]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_corrected_file_needs_no_overwrite(tmp_path, capsys):
    log = tmp_path / "log.csv"
    flags = ["prepare", "--interactions", str(log), "--k-core", "0", "--out", str(tmp_path / "catalog"), "--json"]
    log.write_text("user_id,item_id,timestamp\nu,a,1\nu,b,2\nu,c,soon\n")
    assert cli(flags) == 2 and "line 4" in capsys.readouterr().err
    log.write_text("user_id,item_id,timestamp\nu,a,1\nu,b,2\nu,c,3\n")
    assert cli(flags) == 0
    assert json.loads(capsys.readouterr().out)["interactions"] == 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("amazon14-beauty", {"split": "temporal"}, "no times, only the order"),
        ("minionerec-industrial", {}, "--split published --k-core 0"),
    ],
)
def test_known_datasets_refuse_the_wrong_split(data_dir, tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        main(PrepareConfig(dataset=name, out=str(tmp_path / "catalog"), **options))


def test_published_split_is_kept(data_dir, tmp_path):
    options = {"split": "published", "k_core": 0}
    result = main(PrepareConfig(dataset="minionerec-industrial", out=str(tmp_path / "catalog"), **options))
    assert (result["items"], result["valid"], result["test"]) == (3_686, 4_532, 4_533)


def test_movietweetings(data_dir, tmp_path):
    result = main(PrepareConfig(dataset="movietweetings", out=str(tmp_path / "catalog"), split="temporal"))
    assert (result["users"], result["items"], result["interactions"]) == (4_333, 2_414, 68_055)
    catalog = Catalog.load(tmp_path / "catalog")
    assert catalog.titles[catalog.row_of["0109830"]] == "Forrest Gump"


def write_log(path: Path, rows) -> list[str]:
    """A log of three columns, and the flags that read it."""
    lines = (",".join(map(str, row)) for row in rows)
    path.write_text("\n".join(["user_id,item_id,timestamp", *lines, ""]), encoding="utf-8")
    return ["prepare", "--interactions", str(path), "--k-core", "0"]


VISITS = [(f"c{u}", f"p{(u + step) % 5}", 10 * u + step) for u in range(3) for step in range(6)]
REPEATED = {
    "each row twice in a row": [row for row in VISITS for _ in range(2)],
    "the whole log twice": [*VISITS, *VISITS],
    "one row three times": [*VISITS, VISITS[3], VISITS[3]],
    "a tie between the copies": [VISITS[0], ("c0", "p9", 0), VISITS[0], *VISITS[1:]],
}


@pytest.mark.parametrize("case", REPEATED)
def test_exact_repeats_are_dropped_and_said(tmp_path, capsys, case):
    flags = write_log(tmp_path / "log.csv", REPEATED[case])
    copies = len(REPEATED[case]) - len(set(REPEATED[case]))
    assert cli([*flags, "--out", str(tmp_path / "catalog")]) == 0
    shown = capsys.readouterr()
    assert "without exact repeats" in shown.out
    assert f"{copies} of {len(REPEATED[case])} rows" in shown.err and "--duplicates keep" in shown.err
    kept = pl.read_parquet(tmp_path / "catalog" / "interactions.parquet")
    assert kept.height == len(set(REPEATED[case])) and not kept.is_duplicated().any()


def test_exact_repeats_stay_on_request_and_the_consequence_is_said(tmp_path, capsys):
    flags = write_log(tmp_path / "log.csv", REPEATED["each row twice in a row"])
    assert cli([*flags, "--duplicates", "keep", "--out", str(tmp_path / "kept")]) == 0
    assert "and are kept" in capsys.readouterr().err
    assert pl.read_parquet(tmp_path / "kept" / "interactions.parquet").height == 36


def test_the_same_item_at_another_time_is_no_repeat(tmp_path):
    rows = [("c0", "p0", time) for time in range(4)] + [("c1", "p0", 0), ("c1", "p1", 0), ("c1", "p0", 1)]
    flags = write_log(tmp_path / "log.csv", rows)
    assert cli([*flags, "--out", str(tmp_path / "catalog")]) == 0
    assert pl.read_parquet(tmp_path / "catalog" / "interactions.parquet").height == len(rows)


def test_mixed_units_of_time_are_refused_before_anything_is_written(tmp_path, capsys):
    start = 1_588_687_728
    rows = [(f"c{u}", f"p{step}", (start + step) * (1000 if step % 2 else 1)) for u in range(3) for step in range(4)]
    flags = write_log(tmp_path / "log.csv", rows)
    assert cli([*flags, "--out", str(tmp_path / "catalog")]) == 2
    error = capsys.readouterr().err
    assert "log.csv" in error and "6 rows are seconds" in error and "6 rows are milliseconds" in error
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_ids_that_differ_by_a_blank_or_read_like_nothing_are_named(tmp_path, capsys):
    """Ids of joins gone wrong, each of which is an item of its own."""
    items = ["3", "3.0", "p3", "p3 ", " p3"]
    rows = [("c0", item, time) for time, item in enumerate(items)]
    rows += [("nan", item, time) for time, item in enumerate(("nan", "None", "null"))]
    flags = write_log(tmp_path / "log.csv", rows)
    assert cli([*flags, "--out", str(tmp_path / "catalog")]) == 0
    error = capsys.readouterr().err
    for said in ("' p3' and 'p3' and 'p3 '", "'3' and '3.0'", "'nan' in 3 of", "'None' in 1, 'nan' in 1, 'null' in 1"):
        assert said in error


def test_the_report_is_in_the_result_and_its_page_is_no_input(tmp_path, capsys):
    """Law: what only a person reads is in no hash, and its loss stops nobody."""
    out = tmp_path / "catalog"
    command = ["prepare", "--dataset", "simulated:80x30", "--out", str(out)]
    assert cli([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    report = result["report"]
    assert report["steps"][0]["name"] == "read"
    assert report["steps"][-1]["interactions"] == report["behaviour"]["interactions"] == result["interactions"]
    assert report["split"]["test"]["examples"] == result["test"]
    assert set(report["baselines"]["systems"]) == {"popularity", "markov"}
    before = content_hash(out)
    (out / "report.html").unlink()
    Catalog.load(out)
    assert cli([*command, "--json"]) == 0 and json.loads(capsys.readouterr().out) == result
    (out / "report.html").write_text("<p>another page</p>")
    Catalog.load(out)
    assert content_hash(out) == before


def test_the_steps_count_what_each_round_of_the_core_leaves(tmp_path):
    """c is rare; without it u2 has one interaction left, and without u2 item b has one."""
    rows = [("u1", "a", 0), ("u1", "a", 1), ("u1", "b", 2), ("u2", "b", 0), ("u2", "c", 1)]
    rows += [(user, item, 5 + time) for user in ("u3", "u4") for time, item in enumerate("aaaa")]
    flags = write_log(tmp_path / "log.csv", rows)
    assert cli([*flags, "--k-core", "2", "--out", str(tmp_path / "catalog")]) == 0
    steps = read_manifest(tmp_path / "catalog")["counts"]["report"]["steps"]
    assert [tuple(step.values()) for step in steps] == [
        ("read", 4, 3, 13),
        ("2-core, round 1", 4, 2, 12),
        ("2-core, round 2", 3, 2, 11),
        ("2-core, round 3", 3, 1, 10),
    ]


def test_the_baselines_of_the_report_are_those_of_evaluate(tmp_path):
    result = main(simulated(tmp_path / "catalog"))
    options = {"catalog": result["out"], "split": "valid", "baselines": ["popularity", "markov"]}
    metrics = evaluate.main(EvaluateConfig(out=str(tmp_path / "eval"), **options))
    for system, columns in result["report"]["baselines"]["systems"].items():
        for column, found in columns.items():
            for name, estimate in found.items():
                expected = metrics["systems"][system][column]
                assert estimate["mean"] == pytest.approx(expected[name])
                assert [estimate["low"], estimate["high"]] == pytest.approx(expected["intervals"][name])


@pytest.mark.parametrize("name", ["movietweetings", "amazon14-beauty", "foursquare-nyc"])
def test_public_data_holds_no_exact_repeat(data_dir, tmp_path, name):
    """So the default of --duplicates moves none of the published numbers."""
    assert main(PrepareConfig(dataset=name, out=str(tmp_path / "catalog")))["report"]["exact_repeats"]["rows"] == 0


def test_columns_that_are_not_read_are_named_in_the_report(tmp_path):
    """Beside an item file, further columns of the log have no use: the terminal says so, and so do report and page."""
    log, items = tmp_path / "log.csv", tmp_path / "items.csv"
    rows = [f"c{u},p{(u + step) % 5},{step},web,<b>{step}</b>" for u in range(3) for step in range(6)]
    log.write_text("\n".join(["user_id,item_id,timestamp,channel,<i>price</i>", *rows, ""]))
    items.write_text(
        "\n".join(["item_id,title,colour", *(f"p{n},thing {n},{'red' if n else ''}" for n in range(5)), ""])
    )
    out = tmp_path / "catalog"
    report = main(PrepareConfig(out=str(out), interactions=str(log), items=str(items), k_core=0))["report"]
    (note,) = [note for note in report["notes"] if "not read" in note]
    assert "channel" in note and "<i>price</i>" in note
    colour = next(column for column in report["fields"]["columns"] if column["name"] == "colour")
    assert (colour["missing"], colour["different"]) == (1, 1)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "channel" in page and "<i>" not in page and "&lt;i&gt;price" in page and "colour" in page
