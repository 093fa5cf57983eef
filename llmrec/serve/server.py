"""Server: uvicorn with a clock for slow clients, which finishes what it has taken before it ends."""

from __future__ import annotations

import asyncio
import functools
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from llmrec.serve.refusals import Refusal
from llmrec.serve.service import Service


class TimedProtocol(H11Protocol):
    """HTTP/1.1 whose connections end if the client does not go on sending what it has begun.

    Args:
        receive_s: Seconds for the head of a request, and for a body that is still sent after the answer.
        options: As uvicorn gives them.
    """

    def __init__(self, *, receive_s: float, **options: object):
        super().__init__(**options)  # type: ignore[arg-type]
        self.receive_s = receive_s
        self._clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self._set_clock()

    def data_received(self, data: bytes) -> None:
        """Stop the clock once the head of a request is there."""
        super().data_received(data)
        self._set_clock()

    def on_response_complete(self) -> None:
        """Start the clock if the client is still sending."""
        super().on_response_complete()
        self._set_clock()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP in the words of all refusals, and end the connection."""
        answer = Refusal(400, "This is no HTTP/1.1 that can be read, or its head is too large.").answer()
        headers = [(name.lower(), value) for name, value in answer.headers.items()]
        length = ("content-length", str(len(answer.body)))
        response = h11.Response(status_code=400, headers=[*headers, length, ("connection", "close")])
        for event in (response, h11.Data(data=answer.body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(error)
        if self._clock is not None:
            self._clock.cancel()

    def _set_clock(self) -> None:
        is_answered = self.cycle is None or self.cycle.response_complete
        waits = is_answered and self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        if self._clock is None and waits:
            self._clock = self.loop.call_later(self.receive_s, self.transport.abort)
        elif self._clock is not None and not waits:
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


def server_of(app: object, service: Service, receive_s: float, deadline_s: float) -> Server:
    """Make the server of an application."""
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=functools.partial(TimedProtocol, receive_s=receive_s),  # type: ignore[arg-type]
        loop="asyncio",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(deadline_s) + 1,
    )
    return Server(config, service)
