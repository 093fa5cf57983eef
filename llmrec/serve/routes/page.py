"""GET / and /page/…: one page of HTML, CSS and JavaScript that asks the routes of the service."""

from __future__ import annotations

from importlib import resources

from fastapi import APIRouter, Response

from llmrec.serve.service import Service

FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}

NOBODY = "'none'"


def router(service: Service) -> APIRouter:
    """Make the routes of a service."""
    routes = APIRouter(include_in_schema=False)
    folder = resources.files("llmrec.serve.page")

    def add(path: str, name: str, media_type: str) -> None:
        content = folder.joinpath(name).read_bytes()

        async def serve() -> Response:
            config = service.generation.config
            headers = {
                "Content-Security-Policy": policy(config.pictures is not None, config.framed_by),
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cache-Control": "no-cache",
            }
            return Response(content, media_type=media_type, headers=headers)

        routes.add_api_route(path, serve, methods=["GET"])

    for path, (name, media_type) in FILES.items():
        add(path, name, media_type)
    return routes


def policy(has_pictures: bool, framed_by: str | None = None) -> str:
    """Content-Security-Policy of the page: nothing from anywhere else but what the operator wants.

    Args:
        has_pictures: Pictures may come from anywhere.
        framed_by: Site that may show the page in a frame.
    """
    images = "'self' https: http:" if has_pictures else "'self'"
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src {images}; "
        f"base-uri 'none'; form-action 'none'; frame-ancestors {framed_by or NOBODY}"
    )
