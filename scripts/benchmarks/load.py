"""Load on an HTTP service, from a process of its own: raw asyncio, so that the load takes little of a shared CPU.

Open loop: requests are sent at a rate, whether or not earlier ones were answered. Closed loop: every connection sends
the next request when the last one is answered.
"""

from __future__ import annotations

import asyncio
import collections
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

MOST_CONNECTIONS = 2000


@dataclass
class Seen:
    """Answers by status, and the seconds that good ones took."""

    statuses: collections.Counter = field(default_factory=collections.Counter)
    seconds: list[float] = field(default_factory=list)
    bodies: list[tuple[int, bytes]] = field(default_factory=list)  # a few, with the number of the request

    def percentiles(self) -> dict[str, float]:
        """p50 and p99 of good answers in milliseconds."""
        if len(self.seconds) < 2:
            return {}
        cuts = statistics.quantiles(self.seconds, n=100)
        return {"p50_ms": cuts[49] * 1e3, "p99_ms": cuts[98] * 1e3}


def post(path: str, body: object) -> bytes:
    """Bytes of a request."""
    text = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(text)}"
    return head.encode() + b"\r\n\r\n" + text


class Connection:
    """A connection that is kept."""

    def __init__(self, port: int):
        self.port, self.writer = port, None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request, and return status and body of its answer."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return int(head[9:12]), await self.reader.readexactly(length)

    def close(self) -> None:
        """Close it; the next request opens another."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class Load:
    """Requests to a service.

    Args:
        port: Its port on this machine.
        requests: Bytes of requests, which are sent in turn.
        keep: One answer of so many is kept.
    """

    def __init__(self, port: int, requests: Sequence[bytes], keep: int = 0):
        self.port, self.requests, self.keep = port, requests, keep
        self.seen, self.sent, self.free = Seen(), 0, collections.deque[Connection]()
        self.connections = 0

    async def one(self, connection: Connection) -> None:
        """Send the next request."""
        number = self.sent = self.sent + 1
        started = time.perf_counter()
        try:
            status, body = await connection.ask(self.requests[number % len(self.requests)])
        except (OSError, asyncio.IncompleteReadError) as error:
            self.seen.statuses[type(error).__name__] += 1
            connection.close()
            return
        self.seen.statuses[status] += 1
        if status == 200:
            self.seen.seconds.append(time.perf_counter() - started)
            if self.keep and number % self.keep == 0:
                self.seen.bodies.append((number % len(self.requests), body))

    async def closed(self, clients: int, seconds: float) -> Seen:
        """Let some clients ask without a pause."""
        end = time.perf_counter() + seconds

        async def client() -> None:
            connection = Connection(self.port)
            while time.perf_counter() < end:
                await self.one(connection)
            connection.close()

        await asyncio.gather(*(client() for _ in range(clients)))
        return self.seen

    async def open(self, rate: float, seconds: float) -> Seen:
        """Send requests at random times, `rate` a second on average."""
        rng, started, due = random.Random(0), time.perf_counter(), 0.0
        running: set[asyncio.Task] = set()

        async def take() -> None:
            connection = self.free.popleft() if self.free else Connection(self.port)
            await self.one(connection)
            self.free.append(connection)

        while (now := time.perf_counter() - started) < seconds:
            while due <= now:
                due += rng.expovariate(rate)
                if len(running) < MOST_CONNECTIONS:
                    task = asyncio.ensure_future(take())
                    running.add(task)
                    task.add_done_callback(running.discard)
                else:
                    self.seen.statuses["not sent"] += 1
            await asyncio.sleep(min(0.005, max(0.0, due - now)))
        await asyncio.gather(*running)
        for connection in self.free:
            connection.close()
        return self.seen


class Probe:
    """GET /health twenty times a second, from another process, while the block runs."""

    def __init__(self, port: int):
        self.port = port

    def __enter__(self) -> Probe:
        command = [sys.executable, __file__, str(self.port)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        output, _ = self.process.communicate("end\n")
        self.seconds: list[float] = json.loads(output)


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def probe(port: int) -> None:
    """Ask for the health until stdin has something, and print the seconds of every answer."""
    import select

    seconds = []
    connection = socket.create_connection(("127.0.0.1", port))
    while not select.select([sys.stdin], [], [], 0.05)[0]:
        started = time.perf_counter()
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(4096)
        assert b"200 OK" in answer
        seconds.append(time.perf_counter() - started)
    print(json.dumps(seconds))


if __name__ == "__main__":
    probe(int(sys.argv[1]))
