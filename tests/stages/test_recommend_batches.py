"""Batches of users through the command line, under catalogues that change: nobody loses the answer of another."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.cli import main as llmrec
from llmrec.recommender import Recommender
from llmrec.runtime.manifest import adopt
from llmrec.sid.catalogs.catalog_record import CatalogRecord
from tests.conftest import TITLES
from tests.support.prepared import run_json

IDS = [f"item-{row}" for row in range(12)]
USERS = {"ann": ["item-8", "item-9"], "bob": ["item-1", "item-2", "item-3"], "ça va": ["item-5"]}


def split_of(item_ids) -> pa.Table:
    return pa.table({"user_id": ["u"], "split": ["test"], "history": [item_ids[:2]], "target": [item_ids[2]]})


def shop_of(path, rows, extra=(), title=lambda title: title, users=USERS) -> str:
    """Catalogue of some items of `toy` and others, with prices and a log of users."""
    ids, titles = [IDS[row] for row in rows] + list(extra), [title(TITLES[row]) for row in rows] + list(extra)
    path.mkdir(parents=True)
    items = {"item_id": ids, "title": titles, "price": list(range(len(ids)))}
    pq.write_table(pa.table(items), path / "items.parquet")
    pq.write_table(split_of(ids), path / "split.parquet")
    log = [(user, item) for user, history in users.items() for item in history]
    pq.write_table(
        pa.table({"user_id": [u for u, _ in log], "item_id": [i for _, i in log]}), path / "interactions.parquet"
    )
    adopt(path, "prepare")
    return str(path)


@pytest.fixture(scope="module")
def later(tmp_path_factory) -> str:
    """Items 0 and 10 are gone, `new` has come, and the others cost 0, 1, 2 ..."""
    return shop_of(tmp_path_factory.mktemp("later") / "catalog", [*range(1, 10), 11], ["new"])


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory) -> str:
    return shop_of(tmp_path_factory.mktemp("whole") / "catalog", range(12))


def lines_of(path, *requests, mark=b"") -> str:
    path.write_bytes(mark + "\n".join(map(json.dumps, requests)).encode())
    return str(path)


def items_of(user: dict) -> list[str]:
    return [item["item_id"] for item in user["items"]]


def failed(capsys, *argv) -> str:
    capsys.readouterr()
    assert llmrec([str(part) for part in argv]) == 2
    return capsys.readouterr().err.strip()


def test_one_delisted_item_does_not_cost_the_batch(tuned, tmp_path, capsys):
    requests = [{"user_id": "c1", "history": ["item-8", "item-9"]}, {"user_id": 2, "history": ["item-3", "gone"]},
                {"user_id": None, "history": ["gone"]}, {"history": [], "group": {"a": [1]}}]  # fmt: skip
    given = lines_of(tmp_path / "users.jsonl", *requests, mark=b"\xef\xbb\xbf")
    asked = ("recommend", "--model", tuned, "--input", given, "--k", 2, "--device", "cpu")
    error = failed(capsys, *asked)
    assert "line 2, \"history\" names items that this checkpoint does not know: ['gone']" in error
    assert "line 3" in error and error.endswith("--unknown skip leaves unknown items out.")
    assert llmrec([str(part) for part in (*asked, "--unknown", "skip", "--json")]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    recommender = Recommender.from_pretrained(tuned, device="cpu")
    expected = recommender.recommend([["item-8", "item-9"], ["item-3"], [], []], k=2).item_ids
    assert [items_of(user) for user in result["users"]] == expected
    kept = [{key: value for key, value in user.items() if key != "items"} for user in result["users"]]
    cold = {"fallback": "popularity"}
    assert kept == [requests[0], requests[1] | {"unknown": ["gone"]}, requests[2] | {"unknown": ["gone"]} | cold,
                    requests[3] | cold]  # fmt: skip
    assert result["counts"] == {"users": 4, "fallback": 2, "unknown": 2}
    assert "unknown items were left out of 2 of 4 histories, first ['gone']" in printed.err
    assert "2 of 4 users got the most popular items" in printed.err


def test_answers_are_written_to_a_file(tuned, tmp_path, capsys):
    table = pa.table({"user_id": pa.array([5, 6], pa.int64()), "history": [["item-8"], ["item-3", "item-4"]]})
    pq.write_table(table, tmp_path / "users.parquet")
    asked = ["recommend", "--model", tuned, "--input", tmp_path / "users.parquet", "--k", 3, "--device", "cpu"]
    result = run_json(capsys, *asked, "--out", tmp_path / "answers.parquet")
    assert result == {"out": str(tmp_path / "answers.parquet"), "counts": {"users": 2, "fallback": 0, "unknown": 0}}
    rows = pl.read_parquet(tmp_path / "answers.parquet")
    printed = run_json(capsys, *asked)["users"]
    assert rows["user_id"].to_list() == [5, 6] == [user["user_id"] for user in printed]
    assert [[item["item_id"] for item in items] for items in rows["items"].to_list()] == list(map(items_of, printed))
    run_json(capsys, *asked, "--out", tmp_path / "answers.jsonl")
    assert [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()] == printed
    assert "is the input" in failed(capsys, *asked, "--out", tmp_path / "users.parquet")
    assert "ends in '.csv'" in failed(capsys, *asked, "--out", tmp_path / "answers.csv")


def test_users_of_the_catalogue_are_answered_by_their_id(tuned, whole, capsys):
    asked = ["recommend", "--model", tuned, "--catalog", whole, "--device", "cpu", "--k", 3]
    users = run_json(capsys, *asked, "--user", "bob", "ça va")["users"]
    assert [(user["user_id"], user["history"]) for user in users] == [("bob", USERS["bob"]), ("ça va", USERS["ça va"])]
    recommender = Recommender.from_pretrained(tuned, device="cpu")
    assert [items_of(user) for user in users] == recommender.recommend([USERS["bob"], USERS["ça va"]], k=3).item_ids
    assert "--user names 1 of 2 users that" in failed(capsys, *asked, "--user", "ann", "nobody")
    users = run_json(capsys, *asked, "--user", "ann", "nobody", "--unknown", "skip")["users"]
    assert users[1]["user_id"] == "nobody" and users[1]["fallback"] == "popularity" and len(users[1]["items"]) == 3
    assert "--user is empty" in failed(capsys, *asked, "--user")
    assert "--user needs --catalog" in failed(capsys, "recommend", "--model", tuned, "--user", "ann")
    assert "not both or neither" in failed(capsys, *asked, "--user", "ann", "--history", "item-1")


def test_a_later_catalogue_decides_what_is_shown(tuned, later, capsys):
    asked = ["recommend", "--model", tuned, "--catalog", later, "--device", "cpu", "--k", 12]
    assert llmrec([str(part) for part in (*asked, "--history", "item-9", "--json")]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    (user,) = result["users"]
    assert set(items_of(user)) == set(IDS) - {"item-0", "item-10", "item-9"}
    assert all(item["title"] == TITLES[IDS.index(item["item_id"])] for item in user["items"])
    assert result["counts"]["catalog"] == {"shown": 10, "gone": 2, "new": 1, "retitled": 0}
    assert "2 items (first 'item-0'): not in catalogue" in printed.err and "1 item (first 'new')" in printed.err
    (user,) = run_json(capsys, *asked, "--history", "item-9", "--where", "price >= 8")["users"]
    assert set(items_of(user)) == {"item-11"}  # of item-9, item-11 and new
    (user,) = run_json(capsys, *asked, "--history", "item-10", "--exclude", "item-1", "item-2")["users"]
    assert set(items_of(user)) == set(IDS) - {"item-0", "item-10", "item-1", "item-2"}
    error = failed(capsys, *asked, "--history", "item-9", "--where", "title = 'new'")
    assert "the model knows none of the items that meet --where" in error


@pytest.mark.parametrize(
    "title", [lambda title: f"film about {title}", lambda title: title[::-1]], ids=["other", "reversed"]
)
def test_titles_of_a_stranger_are_never_shown(tuned, tmp_path, capsys, title):
    stranger = shop_of(tmp_path / "films", range(12), title=title)
    for more in ([], ["--where", "price > 3"], ["--exclude", "item-1"]):
        error = failed(capsys, "recommend", "--model", tuned, "--catalog", stranger, "--history", "item-1", *more)
        assert "is of other items than the model knows: of 12 item_ids that both have, 0 have the title" in error


def test_items_are_excluded_by_id_or_by_a_file(tuned, tmp_path, capsys, monkeypatch):
    (tmp_path / "out-of-stock.txt").write_bytes(b"\xef\xbb\xbfitem-1\r\n\r\n item-2 \r\nitem-3")
    asked = ["recommend", "--model", tuned, "--history", "item-9", "--device", "cpu", "--k", 12, "--exclude"]
    (user,) = run_json(capsys, *asked, tmp_path / "out-of-stock.txt", "item-4")["users"]
    assert set(items_of(user)) == set(IDS) - {"item-1", "item-2", "item-3", "item-4", "item-9"}
    (user,) = run_json(capsys, *asked, "item-4", "--exclude-seen", "false")["users"]
    assert set(items_of(user)) == set(IDS) - {"item-4"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "item-4").write_text("item-5\n")  # a known item_id is an item, whatever files there are
    (user,) = run_json(capsys, *asked, "item-4")["users"]
    assert "item-5" in items_of(user) and "item-4" not in items_of(user)
    assert "--exclude names items that this checkpoint does not know: ['nothing']" in failed(capsys, *asked, "nothing")
    assert len(run_json(capsys, *asked, "nothing", "item-4", "--unknown", "skip")["users"][0]["items"]) == 10
    assert "--exclude names all items, so that nothing" in failed(capsys, *asked, *IDS)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    assert "latin.txt' is not UTF-8 (byte 3)" in failed(capsys, *asked, tmp_path / "latin.txt")


def test_own_lists_hold_beside_those_for_all(tuned, tmp_path, capsys):
    own = [{"allow": ["item-1", "item-2", "item-3"]}, {"exclude": ["item-5"]}, {"allow": ["item-1"]}]
    given = lines_of(tmp_path / "u.jsonl", *({"history": ["item-9"], **lists} for lists in own))
    asked = ["recommend", "--model", tuned, "--input", given, "--device", "cpu", "--k", 12, "--exclude", "item-1"]
    result = run_json(capsys, *asked)
    one, two, three = map(set, map(items_of, result["users"]))
    assert one == {"item-2", "item-3"} and two == set(IDS) - {"item-1", "item-5", "item-9"} and three == set()


def test_wrong_requests_are_refused_before_the_weights_are_read(tuned, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("llmrec.recommender.load_model", lambda *_, **__: pytest.fail("weights were read"))
    given = lines_of(tmp_path / "u.jsonl", {"history": ["item-9"]}, {"history": ["gone"], "allow": ["gone"]})
    assert "line 2" in failed(capsys, "recommend", "--model", tuned, "--input", given)


def test_new_items_are_given_places(tuned, capsys, monkeypatch):
    asked = ["recommend", "--model", tuned, "--history", "item-9", "--device", "cpu", "--k", 3]
    before = items_of(run_json(capsys, *asked)["users"][0])
    new = next(row for row in range(12) if IDS[row] not in (*before, "item-9"))
    counts = np.where(np.arange(12) == new, 0, 5)
    monkeypatch.setattr(CatalogRecord, "load", lambda *_: CatalogRecord(np.arange(12, dtype=np.uint64), counts))
    found = items_of(run_json(capsys, *asked, "--min-new", 1)["users"][0])
    assert found == [*before[:2], IDS[new]]
    assert "min_new is 4, more than k = 3" in failed(capsys, *asked, "--min-new", 4)


def test_the_terminal_shows_users_and_what_they_got(tuned, whole, capsys):
    argv = [
        "recommend",
        "--model",
        tuned,
        "--catalog",
        whole,
        "--user",
        "ann",
        "nobody",
        "--unknown",
        "skip",
        "--k",
        "2",
    ]
    assert llmrec([str(part) for part in (*argv, "--device", "cpu")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"user ann, history: {TITLES[8]}, {TITLES[9]}"
    assert lines[3] == "user nobody, history: none, so popular items" and len(lines) == 6
