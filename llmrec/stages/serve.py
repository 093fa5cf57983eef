"""serve: answer requests over HTTP until told to stop."""

from __future__ import annotations

import gc
import ipaddress
import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

from llmrec.configs import ServeConfig
from llmrec.configs.serve import ADMIN_TOKEN, API_KEY
from llmrec.data.catalog import Catalog
from llmrec.runtime.console import say, tell
from llmrec.runtime.manifest import JsonObject

LIBRARIES = ("fastapi", "uvicorn", "httptools", "prometheus_client")
# After so long a thread that computes lets the one that answers /health run; Python waits five times as long.
SWITCH_S = 0.001
LEAST_KEY = 16  # characters


def main(config: ServeConfig) -> JsonObject:
    """Serve.

    Returns:
        `requests`, the number that were answered.

    Raises:
        ValueError: If the address is taken or open without a key, a key is short, or the checkpoint or catalogue is
            not usable.
    """
    check_environment(config)
    with bind(config) as listener:
        if config.catalog is not None:
            Catalog.load(config.catalog)  # refused before torch is imported, which takes seconds
        from llmrec.serve.administration import read_removed
        from llmrec.serve.app import create_app
        from llmrec.serve.gate import Access
        from llmrec.serve.generation import Generation
        from llmrec.serve.server import most_connections, server_of
        from llmrec.serve.service import Service
        from llmrec.serve.warm_up import batch_sizes, warm_up

        generation = Generation.load(config, read_removed(config.admin_dir))
        for _ in warm_up(generation.recommender.answerer, batch_sizes(config.max_batch), k=10):
            pass
        # A full collection goes through all that the libraries hold: .34 s in which even /health does not answer.
        gc.collect()
        gc.freeze()
        listen(config, listener)
        host, port = listener.getsockname()[:2]
        say(f"serve: {config.model} answers at http://{f'[{host}]' if ':' in host else host}:{port}.")
        sys.setswitchinterval(SWITCH_S)
        service = Service(generation, config)
        key = os.environ.get(API_KEY) or None
        access = Access(key, os.environ.get(ADMIN_TOKEN) or None, None if key else own_names(config, host))
        app = create_app(service, config, access, config.admin_dir)
        server = server_of(app, service, most_connections())
        server.run(sockets=[listener])
        service.close()
    return {"requests": server.server_state.total_requests}


def check_environment(config: ServeConfig) -> None:
    """Refuse to answer everybody unless that was asked for, and find the libraries of the extra.

    Raises:
        ValueError: If others can reach the address without a key, a key is short, or a library or directory is missing.
    """
    for name in (API_KEY, ADMIN_TOKEN):
        if 0 < len(os.environ.get(name, "")) < LEAST_KEY:
            raise ValueError(f"{name} has fewer than {LEAST_KEY} characters; `openssl rand -hex 32` makes a good one.")
    if not os.environ.get(API_KEY) and not config.anonymous and not is_loopback(config.host):
        raise ValueError(
            f"host '{config.host}' can be reached by others, and there is no API key. Set {API_KEY}, give "
            "--anonymous to answer everybody, or listen on 127.0.0.1."
        )
    if config.admin_dir is not None and not Path(config.admin_dir).is_dir():
        raise ValueError(f"admin_dir '{config.admin_dir}' is no directory; make it, or leave it out.")
    check_source(config.model)
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} cannot be imported; run `pip install 'llmrec[serve]'`.")


def check_source(model: str) -> None:
    """Refuse a checkpoint that is absent, before seconds are spent on imports and on the Hub.

    Raises:
        ValueError: If it is a path without a checkpoint.
    """
    path = Path(model)
    if path.is_dir() and not (path / "llmrec.json").is_file():
        raise ValueError(f"'{model}' has no llmrec.json: it is not a checkpoint of llmrec. `llmrec extend` makes one.")
    if not path.exists() and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise ValueError(f"model '{model}' is no directory; give that of a checkpoint, or its Hub id (owner/name).")


def is_loopback(host: str) -> bool:
    """True if only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def own_names(config: ServeConfig, host: str) -> frozenset[str] | None:
    """Names that a browser may ask a service without a key by; any if the service is open to everybody."""
    return None if config.anonymous else frozenset({"localhost", "127.0.0.1", "::1", config.host, host})


def bind(config: ServeConfig) -> socket.socket:
    """Take the address before anything is loaded, so that a taken one is refused at once.

    Clients cannot connect before `listen`: until then one that probes is told that nothing is there.

    Raises:
        ValueError: If it cannot be taken.
    """
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":  # connections of a service that was killed do not block the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # asyncio does not see that it is TCP; a body would wait 40 ms for the client to acknowledge the head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address[:2])
        return listener
    except OSError as error:
        raise taken(config, error) from None


def listen(config: ServeConfig, listener: socket.socket) -> None:
    """Let clients connect.

    Raises:
        ValueError: If another process that was loading at the same time has come first.
    """
    try:
        listener.listen()
    except OSError as error:
        raise taken(config, error) from None


def taken(config: ServeConfig, error: OSError) -> ValueError:
    """Say that the address cannot be had."""
    return ValueError(
        f"cannot listen on {config.host}:{config.port} ({error.strerror}); give another --host or --port."
    )


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    tell(f"serve: {result['requests']} requests answered")
