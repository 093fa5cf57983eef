"""What the page asks for: titles, the catalogue, filtered recommendations, and reasons that are Recommender's."""

from __future__ import annotations

import dataclasses
import re
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest

from llmrec.configs import ServeConfig
from llmrec.data.catalog import Catalog
from llmrec.serve.gate import Access
from llmrec.serve.generation import Generation
from llmrec.serve.page.item_index import ItemIndex
from llmrec.serve.routes.page import FILES, policy
from tests.conftest import TITLES
from tests.decoding.test_explanation import recommender_of
from tests.serve.conftest import HISTORY, error_of

EMPTY = {name: pa.array([], pa.string()) for name in ("user_id", "split", "history", "target")}
YEARS = [1990 + 2 * row for row in range(12)]
GROUPS = [["fruit"]] * 6 + [["drink", "hot"]] * 3 + [["drink"]] * 3


@pytest.fixture(scope="module")
def columned(generation):
    """The generation of the tests, whose catalogue has columns."""
    items = pa.table(
        {
            "item_id": [f"item-{row}" for row in range(12)], "title": [*TITLES[:11], None], "year": YEARS,
            "groups": GROUPS, "in stock": [True] * 12, "face": [f"https://pictures.test/{r}.png" for r in range(12)],
            "long": ["x" * 300] * 12, "weight": [float("nan")] * 12,
        }
    )  # fmt: skip
    catalog = Catalog(items, pa.table(EMPTY))
    index = ItemIndex(generation.recommender, catalog)
    return dataclasses.replace(generation, catalog=catalog, items=index)


@pytest.fixture
def send(ask, serving, columned):
    """Function that asks a service of that catalogue."""
    service = serving()
    service.generation = columned
    return lambda *request, **options: ask(*request, service=service, **options)


def found(send, query: str, limit: int = 10) -> list[str]:
    answer = send(path=f"/v1/items?query={quote(query)}&limit={limit}", method="GET")
    assert answer.status_code == 200
    return [item["title"] or item["item_id"] for item in answer.json()["items"]]


def test_titles_are_found_by_their_words(send, columned):
    assert set(found(send, "plum")) == {"blue plum", "red plum"}
    assert found(send, "TÉA bla") == ["black tea"]
    assert found(send, "apple juice")[0] == "apple juice"
    assert found(send, "green")[0].startswith("green") and set(found(send, "green")) == {"green apple", "green tea"}
    assert found(send, "item-3")[0] == "blue plum"
    assert found(send, "item-11") == ["item-11"]  # it has no title
    assert found(send, "mauve") == found(send, "%") == found(send, "apple.*") == []


def test_titles_that_begin_with_the_query_come_first_and_then_the_popular_ones(send, columned):
    counts = columned.recommender.record.train_counts
    begin, others = [0, 4], []
    assert set(found(send, "red")) == {TITLES[row] for row in begin}
    assert found(send, "red") == [TITLES[row] for row in sorted(begin, key=lambda row: -counts[row])] + others
    popular = [TITLES[row] if row < 11 else "item-11" for row in np.argsort(-counts, kind="stable")]
    assert found(send, "", limit=4) == popular[:4]


def test_an_item_is_described(send, columned):
    (item,) = send(path="/v1/items?item_id=item-5&item_id=mauve", method="GET").json()["items"]
    assert item["title"] == TITLES[5] and item["sid"] == ["<a_1>", "<b_0>", "<c_0>"] and item["picture"] is None
    assert item["popularity"] == columned.recommender.record.train_counts[5]
    assert item["fields"]["year"] == YEARS[5] and item["fields"]["groups"] == ["fruit"]
    assert item["fields"]["long"] == "x" * 199 + "…"
    assert "weight" not in item["fields"], "NaN is no JSON"


def test_pictures_are_shown_if_the_operator_wants_them(columned, generation):
    index = ItemIndex(columned.recommender, columned.catalog, "face")
    assert index.describe(["item-3"])[0]["picture"] == "https://pictures.test/3.png"
    assert "face" not in index.describe(["item-3"])[0]["fields"] and "face" not in [c["name"] for c in index.columns]
    items = columned.catalog.items.set_column(1, "title", pa.array(["javascript:alert(1)"] * 12))
    hostile = ItemIndex(columned.recommender, Catalog(items, pa.table(EMPTY)), "title")
    assert hostile.describe(["item-3"])[0]["picture"] is None
    with pytest.raises(ValueError, match="pictures is 'nose', but the catalogue has the columns"):
        ItemIndex(columned.recommender, columned.catalog, "nose")
    assert "img-src 'self';" in policy(False) and "https:" in policy(True)
    assert policy(False).endswith("frame-ancestors 'none'")
    assert policy(False, "https://huggingface.co").endswith("frame-ancestors https://huggingface.co")


