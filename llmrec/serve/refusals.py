"""Refusals: answers without items, as {"error": {...}} with one sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    409: "conflict",
    411: "length_required",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid",
    429: "busy",
    431: "headers_too_large",
    500: "internal",
    503: "unavailable",
    504: "deadline",
}


class Answer(NamedTuple):
    """Status, headers and body of an answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class Refusal(Exception):
    """An answer other than 200.

    Args:
        status: HTTP status.
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
        error = {"code": CODES.get(self.status, "error"), "message": self.message}
        return Answer(self.status, {"Content-Type": "application/json", **self.headers}, encoded({"error": error}))


def encoded(value: object) -> bytes:
    """JSON of a value; NaN and infinity, which JSON lacks, are refused."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")
