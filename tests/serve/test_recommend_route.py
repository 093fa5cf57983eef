"""POST /v1/recommend answers as `Recommender` does."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import TITLES
from tests.serve.conftest import HISTORY, error_of


def items_of(answer: dict) -> tuple[list[str], list[float]]:
    return [item["item_id"] for item in answer["items"]], [item["score"] for item in answer["items"]]


def test_an_answer_is_that_of_the_recommender(ask, generation):
    answer = ask({"history": [*HISTORY, "nobody-knows"], "k": 3}).json()
    items, scores = generation.recommender.recommend([HISTORY], k=3)
    assert items_of(answer) == (items[0], scores[0])
    assert [item["title"] for item in answer["items"]] == [TITLES[int(i.removeprefix("item-"))] for i in items[0]]
    assert answer["unknown"] == ["nobody-knows"] and answer["fallback"] is False
    assert answer["model"] == generation.model_sha256 and answer["sid_table"] == generation.sid_table_sha256


@pytest.mark.parametrize(
    "options",
    [
        {"exclude": None},
        {"exclude": ["item-5", "item-7"]},
        {"allow": ["item-3", "item-9"], "k": 5},
        {"allow": [], "k": 5},
        {"min_new": 1, "k": 4},
        {"num_beams": 7, "k": 6},
        {"history": []},
        {"history": ["unknown"], "exclude": ["item-5"], "k": 12},
    ],
)
def test_every_word_means_what_it_means_there(ask, generation, options):
    body = {"history": HISTORY, **options}
    given = {name: value for name, value in body.items() if name not in ("history", "allow")}
    allow = [body["allow"]] if body.get("allow") is not None else None
    items, scores = generation.recommender.recommend([body["history"]], allow=allow, unknown="skip", **given)
    assert items_of(ask(body).json()) == (items[0], scores[0])


def test_a_list_is_answered_like_one_batch_of_the_recommender(ask, generation):
    histories = [[f"item-{i}", f"item-{(i * 5 + 1) % 12}"][: 1 + i % 2] for i in range(9)]
    answers = ask([{"history": history, "k": 4} for history in histories]).json()
    items, scores = generation.recommender.recommend(histories, k=4)
    assert [items_of(answer) for answer in answers] == list(zip(items, scores, strict=True))


def test_a_list_may_mix_sizes(ask, generation):
    answers = ask([{"history": HISTORY, "k": k} for k in (2, 5, 2)]).json()
    assert [len(answer["items"]) for answer in answers] == [2, 5, 2]
    assert answers[0] == answers[2]
    items, _ = generation.recommender.recommend([HISTORY], k=5)
    assert items_of(answers[1])[0] == items[0]


def test_requests_at_once_are_a_batch_and_equal_to_it(client, serving, generation, held):
    service = serving(max_batch=16)
    histories = [[f"item-{i % 12}", f"item-{(i * 7) % 12}"] for i in range(10)]

    async def run():
        busy = held(service)
        holding = await busy.hold()
        async with client(service) as connected:
            bodies = [{"history": history, "k": 3 + i % 2} for i, history in enumerate(histories)]
            sent = [asyncio.ensure_future(connected.post("/v1/recommend", json=body)) for body in bodies]
            while service.waiting < len(sent):
                await asyncio.sleep(0.001)
            busy.gone.set()
            await holding
            return [(await each).json() for each in sent]

    answers = asyncio.run(run())
    for k in (3, 4):
        items, scores = generation.recommender.recommend(histories[k - 3 :: 2], k=k)
        assert [items_of(answer) for answer in answers[k - 3 :: 2]] == list(zip(items, scores, strict=True))


def test_unknown_items_are_refused_if_asked_for_and_the_neighbours_of_a_batch_are_not(client, serving):
    service = serving()
    bad = {"history": ["x"], "unknown": "error"}

    async def run():
        async with client(service) as connected:
            posts = [connected.post("/v1/recommend", json=body) for body in (bad, {"history": HISTORY}, [bad, bad])]
            return await asyncio.gather(*posts)

    wrong, right, both = asyncio.run(run())
    assert (wrong.status_code, right.status_code, both.status_code) == (422, 200, 422)
    assert "does not know: ['x']" in error_of(wrong)
    assert error_of(both).startswith("request 0: ") and "request 1: " in error_of(both)


def test_a_batch_that_fails_is_answered_one_by_one(client, serving, generation, monkeypatch, held):
    service, start = serving(), type(generation.recommender.answerer).start
    poisoned = generation.recommender.table.row_of["item-9"]

    def failing(self, asked, size):
        if any(poisoned in rows for rows in asked.histories):
            raise RuntimeError("a kernel failed")
        return start(self, asked, size)

    monkeypatch.setattr(type(generation.recommender.answerer), "start", failing)

    async def run():
        busy = held(service)
        holding = await busy.hold()
        async with client(service) as connected:
            histories = (["item-1"], ["item-9"], ["item-3"])
            sent = [
                asyncio.ensure_future(connected.post("/v1/recommend", json={"history": each})) for each in histories
            ]
            while service.waiting < len(sent):
                await asyncio.sleep(0.001)
            busy.gone.set()
            await holding
            return [await each for each in sent]

    answers = asyncio.run(run())
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert error_of(answers[1]) == "An error that the service did not foresee; its log says more."