@pytest.mark.parametrize("site", ["huggingface.co", "https://a b", "https://a; script-src *", "https://a/b", "*"])
def test_a_site_that_may_frame_the_page_is_one_and_adds_nothing_to_the_policy(site):
    with pytest.raises(ValueError, match=r"framed_by is .* give a site without a path"):
        ServeConfig(model="m", framed_by=site)


def test_the_catalogue_is_described(send, columned):
    answer = send(path="/v1/catalog", method="GET").json()
    assert (answer["items"], answer["has_titles"], answer["ranks"]) == (12, True, ["sid"])
    kinds = {column["name"]: column for column in answer["columns"]}
    assert (kinds["year"]["least"], kinds["year"]["most"]) == (1990, 2012)
    assert kinds["groups"]["kind"] == "list" and kinds["groups"]["values"][0] in ("fruit", "drink")
    assert kinds["in stock"]["kind"] == "boolean" and kinds["long"]["values"] == [] and kinds["weight"]["least"] is None
    counts = np.sort(columned.recommender.record.train_counts)
    assert [each["interactions"] for each in answer["popularity"]] == [counts[5], counts[9], counts[10]]


def test_without_a_catalogue_items_are_found_by_their_ids(generation, send, serving, ask):
    service = serving()
    bare = ItemIndex(generation.recommender, None)
    service.generation = dataclasses.replace(generation, catalog=None, items=bare)
    answer = ask(path="/v1/items?query=item-1&limit=3", method="GET", service=service).json()
    assert answer["items"][0]["item_id"] == "item-1" and answer["items"][0]["title"] is None
    described = ask(path="/v1/catalog", method="GET", service=service).json()
    assert described["columns"] == [] and described["has_titles"] is False
    refused = ask({"history": HISTORY, "where": ["year > 2000"]}, service=service)
    assert refused.status_code == 422 and "start the service with --catalog" in error_of(refused)


def recommended(send, **request) -> list[str]:
    answer = send({"history": HISTORY, "k": 12, **request})
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


def test_recommendations_meet_conditions(send, columned):
    everything = recommended(send)
    late = recommended(send, where=["year >= 2000", "array_contains(groups, 'drink')"])
    assert late == [item_id for item_id in everything if int(item_id[5:]) >= 6] and len(late) == 6
    assert recommended(send, where=["year >= 2000"], allow=["item-3", "item-7"]) == ["item-7"]
    assert recommended(send, where=["year > 3000"]) == []
    counts = columned.recommender.record.train_counts
    most = int(np.median(counts))
    assert recommended(send, max_popularity=most) == [i for i in everything if counts[int(i[5:])] <= most]


def test_a_request_chooses_the_scores(sid_table, serving, ask):
    """One model with item rows ranks by each of its scores, as a Recommender of that rank does."""
    ranked = {rank: recommender_of(sid_table, rank=rank, has_rows=True) for rank in ("sid", "items", "mixture")}
    service, own = serving(), ranked["mixture"]
    service.generation = Generation(ServeConfig(model="m"), own, ItemIndex(own, None), "0" * 64)
    described = ask(path="/v1/catalog", method="GET", service=service).json()
    assert described["ranks"] == ["mixture", "items", "sid"]
    for rank in ("items", "sid", None, "mixture", "items"):
        answer = ask({"history": HISTORY, "k": 5, "rank": rank}, service=service).json()
        item_ids, scores = ranked[rank or "mixture"].recommend([HISTORY], k=5)
        assert [item["item_id"] for item in answer["items"]] == item_ids[0]
        assert [item["score"] for item in answer["items"]] == pytest.approx(scores[0], abs=1e-5)
    several = ask([{"history": HISTORY, "rank": rank} for rank in ranked], service=service).json()
    assert [[i["item_id"] for i in one["items"]] for one in several] == [
        recommender.recommend([HISTORY])[0][0] for recommender in ranked.values()
    ]


