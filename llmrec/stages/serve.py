"""serve: answer requests over HTTP until told to stop."""

from __future__ import annotations

import ipaddress
import os
import socket

from llmrec.configs import ServeConfig
from llmrec.data.catalog import Catalog
from llmrec.runtime.console import say, tell
from llmrec.runtime.manifest import JsonObject

API_KEY = "LLMREC_API_KEY"


def main(config: ServeConfig) -> JsonObject:
    """Serve.

    Returns:
        `requests`, the number that were answered.

    Raises:
        ValueError: If the address is taken or open without a key, or the checkpoint or catalogue is not usable.
    """
    check_address(config)
    try:
        import uvicorn

        import llmrec.serve.metrics  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error.name} is missing; run `pip install 'llmrec[serve]'`.") from None
    with bind(config) as listener:
        if config.catalog is not None:
            Catalog.load(config.catalog)
        from llmrec.serve.app import create_app  # imports torch, which takes seconds
        from llmrec.serve.generation import Generation
        from llmrec.serve.service import Service

        service = Service(Generation.load(config), config)
        server = uvicorn.Server(uvicorn.Config(create_app(service, config), access_log=False, log_level="warning"))
        host, port = listener.getsockname()[:2]
        say(f"serve: {config.model} answers at http://{host}:{port}.")
        server.run(sockets=[listener])
        service.close()
    return {"requests": server.server_state.total_requests}


def check_address(config: ServeConfig) -> None:
    """Refuse to answer everybody unless that was asked for.

    Raises:
        ValueError: If others can reach the address, and there is no key.
    """
    if not os.environ.get(API_KEY) and not config.anonymous and not is_loopback(config.host):
        raise ValueError(
            f"host '{config.host}' can be reached by others, and there is no API key. Set {API_KEY}, give "
            "--anonymous to answer everybody, or listen on 127.0.0.1."
        )


def is_loopback(host: str) -> bool:
    """True if only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(config: ServeConfig) -> socket.socket:
    """Take the address, before anything is loaded.

    Raises:
        ValueError: If it cannot be taken.
    """
    try:
        return socket.create_server((config.host, config.port), family=family_of(config.host))
    except OSError as error:
        raise ValueError(
            f"cannot listen on {config.host}:{config.port}: {error.strerror}. Give another port."
        ) from None


def family_of(host: str) -> socket.AddressFamily:
    """IPv6 for an address of it, else IPv4."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    tell(f"serve: {result['requests']} requests answered")
