"""The HTTP service as an ASGI application."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from llmrec import __version__
from llmrec.configs.serve import ADMIN_TOKEN, API_KEY, Limits
from llmrec.serve.administration import Administration
from llmrec.serve.gate import ADMIN, OPEN, Access, Gate
from llmrec.serve.messages import sentence
from llmrec.serve.refusals import UNFORESEEN, Refusal
from llmrec.serve.routes import catalog, explain, items, page, recommend, state
from llmrec.serve.service import Service


def create_app(service: Service, limits: Limits, access: Access | None = None, admin_dir: str | None = None) -> FastAPI:
    """Make the application.

    Args:
        service: Answers requests.
        limits: Bounds of requests.
        access: Who may ask; everybody may, and nobody may change the catalogue, when left out.
        admin_dir: Directory with what administrators may name.

    Returns:
        Application, to which routers may be added.
    """
    access = access or Access()
    app = FastAPI(
        title="llmrec", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False,
        separate_input_output_schemas=False,
        description="Recommends the items of a catalogue to users, by their histories.",
    )  # fmt: skip
    app.include_router(state.router(service))
    app.include_router(recommend.router(service))
    app.include_router(explain.router(service))
    app.include_router(items.router(service))
    app.include_router(page.router(service))
    app.include_router(catalog.router(Administration(service, admin_dir)))
    app.add_middleware(Gate, service=service, limits=limits, access=access)
    app.add_exception_handler(Refusal, refuse)
    app.add_exception_handler(HTTPException, refuse_route)
    app.add_exception_handler(RequestValidationError, refuse_body)
    app.add_exception_handler(Exception, apologise)
    describe_keys(app, access)
    return app


async def refuse(_: Request, refusal: Any) -> Response:
    """Answer with a refusal."""
    answer = refusal.answer()
    return Response(answer.body, answer.status, answer.headers)


async def refuse_route(request: Request, error: Any) -> Response:
    """Answer to a route or a method that does not exist, or to a body that cannot be parsed."""
    if error.status_code == 400:
        return await refuse(request, Refusal(400, "The body cannot be read as JSON in UTF-8."))
    what = f"{request.method} {request.url.path[:80]}: {str(error.detail).rstrip('.')}."
    return await refuse(request, Refusal(error.status_code, what, error.headers))


async def refuse_body(request: Request, error: Any) -> Response:
    """Answer to a body that is not what it should be."""
    if isinstance(error.body, bytes):  # not read as JSON, because of its header
        kind = request.headers.get("content-type")
        given = "no Content-Type" if kind is None else f"the Content-Type {kind[:80]!r}"
        return await refuse(request, Refusal(422, f"The body has {given}; send JSON as 'application/json'."))
    return await refuse(request, Refusal(422, sentence(error.errors())))


async def apologise(request: Request, _: Exception) -> Response:
    """Answer after an error that was not foreseen; the server logs it."""
    return await refuse(request, Refusal(500, UNFORESEEN))


def describe_keys(app: FastAPI, access: Access) -> None:
    """Say in the OpenAPI description which routes need a key, and which one."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain()
            schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
            for name, variable in (("api_key", API_KEY), ("admin_token", ADMIN_TOKEN)):
                schemes[name] = {"type": "http", "scheme": "bearer", "description": f"Value of {variable}."}
            for path, methods in schema["paths"].items():
                is_admin = path.startswith(ADMIN)
                is_needed = is_admin or (access.api_key is not None and path not in OPEN)
                for operation in methods.values():
                    operation["security"] = [{"admin_token" if is_admin else "api_key": []}] if is_needed else []
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
