"""The serve stage: what is refused before anything is loaded, and a whole run of the command."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import time
import urllib.request

import pytest

from llmrec.configs import ServeConfig
from llmrec.stages import serve


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in (serve.API_KEY, serve.ADMIN_TOKEN):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_an_open_address_needs_a_key_or_the_word(host, monkeypatch):
    with pytest.raises(ValueError, match=r"can be reached by others, and there is no API key\. Set LLMREC_API_KEY"):
        serve.main(ServeConfig(model="m", host=host))
    serve.check_environment(ServeConfig(model="m", host=host, anonymous=True))
    monkeypatch.setenv(serve.API_KEY, "k" * 32)
    serve.check_environment(ServeConfig(model="m", host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_none(host):
    serve.check_environment(ServeConfig(model="m", host=host))


@pytest.mark.parametrize("name", [serve.API_KEY, serve.ADMIN_TOKEN])
def test_a_short_key_is_refused(name, monkeypatch):
    monkeypatch.setenv(name, "secret")
    with pytest.raises(ValueError, match=f"{name} has fewer than 16 characters"):
        serve.main(ServeConfig(model="m"))


def test_a_missing_extra_names_the_command(monkeypatch):
    monkeypatch.setattr(serve, "LIBRARIES", ("fastapi", "no_such_library"))
    with pytest.raises(ValueError, match=r"no_such_library cannot be imported; run `pip install 'llmrec\[serve\]'`"):
        serve.main(ServeConfig(model="m"))


@pytest.mark.parametrize("model", ["./run/sft", "/nowhere/sft", "a/b/c", "~/run"])
def test_a_path_that_is_no_checkpoint_is_refused_at_once(model, tmp_path):
    with pytest.raises(ValueError, match=f"model '{model}' is no directory"):
        serve.main(ServeConfig(model=model))
    with pytest.raises(ValueError, match=r"has no llmrec\.json"):
        serve.main(ServeConfig(model=str(tmp_path)))


def test_a_port_that_is_taken_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1:{port} .*; give another --host or --port"):
            serve.main(ServeConfig(model="m", port=port))


def test_nobody_can_connect_before_the_model_is_loaded():
    config = ServeConfig(model="m", port=0)
    with serve.bind(config) as first:
        address = first.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)
        serve.listen(config, first)
        socket.create_connection(address, timeout=5).close()


def test_of_two_services_that_load_at_once_the_second_is_refused():
    with serve.bind(ServeConfig(model="m", port=0)) as first:
        config = ServeConfig(model="m", port=first.getsockname()[1])
        with serve.bind(config) as second:
            serve.listen(config, first)
            with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1:{config.port}"):
                serve.listen(config, second)


def test_a_catalogue_or_directory_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"admin_dir .* is no directory"):
        serve.main(ServeConfig(model="m", admin_dir=str(tmp_path / "absent")))
    with pytest.raises(ValueError, match="absent"):
        serve.main(ServeConfig(model="m", port=0, catalog=str(tmp_path / "absent")))


def ask(port: int, path: str, body: object = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def asked(port: int) -> http.client.HTTPConnection:
    """Connection that has sent a request of 16 users."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    body = json.dumps([{"history": ["item-1"], "k": 2}] * 16)
    connection.request("POST", "/v1/recommend", body, {"Content-Type": "application/json", "Connection": "close"})
    return connection


def test_the_command_answers_survives_a_kill_and_ends_at_a_signal(tuned, toy, forks, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = ["serve", "--model", str(tuned), "--catalog", toy[0], "--port", str(port), "--device", "cpu"]
    answers = []
    for end in (signal.SIGKILL, signal.SIGTERM):
        pid = forks.start(argv, tmp_path / "log")
        for _ in range(400):
            try:
                assert ask(port, "/ready") == {"status": "ready"}
                break
            except OSError:
                time.sleep(0.05)
        answers.append(ask(port, "/v1/recommend", {"history": ["item-1"], "k": 2}))
        first, *others = [asked(port) for _ in range(8 if end == signal.SIGTERM else 1)]
        assert first.getresponse().status == 200
        os.kill(pid, end)
        answered = [each.getresponse() for each in others]  # those that it has not read yet are refused
        assert {each.status for each in answered} <= {200, 503}
        assert all(each.read() for each in answered)  # whole: a part is an IncompleteRead
        assert forks.wait(pid) == (-signal.SIGKILL if end == signal.SIGKILL else 0)
    assert answers[0] == answers[1] and len(answers[0]["items"]) == 2
    assert "requests answered" in (tmp_path / "log").read_text()
