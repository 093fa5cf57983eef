"""Server: uvicorn with a clock for slow clients, which finishes what it has taken before it ends."""

from __future__ import annotations

import asyncio
import functools
import sys
from http import HTTPStatus
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llmrec.serve.refusals import Refusal
from llmrec.serve.service import Service

MAX_HEAD = 16_384  # bytes of names and values
KEPT_FILES = 128  # that connections leave to libraries, and to a change of the catalogue


class TimedProtocol(HttpToolsProtocol):
    """HTTP/1.1 whose connections end if the client does not go on sending what it has begun.

    Args:
        receive_s: Seconds for the head of a request, and for a body that is still sent after the answer.
        max_connections: Number of connections beyond which another one is told so and ended.
        options: As uvicorn gives them.
    """

    def __init__(self, *, receive_s: float, max_connections: int, **options: Any):
        super().__init__(**options)
        self.receive_s, self.max_connections = receive_s, max_connections
        self._clock: asyncio.TimerHandle | None = None
        self._head_bytes = 0  # of a head that is not whole yet
        self._is_in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock, or end a connection that is one too many."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            message = f"The service has {self.max_connections} connections already; try again later."
            self._end(Refusal(503, message, retry_after_s=1))
        else:
            self._set_clock()

    def data_received(self, data: bytes) -> None:
        """Stop the clock once the head of a request is there, and refuse a head that does not end."""
        self._head_bytes = 0 if self._is_in_body else self._head_bytes + len(data)
        super().data_received(data)
        if self._waits and not self._is_in_body and self._head_bytes > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response("")
        self._set_clock()

    def on_headers_complete(self) -> None:
        """Take a head, of which the parser bounds nothing.

        Raises:
            ValueError: If it is too large, or does not name one host; the parser makes a 400 of it.
        """
        hosts = 0
        size = len(self.url)
        for name, value in self.headers:
            hosts += name == b"host"
            size += len(name) + len(value)
        if size > MAX_HEAD or hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise ValueError
        self._head_bytes, self._is_in_body = 0, True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Expect the next head."""
        self._is_in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the clock if the client is still sending."""
        super().on_response_complete()
        self._set_clock()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP in the words of all refusals, and end the connection."""
        self._end(Refusal(400, "This is no HTTP/1.1 that can be read, or its head is too large."))

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(exc)
        if self._clock is not None:
            self._clock.cancel()

    def _end(self, refusal: Refusal) -> None:
        """Send a refusal, and end the connection."""
        answer = refusal.answer()
        headers = {**answer.headers, "Content-Length": str(len(answer.body)), "Connection": "close"}
        status = HTTPStatus(answer.status)
        lines = [f"HTTP/1.1 {status} {status.phrase}", *(f"{name.lower()}: {value}" for name, value in headers.items())]
        self.transport.write("\r\n".join([*lines, "", ""]).encode("latin-1") + answer.body)
        self.transport.close()

    @property
    def _waits(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _set_clock(self) -> None:
        if self._clock is None and self._waits:
            self._clock = self.loop.call_later(self.receive_s, self.transport.abort)
        elif self._clock is not None and not self._waits:
            self._clock.cancel()
            self._clock = None


class Server(uvicorn.Server):
    """Uvicorn that answers what it has taken before it ends.

    At the first SIGTERM or SIGINT new requests are refused with 503 and /ready says so, while those that wait are
    answered. Then the port is closed. A second signal ends it at once.

    Args:
        config: Options of uvicorn.
        service: What is asked.
    """

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; the default handler, which uvicorn calls after it has ended, would kill the process."""
        if self.service.is_draining:
            self.should_exit = self.force_exit = True
        self.service.is_draining = True

    async def on_tick(self, counter: int) -> bool:
        """Tell if the server is to end; it does, too, if the thread of the model has, so that it is started anew."""
        if not self.service.is_alive or (self.service.is_draining and not self.service.in_flight):
            self.should_exit = True
        return await super().on_tick(counter)


def most_connections() -> int:
    """Number of connections that the limit of open files leaves room for."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if files == resource.RLIM_INFINITY else max(files - KEPT_FILES, files // 2)


def server_of(app: object, service: Service, max_connections: int) -> Server:
    """Make the server of an application.

    Args:
        app: The application.
        service: What it asks, with the bounds of time.
        max_connections: Number of connections that may be open.
    """
    limits = service.limits
    protocol = functools.partial(TimedProtocol, receive_s=limits.receive_s, max_connections=max_connections)
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=protocol,  # type: ignore[arg-type]
        loop="auto",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(limits.deadline_s) + 1,
    )
    return Server(config, service)
