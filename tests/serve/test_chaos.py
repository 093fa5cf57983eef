"""kill -9 under load, again and again: the same command answers as before, and no answer is wrong.

pytest -m slow -n0 tests/serve/test_chaos.py
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time

import pytest

ROUNDS, CLIENTS = 5, 8
HISTORIES = [[f"item-{i}", f"item-{(i * 5 + 2) % 12}"] for i in range(12)]


class Clients:
    """Threads that ask until they are stopped, and start anew when the service is gone."""

    def __init__(self, port: int):
        self.port, self.stopped, self.answers, self.lost = port, False, [], 0
        self.threads = [threading.Thread(target=self.ask, args=(number,)) for number in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def ask(self, number: int) -> None:
        while not self.stopped:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
            try:
                while not self.stopped:
                    number = (number + 1) % len(HISTORIES)
                    body = json.dumps({"history": HISTORIES[number], "k": 3})
                    connection.request("POST", "/v1/recommend", body, {"Content-Type": "application/json"})
                    answer = connection.getresponse()
                    self.answers.append((answer.status, number, answer.read()))
            except (OSError, http.client.HTTPException):
                self.lost += 1
                time.sleep(0.02)

    def stop(self) -> None:
        self.stopped = True
        for thread in self.threads:
            thread.join()


@pytest.mark.slow
def test_kills_under_load_lose_only_what_was_in_flight(tuned, toy, generation, forks, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = ["serve", "--model", str(tuned), "--catalog", toy[0], "--port", str(port), "--device", "cpu"]
    clients, counts = Clients(port), []
    try:
        for round_ in range(ROUNDS):
            pid, before = forks.start(argv, tmp_path / "log"), len(clients.answers)
            deadline = time.monotonic() + 60
            while len(clients.answers) < before + 100 * (1 + round_):
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.01)
            os.kill(pid, signal.SIGKILL)
            assert forks.wait(pid) == -signal.SIGKILL
            counts.append(len(clients.answers) - before)
    finally:
        clients.stop()
    assert all(counts) and clients.lost >= ROUNDS
    expected, _ = generation.recommender.recommend(HISTORIES, k=3)
    for status, number, body in clients.answers:
        assert status == 200
        assert [item["item_id"] for item in json.loads(body)["items"]] == expected[number]
