"""GET /health, /ready, /version and /metrics: answered without the model."""

from __future__ import annotations

from fastapi import APIRouter, Response

from llmrec import __version__
from llmrec.serve.generation import Generation
from llmrec.serve.messages import ErrorAnswer, Status, Version
from llmrec.serve.refusals import documented
from llmrec.serve.service import Service

TEXT = "text/plain; version=0.0.4; charset=utf-8"


def router(service: Service) -> APIRouter:
    """Make the routes of a service."""
    routes = APIRouter(tags=["state"], responses=documented(ErrorAnswer))

    @routes.get("/health", response_model=Status)
    async def health() -> Response:
        """Tell that the process lives."""
        return Response(b'{"status":"ok"}', media_type="application/json")

    @routes.get("/ready", response_model=Status, responses=documented(ErrorAnswer, 503))
    async def ready() -> Response:
        """Tell that requests are taken: the model is loaded and warm, and the service is not shutting down."""
        service.check_open()
        return Response(b'{"status":"ready"}', media_type="application/json")

    @routes.get("/version", response_model=Version)
    async def version() -> Version:
        """Tell what answers."""
        return version_of(service.generation)

    @routes.get(
        "/metrics", response_class=Response, responses={200: {"content": {TEXT: {"schema": {"type": "string"}}}}}
    )
    async def metrics() -> Response:
        """Give the metrics in the text format of Prometheus."""
        return Response(service.metrics.text(), headers={"Content-Type": TEXT})

    return routes


def version_of(generation: Generation) -> Version:
    """Description of a generation."""
    return Version(
        llmrec=__version__,
        generation=generation.number,
        model=generation.model_sha256,
        sid_table=generation.sid_table_sha256,
        items=generation.num_shown,
    )
