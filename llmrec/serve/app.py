"""The HTTP service as an ASGI application."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from llmrec import __version__
from llmrec.configs.serve import Limits
from llmrec.serve.refusals import Refusal
from llmrec.serve.routes import recommend, state
from llmrec.serve.service import Service


def create_app(service: Service, limits: Limits) -> FastAPI:
    """Make the application.

    Args:
        service: Answers requests.
        limits: Bounds of requests.

    Returns:
        Application, to which routers may be added.
    """
    app = FastAPI(title="llmrec", version=__version__, docs_url=None, redoc_url=None)
    app.include_router(state.router(service))
    app.include_router(recommend.router(service))

    @app.exception_handler(Refusal)
    async def refuse(_: Request, refusal: Refusal) -> Response:
        return respond(refusal)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        return respond(
            Refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}.", error.headers)
        )

    @app.exception_handler(RequestValidationError)
    async def refuse_body(_: Request, error: RequestValidationError) -> Response:
        return respond(Refusal(422, sentence(error)))

    return app


def respond(refusal: Refusal) -> Response:
    """Response with a refusal."""
    answer = refusal.answer()
    return Response(answer.body, answer.status, answer.headers)


def sentence(error: RequestValidationError) -> str:
    """One sentence with every problem of a body."""
    problems = [f"{'.'.join(map(str, each['loc'][1:])) or 'the body'}: {each['msg']}" for each in error.errors()]
    return "; ".join(problems[:5]) + "."
