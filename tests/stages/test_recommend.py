"""The recommend stage through the command line: requests in, answers out, restricted by the catalogue's columns."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from llmrec.configs import RecommendConfig
from llmrec.data.catalog import Catalog
from llmrec.recommender import Recommender
from llmrec.stages.recommend import main
from tests.conftest import TITLES
from tests.support.prepared import run_json, write_catalog

IDS = [f"item-{row}" for row in range(12)]


@pytest.fixture(scope="module")
def shop(toy, tmp_path_factory) -> str:
    """The items of `toy` with prices 0 to 11."""
    items = pa.table({"item_id": IDS, "title": TITLES, "text": TITLES, "price": list(range(12))})
    return write_catalog(tmp_path_factory.mktemp("shop") / "catalog", items, Catalog.load(toy[0])._split).source


def write_lines(directory, *requests: dict) -> str:
    path = directory / "users.jsonl"
    path.write_text("\n".join(map(json.dumps, requests)), encoding="utf-8")
    return str(path)


def answered(result: dict) -> list[list[str]]:
    return [[item["item_id"] for item in user["items"]] for user in result["users"]]


def test_answers_of_the_command_are_those_of_the_recommender(tuned, shop, capsys):
    history = ["item-8", "item-9"]
    result = run_json(capsys, "recommend", "--model", tuned, "--history", *history, "--k", 4, "--catalog", shop)
    items, scores = Recommender.from_pretrained(tuned, device="cpu").recommend([history], k=4)
    expected = [
        {"item_id": item_id, "score": pytest.approx(score, abs=1e-3), "title": TITLES[IDS.index(item_id)]}
        for item_id, score in zip(items[0], scores[0], strict=True)
    ]
    titles = [TITLES[IDS.index(item_id)] for item_id in history]
    assert result["users"] == [{"history": history, "history_titles": titles, "items": expected}]


def test_conditions_and_allow_lists_both_hold(tuned, shop, tmp_path, capsys):
    requests = [
        {"history": ["item-1"]},
        {"history": ["item-2"], "allow": ["item-3", "item-6", "item-10"]},
        {"history": ["item-9"], "allow": ["item-11"]},
        {"history": ["item-9"], "allow": []},
        {"history": ["item-6"], "exclude": ["item-7"]},
    ]
    (tmp_path / "users.jsonl").write_text("\n".join(map(json.dumps, requests)))
    result = run_json(
        capsys, "recommend", "--model", tuned, "--input", tmp_path / "users.jsonl", "--k", 12, "--catalog", shop,
        "--where", "price <= 7", "title ILIKE '%e%'", "--device", "cpu",
    )  # fmt: skip
    met = {item_id for row, item_id in enumerate(IDS) if row <= 7 and "e" in TITLES[row]}
    assert [set(items) for items in answered(result)] == [
        met - {"item-1"}, {"item-3", "item-6"} & met, set(), set(), met - {"item-6", "item-7"},
    ]  # fmt: skip


def test_users_without_their_own_list_share_one(tuned, shop, tmp_path, monkeypatch):
    """One object, so that the decoder resolves the filter once."""
    given = []
    recommend = Recommender.recommend

    def recording(self, histories, k, exclude, allow, **options):
        given.extend(allow)
        return recommend(self, histories, k, exclude, allow, **options)

    monkeypatch.setattr(Recommender, "recommend", recording)
    lines = [{"history": ["item-1"]}, {"history": ["item-2"], "allow": ["item-3"]}, {"history": ["item-3"]}]
    options = {"model": str(tuned), "input": write_lines(tmp_path, *lines), "device": "cpu"}
    main(RecommendConfig(**options, catalog=shop, where=["price < 2"]))
    assert given == [["item-0", "item-1"], [], ["item-0", "item-1"]] and given[0] is given[2]
    given.clear()
    main(RecommendConfig(**options))
    assert given == [None, ["item-3"], None]


def test_conditions_in_yaml_are_a_list(tuned, shop, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(
        f"model: {tuned}\ncatalog: {shop}\nhistory: [item-1]\nwhere:\n  - price IN (2, 3)\n  - title ILIKE '%pear%'\n"
    )
    assert answered(run_json(capsys, "recommend", "--config", tmp_path / "run.yaml")) == [["item-2"]]
