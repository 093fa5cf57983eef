"""`llmrec recommend --users`: a table of users is answered in shards, and equals the answers to a file of users."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.cli import main as llmrec
from llmrec.configs import RecommendConfig
from llmrec.data.catalog import Catalog
from llmrec.data.requests.user_files import UserFiles
from llmrec.runtime import processes
from llmrec.runtime.manifest import verify
from llmrec.sid.catalogs.catalog_record import CatalogRecord
from llmrec.stages import recommend_users
from tests.conftest import TITLES
from tests.support.prepared import run_json, write_catalog

IDS = [f"item-{row}" for row in range(12)]

NUM_USERS = 23


def users_table(num_users: int = NUM_USERS, **more) -> pa.Table:
    """Histories of every length from one to nine, and an id of a type that JSON lacks."""
    histories = [[IDS[(user + step) % 12] for step in range(1 + user % 9)] for user in range(num_users)]
    return pa.table({"user_id": pa.array(range(num_users), pa.uint16()), "history": histories, **more})


@pytest.fixture
def users(tmp_path) -> Path:
    pq.write_table(users_table(), tmp_path / "users.parquet", row_group_size=6)
    return tmp_path / "users.parquet"


def asked(tuned, users, out=None, *more) -> list[str]:
    place = ["--out", out] if out else []
    argv = ["recommend", "--model", tuned, "--users", users, *place, "--shard-size", 5, "--k", 4, "--device", "cpu"]
    return [str(part) for part in (*argv, *more)]


def answers_in(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("part-*.parquet"))])


def bytes_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("part-*.parquet")}


def failed(capsys, argv) -> str:
    capsys.readouterr()
    assert llmrec([str(part) for part in argv]) == 2
    return capsys.readouterr().err.strip()


def as_a_file(capsys, tuned, users, tmp_path, *more) -> pa.Table:
    """What `--input` writes for the same users."""
    argv = ["recommend", "--model", tuned, "--input", users, "--out", tmp_path / "all.parquet", "--k", 4]
    run_json(capsys, *argv, "--device", "cpu", *more)
    return pq.read_table(tmp_path / "all.parquet")


def test_shards_hold_the_answers_of_a_file(tuned, users, tmp_path, capsys):
    result = run_json(capsys, *asked(tuned, users, tmp_path / "recs"))
    counts = {"users": NUM_USERS, "fallback": 0, "unknown": 0, "no_items": 0}
    assert result == {"out": str(tmp_path / "recs"), "counts": counts}
    verify(tmp_path / "recs", "recommend")
    assert sorted(bytes_of(tmp_path / "recs")) == [f"part-0000{shard}.parquet" for shard in range(5)]
    assert [pq.read_metadata(tmp_path / "recs" / f"part-0000{shard}.parquet").num_rows for shard in (0, 4)] == [5, 3]
    found, expected = answers_in(tmp_path / "recs"), as_a_file(capsys, tuned, users, tmp_path)
    assert found.column_names == expected.column_names and found.schema.field("user_id").type == pa.uint16()
    same_answers(found, expected)
    assert not (tmp_path / "recs" / "scratch").exists()


def same_answers(found: pa.Table, expected: pa.Table) -> None:
    """Everything but the last digits of scores, as the batches differ."""
    for name in found.column_names:
        if name == "items":
            continue
        assert found[name].to_pylist() == expected[name].to_pylist(), name
    for ours, theirs in zip(found["items"].to_pylist(), expected["items"].to_pylist(), strict=True):
        assert [{**item, "score": None} for item in ours] == [{**item, "score": None} for item in theirs]
        assert [item["score"] for item in ours] == pytest.approx([item["score"] for item in theirs], abs=1e-5)
    assert [field.type for field in found.schema][-3:] == [field.type for field in expected.schema][-3:]


def filtered_users() -> pa.Table:
    """Every filter, whole numbers as ids, unknown items, users of whom nothing is known, and carried columns."""
    table = users_table()
    lists = {
        "exclude": [None if user % 3 else [IDS[(user + 3) % 12]] for user in range(NUM_USERS)],
        "allow": [None if user % 4 else IDS[user % 12 : 12 : 2] for user in range(NUM_USERS)],
        "group": [{"a": [user], "b": "x" * user} for user in range(NUM_USERS)],
    }
    history = table["history"].to_pylist()
    history[2], history[3], history[9], history[11] = [], None, ["gone"], [*history[11], "gone", "7"]
    return table.set_column(1, "history", [history]).append_column("exclude", [lists["exclude"]]).append_column(
        "allow", [lists["allow"]]).append_column("group", [lists["group"]])  # fmt: skip


def test_every_option_does_what_it_does_for_a_file(tuned, toy, tmp_path, capsys):
    items = pa.table({"item_id": IDS, "title": TITLES, "text": TITLES, "price": list(range(12))})
    shop = write_catalog(tmp_path / "catalog", items, Catalog.load(toy[0])._split).source
    pq.write_table(filtered_users(), tmp_path / "users.parquet")
    (tmp_path / "sold-out.txt").write_text("item-5\nno-item\n")
    for number, more in enumerate((
        ["--unknown", "skip", "--exclude-seen", "false", "--batch-size", "2"],
        ["--unknown", "skip", "--catalog", shop, "--where", "price <= 9", "--exclude", tmp_path / "sold-out.txt"],
    )):  # fmt: skip
        out = tmp_path / f"recs-{number}"
        assert llmrec(asked(tuned, tmp_path / "users.parquet", out, *more)) == 0
        said = capsys.readouterr().err
        expected = as_a_file(capsys, tuned, tmp_path / "users.parquet", tmp_path, *more)
        found = answers_in(out)
        same_answers(found, expected)
        assert found["fallback"].to_pylist().count("popularity") == 3
        assert "3 unknown items were left out of the histories" in said and "3 of 23 users got the most popular" in said
        assert ("--exclude names 1 unknown item" in said) == (number == 1)
        assert ("got no item, as their filters leave none" in said) == any(
            not row for row in found["items"].to_pylist()
        )


@pytest.mark.parametrize("rank_by", ["sid", "items"])
def test_a_model_without_item_rows_is_refused_for_rank(tuned, users, tmp_path, capsys, rank_by):
    argv = asked(tuned, users, tmp_path / "recs", "--rank", rank_by)
    if rank_by == "sid":
        assert llmrec(argv) == 0
    else:
        assert "item rows" in failed(capsys, argv) or "item_rows" in failed(capsys, argv)


def test_new_items_are_given_places(tuned, users, tmp_path, capsys, monkeypatch):
    counts = np.where(np.arange(12) == 4, 0, 5)
    monkeypatch.setattr(CatalogRecord, "load", lambda *_: CatalogRecord(np.arange(12, dtype=np.uint64), counts))
    run_json(capsys, *asked(tuned, users, tmp_path / "recs", "--min-new", 1, "--exclude-seen", "false"))
    found = answers_in(tmp_path / "recs")["items"].to_pylist()
    assert all("item-4" in [item["item_id"] for item in items] for items in found)
    assert "min_new is 5, more than k = 4" in failed(capsys, asked(tuned, users, tmp_path / "r", "--min-new", 5))


def test_a_directory_is_one_table_and_row_groups_do_not_matter(tuned, users, tmp_path, capsys):
    run_json(capsys, *asked(tuned, users, tmp_path / "one"))
    (tmp_path / "many").mkdir()
    table = users_table()
    for number, (start, stop) in enumerate(((0, 7), (7, 7), (7, 23))):
        part = table.slice(start, stop - start)
        pq.write_table(part, tmp_path / "many" / f"part-{number}.parquet", row_group_size=3)
    (tmp_path / "many" / "_SUCCESS").touch()
    run_json(capsys, *asked(tuned, tmp_path / "many", tmp_path / "recs"))
    assert bytes_of(tmp_path / "recs") == bytes_of(tmp_path / "one")


def test_another_run_is_refused(tuned, users, tmp_path, capsys, monkeypatch):
    out = tmp_path / "recs"
    run_json(capsys, *asked(tuned, users, out))
    monkeypatch.setattr("llmrec.recommender.load_model", lambda *_, **__: pytest.fail("weights were read"))
    run_json(capsys, *asked(tuned, users, out, "--batch-size", 3))  # finished; the speed is no part of the result
    assert "is the result of another run (k was 4, now 5)" in failed(capsys, asked(tuned, users, out, "--k", 5))
    assert "(shard_size was 5, now 6)" in failed(capsys, asked(tuned, users, out, "--shard-size", 6))
    pq.write_table(users_table(9), users)
    assert "its input 'users' has changed" in failed(capsys, asked(tuned, users, out))
    monkeypatch.undo()
    assert run_json(capsys, *asked(tuned, users, out, "--overwrite"))["counts"]["users"] == 9
    shutil.rmtree(out)
    (tmp_path / "gone.txt").write_text("item-1\n")
    run_json(capsys, *asked(tuned, users, out, "--exclude", tmp_path / "gone.txt"))
    (tmp_path / "gone.txt").write_text("item-2\n")
    assert "has changed" in failed(capsys, asked(tuned, users, out, "--exclude", tmp_path / "gone.txt"))


def test_bad_users_are_refused_before_the_weights_are_read(tuned, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("llmrec.recommender.load_model", lambda *_, **__: pytest.fail("weights were read"))
    (tmp_path / "many").mkdir()
    histories = [["item-1"], ["gone"], ["item-2", None], *[["gone"]] * 20]
    pq.write_table(pa.table({"history": [["item-3"]]}), tmp_path / "many" / "a.parquet")
    pq.write_table(pa.table({"history": histories}), tmp_path / "many" / "b.parquet")
    error = failed(capsys, asked(tuned, tmp_path / "many", tmp_path / "recs"))
    place = tmp_path / "many" / "b.parquet"
    assert f"{place}, row 2, \"history\" names items that this checkpoint does not know: ['gone']" in error
    assert f'{place}, row 3, "history" has a null; item_ids are text' in error and "row 12" not in error
    assert "12 more such lists. Its catalogue has 12 items" in error and error.endswith("leaves unknown items out.")
    assert list(tmp_path.iterdir()) == [place.parent]  # nothing holds a corrected run back
    assert "row 3" in failed(capsys, asked(tuned, tmp_path / "many", tmp_path / "recs", "--unknown", "skip"))


def test_processes_share_out_the_check(tmp_path, sid_table, monkeypatch):
    """Each reads every second part; all of them know every problem."""
    histories = [["item-1"], ["gone"], [], ["gone", "gone"], ["item-2"], ["?"]]
    pq.write_table(pa.table({"history": histories, "allow": [["?"]] * 6}), tmp_path / "users.parquet")
    files, parts = UserFiles.find(tmp_path / "users.parquet"), [range(at, at + 1) for at in range(6)]
    config = RecommendConfig(model="m", users="u", out="o", unknown="skip")
    whole, shares = recommend_users.check_users(files, parts, sid_table, config), []
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "gather", lambda values: shares.extend(values) or shares)
    for rank in (0, 1):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        found = recommend_users.check_users(files, parts, sid_table, config)
    assert [counts["cold"] for _, _, counts in shares] == [1, 3] and found == whole == {"cold": 4, "filters": 6}
    with pytest.raises(ValueError, match=r"row 2, .*names items that this checkpoint does not know"):
        recommend_users.check_users(files, parts, sid_table, RecommendConfig(model="m", users="u", out="o"))


def test_options_that_do_not_fit_are_refused_before_the_users_are_read(tuned, users, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(recommend_users, "check_users", lambda *_: pytest.fail("the users were read"))
    out = tmp_path / "recs"
    for argv, says in (
        (asked(tuned, users), "users needs out, the directory for the answers"),
        (asked(tuned, users, out, "--history", "item-1"), "not both or neither"),
        (asked(tuned, users, out, "--exclude", "no-item"), "--exclude names items that this checkpoint does not know"),
        (asked(tuned, users, out, "--exclude", *IDS), "--exclude names all items"),
        (asked(tuned, users, out, "--where", "price > 3"), "--where needs --catalog"),
        (asked(tuned, tmp_path, tmp_path / "recs"), "lies within users"),
        (asked(tuned, users, tmp_path), "holds the input users"),
        (asked(tuned, tmp_path / "none.parquet", out), "none.parquet' does not exist; give a parquet file"),
        (asked("no/model", users, out), "'no/model' is neither a checkpoint directory nor a model"),
        (["recommend", "--model", tuned, "--history", "item-1", "--shard-size", "7"], "only users has this"),
        (["recommend", "--model", tuned, "--history", "item-1", "--overwrite"], "overwrite: only users has this"),
    ):
        assert says in failed(capsys, argv)
        assert not out.exists() and not (tmp_path / "recs.partial").exists()


def test_users_without_a_history_need_counts_of_the_items(tuned, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(CatalogRecord, "load", lambda *_: None)
    pq.write_table(pa.table({"history": [["item-1"], []]}), tmp_path / "users.parquet")
    error = failed(capsys, asked(tuned, tmp_path / "users.parquet", tmp_path / "recs"))
    assert "1 of 2 users have no known item in their history, but the checkpoint does not tell" in error


def test_several_processes_are_for_users_alone(tuned, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = failed(capsys, ["recommend", "--model", str(tuned), "--history", "item-1"])
    assert "2 processes were started; only --users is shared out" in error


def test_the_terminal_says_where_the_answers_are(tuned, users, tmp_path, capsys):
    assert llmrec(asked(tuned, users, tmp_path / "recs")) == 0
    printed = capsys.readouterr()
    assert printed.out == f"23 users answered -> {tmp_path / 'recs'}\n"
    assert "recommend: 23 users in" in printed.err and "users/s" in printed.err
