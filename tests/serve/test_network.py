"""The service behind a real socket: slow, huge, malformed and vanishing clients, and the end by a signal."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sys
import threading
import time

import pytest

from llmrec.serve.gate import Access
from llmrec.serve.server import most_connections
from llmrec.serve.service import Recommending
from tests.serve.conftest import HISTORY

BODY = json.dumps({"history": HISTORY, "k": 2}).encode()
POST = b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def received(connection: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def answer_of(connection: socket.socket) -> bytes:
    """An answer of a connection that goes on."""
    answer = b""
    while not answer.endswith(b"}"):
        part = connection.recv(65536)
        assert part, answer
        answer += part
    return answer


def until(condition) -> float:
    started = time.perf_counter()
    while not condition():
        assert time.perf_counter() - started < 5
        time.sleep(0.002)
    return time.perf_counter() - started


def full_post(extra: bytes = b"") -> bytes:
    return POST + extra + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


def test_a_client_that_goes_away_frees_its_place_within_250_ms(running):
    server = running()
    server.hold()
    connection = server.connect()
    connection.sendall(full_post())
    until(lambda: server.service.waiting == 1)
    connection.close()
    assert until(lambda: server.service.waiting == 0) < 0.25


def test_300_clients_who_leave_at_once_make_room_for_a_new_one_within_250_ms(running):
    server = running(max_queue=300)
    server.hold()
    leaving = [server.connect() for _ in range(300)]
    for connection in leaving:
        connection.sendall(full_post())
    until(lambda: server.service.waiting == 300)
    fresh = server.connect()
    fresh.sendall(full_post())
    assert fresh.recv(65536).startswith(b"HTTP/1.1 429")
    started = time.perf_counter()
    for connection in leaving:
        connection.close()
    until(lambda: server.service.waiting == 0)
    fresh.sendall(full_post(b"Connection: close\r\n"))
    until(lambda: server.service.waiting == 1)
    assert time.perf_counter() - started < 0.25
    server.held.gone.set()
    assert received(fresh).startswith(b"HTTP/1.1 200")


def test_slow_heads_and_bodies_end_and_disturb_nobody(running):
    server = running(receive_s=0.3)
    slow = [server.connect() for _ in range(30)]
    started = time.perf_counter()
    for number, connection in enumerate(slow):
        connection.sendall(POST[:20] if number % 2 else POST + b"Content-Length: 99\r\n\r\n{")
    assert server.health_s() < 2
    ends = [received(connection) for connection in slow]
    assert time.perf_counter() - started < 5
    assert all(end.startswith(b"HTTP/1.1 408") for end in ends[::2]) and set(ends[1::2]) == {b""}


def test_a_drip_of_bytes_does_not_reset_the_clock(running):
    server = running(receive_s=0.3)
    connection, started = server.connect(), time.perf_counter()
    with contextlib.suppress(OSError):
        while time.perf_counter() - started < 5:
            connection.sendall(b"G")
            time.sleep(0.05)
    assert time.perf_counter() - started < 3


def test_a_body_of_a_gigabyte_is_refused_at_its_announcement(running):
    server = running()
    connection = server.connect()
    connection.sendall(POST + b"Content-Length: 1000000000\r\n\r\n{")
    assert b"HTTP/1.1 413" in received(connection)


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"G" * 100_000, POST + b"Content-Length: x\r\n\r\n",
                POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_http_ends_the_connection_and_nothing_else(running, garbage):
    server = running(receive_s=0.5)
    connection = server.connect()
    with contextlib.suppress(OSError):
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
    answer = received(connection)
    if answer:
        assert answer.split()[1] in (b"400", b"422"), answer[:100]
        assert b"content-type: application/json" in answer and b'{"error":{"code":"' in answer
    assert server.health_s() < 2


@pytest.mark.parametrize(("size", "status"), [(16_000, b"200"), (16_400, b"400")])
@pytest.mark.parametrize("has_end", [True, False])
def test_a_head_is_bounded_whether_or_not_it_ends(running, size, status, has_end):
    connection = running(receive_s=0.3).connect()
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: " + b"x" * size)
    if has_end:
        connection.sendall(b"\r\n\r\n")
    answer = received(connection)
    assert answer[9:12] == (status if has_end or status == b"400" else b"")


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 200), ("/ready", 200), ("/", 200), ("/v1/recommend", 405), ("/nothing", 404)]
)
def test_head_answers_as_get_without_a_body(running, path, status):
    server = running()
    connection, answers = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5), []
    for method in ("HEAD", "GET", "HEAD"):  # on one connection, which a body would disturb
        connection.request(method, path)
        answer = connection.getresponse()
        answers.append((answer.status, [pair for pair in answer.getheaders() if pair[0] != "date"], answer.read()))
    assert answers[0] == answers[2] == (status, answers[1][1], b"") and answers[1][0] == status and answers[1][2]


@pytest.mark.parametrize(
    ("request_", "status"),
    [(b"GET /health HTTP/1.0\r\n\r\n", b"200"), (b"HEAD /ready HTTP/1.0\r\n\r\n", b"200"),
     (b"GET /health HTTP/1.1\r\n\r\n", b"400"), (b"GET /version HTTP/1.0\r\n\r\n", b"403"),
     (b"GET /health HTTP/1.0\r\nHost: evil.example\r\n\r\n", b"403"),
     (b"GET /health HTTP/1.0\r\nHost:\r\n\r\n", b"403")],
)  # fmt: skip
def test_a_health_check_of_http_1_0_needs_no_host(running, request_, status):
    connection = running(access=Access(hosts=frozenset({"localhost"}))).connect()
    connection.sendall(request_)
    assert received(connection).split()[1] == status


def test_a_connection_is_kept_after_a_refusal(running):
    server = running()
    connection = server.connect()
    for request, status in ((POST + b"Content-Length: 2\r\n\r\n{}", b"422"), (full_post(), b"200")):
        connection.sendall(request)
        assert answer_of(connection).split()[1] == status


def test_a_full_queue_refuses_before_the_body_is_there_and_keeps_the_connection(running):
    server = running(max_batch=1, max_queue=1)
    server.hold()
    waiting, late = server.connect(), server.connect()
    waiting.sendall(full_post(b"Connection: close\r\n"))
    until(lambda: server.service.waiting == 1)
    late.sendall(POST + b"Content-Length: 9\r\n\r\n")
    assert answer_of(late).split()[1] == b"429"
    late.sendall(b"no JSON {" + POST + b"Content-Length: 9\r\n\r\nno JSON {")
    assert answer_of(late).split()[1] == b"429"  # nobody has looked into the body
    server.held.gone.set()
    assert received(waiting).startswith(b"HTTP/1.1 200")
    late.sendall(full_post())
    assert answer_of(late).split()[1] == b"200"


@pytest.mark.parametrize(
    ("head", "status"), [(b"Transfer-Encoding: chunked\r\n\r\n", b"429"), (b"Content-Length: 9999999\r\n\r\n", b"413")]
)
def test_a_full_queue_ends_connections_whose_body_has_no_bound(running, head, status):
    server = running(max_batch=1, max_queue=1)
    server.hold()
    waiting = server.connect()
    waiting.sendall(full_post())
    until(lambda: server.service.waiting == 1)
    late = server.connect()
    late.sendall(POST + head)
    answer = received(late)
    assert answer.split()[1] == status and b"connection: close" in answer


def test_a_connection_too_many_is_told_so_and_the_others_go_on(running):
    server = running(max_connections=3)
    kept = [server.connect() for _ in range(3)]
    until(lambda: len(server.server.server_state.connections) == 3)
    for _ in range(20):
        answer = received(server.connect())
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n") and b"retry-after: 1\r\n" in answer
        assert answer.endswith(b'"The service has 3 connections already; try again later."}}')
    for connection in kept:
        connection.sendall(full_post())
        assert answer_of(connection).startswith(b"HTTP/1.1 200")
    kept[0].close()
    until(lambda: len(server.server.server_state.connections) == 2)
    assert server.health_s() < 2


@pytest.mark.parametrize(("files", "most"), [(1024, 896), (65536, 65408), (100, 50), (-1, sys.maxsize)])
def test_connections_leave_some_of_the_files_that_may_be_open(monkeypatch, files, most):
    monkeypatch.setattr("resource.getrlimit", lambda what: (files, -1))
    assert most_connections() == most


def test_at_a_signal_the_batch_and_the_queue_are_answered_and_the_server_ends(running, monkeypatch):
    server, begun, gone = running(max_batch=2), threading.Event(), threading.Event()
    start = Recommending.start

    def held_start(self, payloads):
        begun.set()
        assert gone.wait(10)
        return start(self, payloads)

    monkeypatch.setattr(Recommending, "start", held_start)
    taken = [server.connect() for _ in range(7)]
    for connection in taken:
        connection.sendall(full_post())
    until(lambda: begun.is_set() and server.service.in_flight == 7)
    assert 5 <= server.service.waiting < 7  # the others are in the batch
    server.server.handle_exit(15, None)
    late = server.connect()
    late.sendall(full_post(b"Connection: close\r\n"))
    assert received(late).startswith(b"HTTP/1.1 503")
    gone.set()
    assert [received(connection).split()[1] for connection in taken] == [b"200"] * 7
    server.thread.join(5)
    assert not server.thread.is_alive()
    with pytest.raises(ConnectionRefusedError):
        server.connect()
