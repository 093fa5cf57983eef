"""GET /v1/items and /v1/catalog: titles to choose from, and what the catalogue can be filtered by."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from llmrec.serve.messages import ErrorAnswer, ItemId
from llmrec.serve.page.messages import CatalogAnswer, ItemsAnswer
from llmrec.serve.refusals import documented
from llmrec.serve.service import Service

MOST_FOUND, MOST_GIVEN, LONGEST_QUERY = 50, 100, 200


def router(service: Service) -> APIRouter:
    """Make the routes of a service; their functions are run beside the event loop, as they read all titles."""
    refused = documented(ErrorAnswer, 400, 422)  # 400: the address is too long
    routes = APIRouter(prefix="/v1", tags=["items"], responses=refused)

    @routes.get("/items", response_model=ItemsAnswer)
    def items(
        item_id: Annotated[
            list[ItemId],
            Query(max_length=MOST_GIVEN, default_factory=list, description="Items to describe, in place of a search."),
        ],
        query: Annotated[str, Query(max_length=LONGEST_QUERY, description="Words of a title, or an item_id.")] = "",
        limit: Annotated[int, Query(ge=1, le=MOST_FOUND, description="Largest number of items.")] = 10,
    ) -> object:
        """Find items by their titles, the most popular first, or describe given ones."""
        index = service.generation.items
        return {"items": index.describe(item_id or index.search(query, limit))}

    @routes.get("/catalog", response_model=CatalogAnswer)
    def catalog() -> object:
        """Describe what the items can be filtered and ranked by."""
        generation = service.generation
        index = generation.items
        return {
            "items": generation.num_shown,
            "has_titles": index.catalog is not None,
            "ranks": index.ranks,
            "columns": index.columns,
            "popularity": index.popularity,
            "max_k": service.limits.max_k,
            "max_history": service.limits.max_history,
        }

    return routes
