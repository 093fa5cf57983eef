"""POST /v1/recommend: items for one user, or for each of a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Response

from llmrec.serve.generation import Generation
from llmrec.serve.messages import ANSWER, EXAMPLE, ErrorAnswer, Recommendation, one_or_list
from llmrec.serve.refusals import JSON, documented, encoded
from llmrec.serve.service import Answered, Service

EXAMPLES: dict[str, Any] = {
    "one user": {"value": EXAMPLE},
    "several users": {"value": [EXAMPLE, {"history": [], "k": 1}]},
}
ANSWERS = {"one user": {"value": ANSWER}, "several users": {"value": [ANSWER, {**ANSWER, "fallback": True}]}}


def router(service: Service) -> APIRouter:
    """Make the route of a service."""
    routes = APIRouter(prefix="/v1", tags=["recommend"])
    refused = documented(ErrorAnswer, 400, 408, 413, 422, 429, 503, 504)
    good: dict[int | str, dict[str, Any]] = {
        200: {"model": Recommendation | list[Recommendation], "content": {JSON: {"examples": ANSWERS}}}
    }

    async def recommend(body: Any) -> Response:
        """Recommend the most likely next items of a history, or of each of several."""
        requests = body if isinstance(body, list) else [body]
        generation, answers = await service.recommend(requests)
        found = described(generation, answers)
        return Response(encoded(found if isinstance(body, list) else found[0]), media_type=JSON)

    recommend.__annotations__["body"] = Annotated[one_or_list(service.limits), Body(openapi_examples=EXAMPLES)]
    routes.add_api_route("/recommend", recommend, methods=["POST"], responses={**refused, **good})
    return routes


def described(generation: Generation, answers: Sequence[Answered]) -> list[dict[str, object]]:
    """Answers as they are sent."""
    titles = iter(generation.titles.of([item_id for answer in answers for item_id in answer.item_ids]))
    return [
        {
            "items": [
                {"item_id": item_id, "score": score, "title": next(titles)}
                for item_id, score in zip(answer.item_ids, answer.scores, strict=True)
            ],
            "unknown": answer.unknown,
            "fallback": answer.is_fallback,
            "model": generation.model_sha256,
            "sid_table": generation.sid_table_sha256,
        }
        for answer in answers
    ]
