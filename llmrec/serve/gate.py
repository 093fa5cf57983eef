"""Gate: what stands before every route: key, host, size and time of the body, and clients that are gone.

A body is read whole before a route sees the request, so that a slow client holds nothing but its connection. If the
client goes away, its request is cancelled.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmrec.configs.serve import ADMIN_TOKEN, Limits
from llmrec.serve.refusals import Answer, Refusal
from llmrec.serve.service import Service

OPEN = ("/health", "/ready", "/")  # routes without a key; so is everything below OPEN_FOLDER
OPEN_FOLDER = "/page/"
ADMIN = "/v1/catalog:"
PROBES = ("/health", "/ready")  # for load balancers, some of which ask by HTTP/1.0 and name no host
GONE = 499  # in the metrics, as nginx says of a client that did not wait


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        api_key: Key of all routes but the open ones; None lets everybody ask.
        admin_token: Key of the routes that change the catalogue; None turns them off.
        hosts: Names that a Host header may have; None for any. Without a key this keeps pages of other sites, whose
            names can be made to point to this machine, from asking. A service with them listens on loopback alone.
    """

    api_key: str | None = None
    admin_token: str | None = None
    hosts: Collection[str] | None = None

    def check(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Refuse whoever may not ask.

        Raises:
            Refusal: If the host or the key is wrong.
        """
        host = headers.get(b"host", b"").decode("latin-1").rpartition("]")
        name = host[0].lstrip("[") or host[2].partition(":")[0]
        is_probe = path in PROBES and b"host" not in headers  # browsers always send it
        if self.hosts is not None and name.lower() not in self.hosts and not is_probe:
            raise Refusal(403, f"The Host header is {name[:80]!r}; ask for one of {', '.join(sorted(self.hosts))}.")
        if path.startswith(ADMIN):
            if self.admin_token is None:
                raise Refusal(403, f"Changes of the catalogue are off; start the service with {ADMIN_TOKEN}.")
            self._check_key(self.admin_token, "admin token", headers)
        elif self.api_key is not None and path not in OPEN and not path.startswith(OPEN_FOLDER):
            self._check_key(self.api_key, "API key", headers)

    def _check_key(self, key: str, name: str, headers: dict[bytes, bytes]) -> None:
        given = headers.get(b"authorization", b"")
        if not hmac.compare_digest(given, b"Bearer " + key.encode()):  # takes as long for every wrong key
            raise Refusal(
                401, f"The {name} is missing or wrong; send 'Authorization: Bearer …'.", {"WWW-Authenticate": "Bearer"}
            )


class Gate:
    """ASGI middleware.

    Args:
        app: The application behind it.
        service: Its metrics and its queue.
        limits: Bounds of bodies.
        access: Who may ask.
    """

    def __init__(self, app: ASGIApp, service: Service, limits: Limits, access: Access):
        self.app, self.service, self.limits, self.access = app, service, limits, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), GONE

        async def counting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            headers = dict(scope["headers"])
            self.access.check(scope["path"], headers)
            if scope["method"] == "HEAD":  # the server leaves the body out
                scope = {**scope, "method": "GET"}
            if scope["method"] == "GET":
                await self.app(scope, receive, counting_send)
            else:
                self._check_room(scope["path"], headers)
                body = await self._read(receive)
                await self._run(scope, body, receive, counting_send)
        except Refusal as refusal:
            await send_answer(counting_send, refusal.answer())
        except ClientGone:
            pass
        except Exception:
            status = 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.service.metrics.count_request(route, status, time.perf_counter() - started)

    def _check_room(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Refuse a request before its body is read; the connection stays open if the rest of the body is bounded.

        Raises:
            Refusal: If the body is announced as too large, or there is no place in the queue.
        """
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.limits.max_body_kib * 1024:
            raise self._too_large()
        try:
            self.service.check_room(path)
        except Refusal as refusal:
            if b"transfer-encoding" in headers:
                refusal.headers["Connection"] = "close"
            raise

    def _too_large(self) -> Refusal:
        message = f"The body is larger than {self.limits.max_body_kib} KiB; send less."
        return Refusal(413, message, {"Connection": "close"})

    async def _read(self, receive: Receive) -> bytes:
        most, seconds = self.limits.max_body_kib * 1024, self.limits.receive_s
        body = b""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise self._too_large()
                    if not message.get("more_body"):
                        return body
        except TimeoutError:
            late = f"The body did not arrive within {seconds:g} s; send it at once."
            raise Refusal(408, late, {"Connection": "close"}) from None

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Run the application with a body that was read; cancel it when the client is gone."""
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        never = asyncio.Event()

        async def replay() -> Message:
            if not unread:
                await never.wait()
            return unread.pop()

        answering = asyncio.ensure_future(self.app(scope, replay, send))
        watching = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait((answering, watching), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise ClientGone
            answering.result()
        finally:
            for task in (answering, watching):
                if not task.done():
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task


class ClientGone(Exception):
    """Nobody waits for the answer."""


async def disconnected(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_answer(send: Send, answer: Answer) -> None:
    """Send an answer whole."""
    pairs: Any = {**answer.headers, "Content-Length": str(len(answer.body))}.items()
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
