"""Refusals: answers without items, as {"error": {...}} with one sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

REASONS = {
    400: ("bad_request", "The request is no HTTP or no JSON that can be read."),
    401: ("unauthorized", "The key is missing or wrong."),
    403: ("forbidden", "Changes of the catalogue are off, or the Host header is of another machine."),
    404: ("not_found", "There is no such route."),
    405: ("method_not_allowed", "The route has another method."),
    408: ("timeout", "The body did not arrive in time."),
    409: ("conflict", "Another change of the catalogue is under way, or there is nothing to go back to."),
    413: ("too_large", "The body is larger than is allowed."),
    422: ("invalid", "A value is not what is allowed, or an item is unknown and must not be."),
    429: ("busy", "The queue is full; try again after Retry-After seconds."),
    500: ("internal", "An error that llmrec did not foresee; the log of the service has it."),
    503: ("unavailable", "The service is shutting down, or has too many connections."),
    504: ("deadline", "The answer took too long."),
}
JSON = "application/json"
UNFORESEEN = "An error that the service did not foresee; its log says more."


class Answer(NamedTuple):
    """Status, headers and body of an answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class Refusal(Exception):
    """An answer other than 200.

    Args:
        status: HTTP status, one of REASONS.
        message: One sentence: what is wrong, what was given, what is allowed, what to do next.
        headers: Headers beside that of the content type.
        retry_after_s: Seconds after which to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        headers: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))

    def answer(self) -> Answer:
        """Answer that is sent to the client."""
        code = REASONS.get(self.status, REASONS[400])[0]
        body = encoded({"error": {"code": code, "message": self.message}})
        return Answer(self.status, {"Content-Type": JSON, **self.headers}, body)


def encoded(value: object) -> bytes:
    """JSON of a value; NaN and infinity, which JSON lacks, are refused."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def documented(answer: type, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Description of the refusals of a route, for OpenAPI, with an example of each.

    Args:
        answer: Model of the body.
        statuses: HTTP statuses beside those that every route has.
    """
    described: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, 401, 403, 500}):
        code, meaning = REASONS[status]
        example = {"error": {"code": code, "message": meaning}}
        described[status] = {"model": answer, "description": meaning, "content": {JSON: {"example": example}}}
        if status in (429, 503, 504):
            described[status]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return described
