"""A service over the tiny model of `tuned`, asked without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from llmrec.configs import ServeConfig
from llmrec.serve.app import create_app
from llmrec.serve.generation import Generation
from llmrec.serve.service import Service


@pytest.fixture(scope="session")
def generation(tuned, toy) -> Generation:
    return Generation.load(ServeConfig(model=str(tuned), catalog=toy[0], device="cpu"))


@pytest.fixture
def serving(generation):
    """Function that makes a service with some limits; all of them are closed at the end."""
    services = []

    def make(**limits) -> Service:
        services.append(Service(generation, ServeConfig(model="m", **limits)))
        return services[-1]

    yield make
    for service in services:
        service.close()


@pytest.fixture
def ask(serving) -> Iterator:
    """Function that sends requests to a service at once, and returns their answers."""

    def send(*requests: tuple, service: Service | None = None, **options) -> list[httpx.Response]:
        service = service or serving()

        async def all_at_once() -> list[httpx.Response]:
            transport = httpx.ASGITransport(create_app(service, service.limits), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await asyncio.gather(*(client.request(*each, **options) for each in requests))

        return asyncio.run(all_at_once())

    return send