def test_users_of_one_request_may_have_different_conditions(send):
    lists = [{"history": HISTORY, "k": 12, "where": [f"year >= {year}"]} for year in (1990, 2000, 2010)]
    answers = send(lists).json()
    assert [len(answer["items"]) for answer in answers] == [10, 7, 2]
    refused = send([{"history": HISTORY, "where": [f"year >= {year}"]} for year in range(17)])
    assert refused.status_code == 422 and "17 different filters; at most 16" in error_of(refused)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"where": ["price < 3"]}, "unknown column 'price'"),
        ({"where": ["year > (SELECT 1)"]}, "cannot stand here|is not a function|unknown column"),
        ({"where": ["("] * 3}, "condition '\\('"),
        ({"where": ["(" * 499]}, "condition"),
        ({"where": ["year > 1" + " + 1" * 120]}, None),
        ({"where": [""]}, "where.0"),
        ({"where": ["x" * 501]}, "where.0"),
        ({"where": ["year > 1"] * 11}, "where"),
        ({"max_popularity": -1}, "max_popularity"),
        ({"max_popularity": 2**60}, "max_popularity"),
        ({"rank": "ground"}, "rank"),
        ({"rank": "items"}, "has no item rows, so it ranks by 'sid' only"),
    ],
)
@pytest.mark.parametrize("route", ["recommend", "explain"])
def test_bounds_of_filters(send, route, change, message):
    body = {"history": HISTORY, **change, **({"item_id": "item-5"} if route == "explain" else {})}
    answer = send(body, path=f"/v1/{route}")
    if message is None:
        assert answer.status_code == 200
    else:
        assert answer.status_code == 422
        assert re.search(message, error_of(answer))


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=51", "limit=x", f"query={'x' * 201}", "item_id=", f"item_id={'x' * 257}",
     "&".join(["item_id=a"] * 101)],
)  # fmt: skip
def test_bounds_of_a_search(send, query):
    assert send(path=f"/v1/items?{query}", method="GET").status_code == 422


def test_reasons_are_those_of_the_recommender(send, columned):
    body = {"history": [*HISTORY, "nobody-knows"], "item_id": "item-5", "num_branches": 2, "k": 3}
    answer = send(body, path="/v1/explain").json()
    why = columned.recommender.explain(HISTORY, "item-5", num_branches=2)
    assert answer["scores"] == why.scores and answer["rank"] == "sid" and answer["title"] == TITLES[5]
    assert [one["changes"] for one in answer["history"]] == [one.changes for one in why.history]
    assert [one["title"] for one in answer["history"]] == [TITLES[1], TITLES[2]]
    for given, fork in zip(answer["path"], why.path, strict=True):
        assert given["mass"] == fork.mass and given["more_probability"] == fork.more_probability
        for one, branch in zip([given["chosen"], *given["others"]], [fork.chosen, *fork.others], strict=True):
            assert (one["token"], one["probability"], one["num_items"]) == (
                branch.token, branch.probability, branch.num_items
            )  # fmt: skip
            assert [example["item_id"] for example in one["examples"]] == branch.examples
    assert answer["model"] == columned.model_sha256 and answer["sid_table"] == columned.sid_table_sha256


def test_reasons_know_the_filters(send):
    body = {"history": HISTORY, "item_id": "item-8", "where": ["array_contains(groups, 'hot')"]}
    path = send(body, path="/v1/explain").json()["path"]
    assert path[0]["chosen"]["num_items"] == 2  # items 7 and 8
    refused = send({**body, "item_id": "item-3"}, path="/v1/explain")
    assert refused.status_code == 422 and "'item-3' is excluded, or not allowed" in error_of(refused)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history": []}, "popular items are recommended to this user"),
        ({"history": ["nobody-knows"]}, "popular items are recommended to this user"),
        ({"item_id": "item-1"}, "is excluded, as it is in the history"),
        ({"item_id": "mauve"}, "does not know"),
        ({"item_id": None}, "item_id"),
        ({"num_branches": 21}, "num_branches"),
        ({"history": ["x"] * 1001}, "history"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_what_cannot_be_explained_is_refused(send, change, message):
    answer = send({"history": HISTORY, "item_id": "item-5", **change}, path="/v1/explain")
    assert answer.status_code == 422 and message in error_of(answer)


def test_the_page_loads_nothing_from_elsewhere(send):
    for path, (_, media_type) in FILES.items():
        answer = send(path=path, method="GET")
        assert answer.status_code == 200 and answer.headers["content-type"] == media_type
        rules = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert rules.pop("img-src") == "'self'"
        assert set(rules.values()) == {"'self'", "'none'"} and rules["default-src"] == "'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        addresses = answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in addresses and "https:" not in addresses and "innerHTML" not in answer.text
    html = send(path="/", method="GET").text
    assert "<script>" not in html and "style=" not in html and " onclick" not in html


def test_the_page_needs_no_key_and_its_data_do(ask):
    access = Access(api_key="secret")
    assert [ask(path=path, method="GET", access=access).status_code for path in FILES] == [200] * len(FILES)
    for path in ("/v1/items", "/v1/catalog"):
        assert ask(path=path, method="GET", access=access).status_code == 401
    assert ask({"history": HISTORY, "item_id": "item-5"}, path="/v1/explain", access=access).status_code == 401
