"""POST /v1/recommend: items for one user, or for each of a list."""

from __future__ import annotations

from fastapi import APIRouter, Response

from llmrec.serve.messages import Recommendation, Request
from llmrec.serve.refusals import Refusal, encoded
from llmrec.serve.service import Service


def router(service: Service) -> APIRouter:
    """Make the route of a service."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/recommend", response_model=Recommendation | list[Recommendation])
    async def recommend(body: Request | list[Request]) -> Response:
        """Recommend the most likely next items."""
        requests = body if isinstance(body, list) else [body]
        if not requests:
            raise Refusal(422, "the list of requests is empty; give at least one.")
        generation, answers = await service.recommend(requests)
        found = [
            {
                "items": generation.described_items(item_ids, scores),
                "unknown": unknown,
                "fallback": is_fallback,
                "model": generation.model_sha256,
                "sid_table": generation.sid_table_sha256,
            }
            for item_ids, scores, unknown, is_fallback in zip(
                answers.item_ids, answers.scores, answers.unknown, answers.is_fallback, strict=True
            )
        ]
        return Response(encoded(found if isinstance(body, list) else found[0]), media_type="application/json")

    return routes
