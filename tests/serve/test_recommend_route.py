"""POST /v1/recommend answers as `Recommender` does."""

from __future__ import annotations

from tests.conftest import TITLES


def test_an_answer_is_that_of_the_recommender(serving, generation):
    import asyncio

    import httpx

    from llmrec.serve.app import create_app

    service = serving()
    body = {"history": ["item-1", "item-2", "nobody-knows"], "k": 3}

    async def post():
        transport = httpx.ASGITransport(create_app(service, service.limits))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/recommend", json=body)

    answer = asyncio.run(post()).json()
    items, scores = generation.recommender.recommend([["item-1", "item-2"]], k=3)
    assert [item["item_id"] for item in answer["items"]] == items[0]
    assert [item["score"] for item in answer["items"]] == scores[0]
    assert [item["title"] for item in answer["items"]] == [TITLES[int(i.removeprefix("item-"))] for i in items[0]]
    assert answer["unknown"] == ["nobody-knows"] and answer["fallback"] is False
    assert answer["model"] == generation.model_sha256 and answer["sid_table"] == generation.sid_table_sha256
