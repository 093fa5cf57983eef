"""GET /health, /ready, /version and /metrics: answered without the model."""

from __future__ import annotations

from fastapi import APIRouter, Response

from llmrec import __version__
from llmrec.serve.refusals import Refusal
from llmrec.serve.service import Service


def router(service: Service) -> APIRouter:
    """Make the routes of a service."""
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """Tell that the process answers."""
        return {"status": "ok"}

    @routes.get("/ready")
    async def ready() -> dict[str, str]:
        """Tell that requests are taken."""
        if service.is_draining:
            raise Refusal(503, "The service is shutting down; ask another one.", retry_after_s=1)
        return {"status": "ready"}

    @routes.get("/version")
    async def version() -> dict[str, object]:
        """Tell what answers."""
        generation = service.generation
        return {
            "llmrec": __version__,
            "generation": generation.number,
            "model": generation.model_sha256,
            "sid_table": generation.sid_table_sha256,
            "items": generation.recommender.table.num_items,
        }

    @routes.get("/metrics")
    async def metrics() -> Response:
        """Give the metrics in the text format of Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return routes
