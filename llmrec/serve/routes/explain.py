"""POST /v1/explain: why an item was recommended."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Response

from llmrec.decoding.paths.explanation import Explainer
from llmrec.decoding.paths.forks import Branch
from llmrec.decoding.requests import ItemRequests
from llmrec.serve.generation import Generation
from llmrec.serve.messages import ErrorAnswer
from llmrec.serve.page.messages import ANSWER, EXAMPLE, ExplainAnswer, explain_request
from llmrec.serve.refusals import JSON, Refusal, documented, encoded
from llmrec.serve.service import Service


def router(service: Service) -> APIRouter:
    """Make the route of a service."""
    routes = APIRouter(prefix="/v1", tags=["explain"])
    refused = documented(ErrorAnswer, 400, 408, 413, 422, 429, 503, 504)
    good: dict[int | str, dict[str, Any]] = {200: {"model": ExplainAnswer, "content": {JSON: {"example": ANSWER}}}}

    async def explain(body: Any) -> Response:
        """Explain one recommendation: its path through the semantic IDs, and what each item of the history changes."""
        await service.find_items([body])
        generation, (asked,) = service.generation, service.read([body])
        try:
            answer = await service.submit(lambda _: explained(generation, asked, body.item_id, body.num_branches))
        except ValueError as error:
            raise Refusal(422, str(error)) from None
        return Response(encoded(answer), media_type=JSON)

    explain.__annotations__["body"] = Annotated[
        explain_request(service.limits), Body(openapi_examples={"one item": {"value": EXAMPLE}})
    ]
    routes.add_api_route("/explain", explain, methods=["POST"], responses={**refused, **good})
    return routes


def explained(generation: Generation, asked: ItemRequests, item_id: str, num_branches: int) -> dict[str, object]:
    """Explain an item, as the answer is sent.

    Raises:
        ValueError: If the item could not have been recommended, or the model cannot be explained.
    """
    why = Explainer(generation.recommender.answerer).explain(asked, item_id, num_branches)

    def named(item_id: str) -> dict[str, object]:
        return {"item_id": item_id, "title": generation.titles.get(item_id)}

    def branch(one: Branch) -> dict[str, object]:
        return {**vars(one), "examples": [named(item_id) for item_id in one.examples]}

    return {
        **named(item_id),
        "rank": why.rank,
        "scores": why.scores,
        "path": [
            {**vars(fork), "chosen": branch(fork.chosen), "others": [branch(other) for other in fork.others]}
            for fork in why.path
        ],
        "history": [{**vars(one), **named(one.item_id)} for one in why.history],
        "model": generation.model_sha256,
        "sid_table": generation.sid_table_sha256,
    }
