"""A service over the tiny model of `tuned`, asked without a network."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from llmrec.configs import ServeConfig
from llmrec.serve.app import create_app
from llmrec.serve.batcher import Job
from llmrec.serve.gate import Access
from llmrec.serve.generation import Generation
from llmrec.serve.server import server_of
from llmrec.serve.service import Service, Single
from llmrec.stages.serve import bind

HISTORY = ["item-1", "item-2"]


@pytest.fixture(scope="session")
def generation(tuned, toy) -> Generation:
    return Generation.load(ServeConfig(model=str(tuned), catalog=toy[0], device="cpu"))


@pytest.fixture
def serving(generation) -> Iterator[Callable[..., Service]]:
    """Function that makes a service with some limits; all of them are closed at the end."""
    services = []

    def make(**limits) -> Service:
        services.append(Service(generation, ServeConfig(model="m", **limits)))
        return services[-1]

    yield make
    for service in services:
        service.close()


@pytest.fixture
def client(serving) -> Callable[..., httpx.AsyncClient]:
    """Function that makes a client of a service, in the same process."""

    def make(service: Service | None = None, access: Access | None = None, admin_dir=None, **limits):
        service = service or serving(**limits)
        app = create_app(service, service.limits, access, None if admin_dir is None else str(admin_dir))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://localhost")

    return make


@pytest.fixture
def ask(client) -> Callable[..., httpx.Response]:
    """Function that sends one request: POST /v1/recommend with a body, unless told otherwise."""

    def send(body=None, path: str = "/v1/recommend", method: str = "POST", headers=None, content=None, **options):
        async def once() -> httpx.Response:
            async with client(**options) as connected:
                return await connected.request(method, path, json=body, headers=headers, content=content)

        return asyncio.run(once())

    return send


class Held:
    """The thread of the model, which does nothing until it is let go."""

    def __init__(self, service: Service):
        self.gone, self.begun = threading.Event(), threading.Event()
        self.service = service

    def job(self, _: Generation) -> None:
        self.begun.set()
        assert self.gone.wait(10)

    async def hold(self) -> asyncio.Task:
        task = asyncio.ensure_future(self.service.submit(self.job))
        while not self.begun.is_set():
            await asyncio.sleep(0.001)
        return task


@pytest.fixture
def held() -> Iterator[Callable[[Service], Held]]:
    """Function that keeps the thread of a service's model busy, until the test lets go or ends."""
    made = []

    def make(service: Service) -> Held:
        made.append(Held(service))
        return made[-1]

    yield make
    for each in made:
        each.gone.set()


class Running:
    """A service with uvicorn in a thread."""

    def __init__(
        self,
        generation,
        access: Access | None = None,
        admin_dir: str | None = None,
        max_connections: int = 1000,
        **limits,
    ):
        config = ServeConfig(model="m", port=0, **limits)
        self.service, self.listener = Service(generation, config), bind(config)
        self.port = self.listener.getsockname()[1]
        app = create_app(self.service, config, access, admin_dir)
        self.server = server_of(app, self.service, max_connections)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()
        self.held = Held(self.service)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=5)

    def hold(self) -> None:
        """Keep the thread of the model busy."""
        task = Single(self.held.job, self.service.generation)
        self.service._batcher.submit([Job(task, None, 1, lambda result: None)])
        assert self.held.begun.wait(5)

    def health_s(self) -> float:
        started = time.perf_counter()
        with self.connect() as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        return time.perf_counter() - started


@pytest.fixture
def running(generation) -> Iterator:
    """Function that starts a service with some limits."""
    made = []

    def start(**options) -> Running:
        made.append(Running(generation, **options))
        while not made[-1].server.started:
            time.sleep(0.005)
        return made[-1]

    yield start
    for each in made:
        each.held.gone.set()
        each.service.is_draining = True
        each.thread.join(10)
        assert not each.thread.is_alive()
        each.service.close()


def error_of(answer: httpx.Response) -> str:
    """Sentence of a refusal."""
    assert answer.headers["content-type"] == "application/json"
    return answer.json()["error"]["message"]
