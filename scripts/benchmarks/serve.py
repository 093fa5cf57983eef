"""A service under load: capacity, twice as much as it can do, half of it, and lists of 64 users beside the decoder.

    python scripts/benchmarks/serve.py --model run/checkpoint --catalog run/catalog --minutes 30
    python scripts/benchmarks/serve.py --shape smollm2-135m --compile true --minutes 2

The first form asks a checkpoint about histories of its catalogue. The second one makes a checkpoint of random weights
of a real model's shape, and first times the decoder alone on batches of 64 prompts as the service will see them.
The service is a process of its own, and so is the load. Sampled answers are compared with those of `Recommender`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from common import emit, emit_machine
from load import Load, Probe, Seen, post, rss_mib
from random_checkpoint import SHAPES, decoder_rate, write_checkpoint

from llmrec.data.catalog import Catalog
from llmrec.sid.table import SidTable

USERS_PER_LIST, NUM_REQUESTS, NUM_CLIENTS, NUM_LIST_CLIENTS = 64, 2000, 128, 6
KEY_FIGURES = [
    {"case": "twice the capacity", "figure": "share_of_capacity", "by": []},
    {"case": "lists of 64, exclude None", "figure": "users_per_s", "over": {"case": "decoder"}, "by": []},
]
RUNS = {
    "cpu-serve-quickstart": None,
    "h200-serve-smollm2-135m": ["--shape", "smollm2-135m", "--compile", "true"],
    "h200-serve-qwen3-0.6b": ["--shape", "qwen3-0.6b", "--compile", "true"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="checkpoint")
    source.add_argument("--shape", choices=SHAPES, help="shape of random weights")
    parser.add_argument("--catalog", help="catalogue of the checkpoint, for histories and titles")
    parser.add_argument("--items", type=int, default=100_000, help="items of random weights")
    parser.add_argument("--minutes", type=float, default=1, help="of twice the capacity")
    parser.add_argument("--seconds", type=float, default=20, help="of every other case")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", choices=("true", "false"), default="false")
    parser.add_argument("--serve", nargs="*", default=[], help="further options of `llmrec serve`, without --")
    args = parser.parse_args()
    emit_machine()
    with tempfile.TemporaryDirectory() as scratch:
        if args.shape:
            args.model = str(write_checkpoint(Path(scratch) / "checkpoint", args.shape, args.items))
            emit("decoder", batch=USERS_PER_LIST, **decoder_rate(args.model, args.device, args.compile == "true"))
        Bench(args).run()


class Bench:
    """Cases against one service; prints a line per case."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.histories = histories_of(args)
        self.singles = [post("/v1/recommend", {"history": history}) for history in self.histories]
        part = range(0, len(self.histories) - USERS_PER_LIST, USERS_PER_LIST)
        self.lists = {
            exclude: [
                post(
                    "/v1/recommend",
                    [{"history": each, "exclude": exclude} for each in self.histories[i : i + USERS_PER_LIST]],
                )
                for i in part
            ]
            for exclude in ("seen", None)
        }

    def run(self) -> None:
        started = time.perf_counter()
        self.port, self.process = start_service(self.args)
        emit("start", seconds=time.perf_counter() - started, rss_mib=rss_mib(self.process.pid))
        try:
            for exclude in (None, "seen"):
                self.closed(f"lists of {USERS_PER_LIST}, exclude {exclude}", self.lists[exclude], USERS_PER_LIST)
            capacity = self.closed("capacity, single histories", self.singles, 1)
            self.open("half load", capacity / 2, self.args.seconds)
            self.open("twice the capacity", 2 * capacity, 60 * self.args.minutes, capacity)
        finally:
            self.process.send_signal(signal.SIGTERM)
            emit("end", exit=self.process.wait(60))

    def closed(self, case: str, requests: list[bytes], users: int) -> float:
        clients = NUM_LIST_CLIENTS if users > 1 else NUM_CLIENTS
        asyncio.run(Load(self.port, requests).closed(clients, self.args.seconds / 4))  # graphs, caches
        load = Load(self.port, requests)
        started = time.perf_counter()
        seen = asyncio.run(load.closed(clients, self.args.seconds))
        rate = users * seen.statuses[200] / (time.perf_counter() - started)
        emit(case, clients=clients, users_per_s=rate, statuses=dict(seen.statuses), **seen.percentiles())
        return rate

    def open(self, case: str, rate: float, seconds: float, capacity: float | None = None) -> None:
        # Memory settles while connections and their buffers are made, so growth counts from a tenth of the time.
        asyncio.run(Load(self.port, self.singles).open(rate, seconds / 10))
        before = rss_mib(self.process.pid)
        load = Load(self.port, self.singles, keep=max(1, int(rate * seconds / 200)))
        started = time.perf_counter()
        with Probe(self.port) as probe:
            seen = asyncio.run(load.open(rate, seconds))
        elapsed = time.perf_counter() - started
        health = Seen(seconds=probe.seconds).percentiles()
        share = {} if capacity is None else {"share_of_capacity": seen.statuses[200] / elapsed / capacity}
        emit(
            case, rate=rate, seconds=elapsed, statuses=dict(seen.statuses), users_per_s=seen.statuses[200] / elapsed,
            **share, **seen.percentiles(), health_p50_ms=health["p50_ms"], health_p99_ms=health["p99_ms"],
            health_max_ms=max(probe.seconds) * 1e3, rss_mib=rss_mib(self.process.pid),
            rss_growth=rss_mib(self.process.pid) / before - 1,
        )  # fmt: skip
        if capacity is not None:
            emit("answers", **self.compared(seen.bodies))

    def compared(self, bodies: list[tuple[int, bytes]]) -> dict[str, object]:
        """Compare answers of large batches with those of `Recommender` to one history at a time."""
        from llmrec import Recommender

        recommender = Recommender.from_pretrained(self.args.model, device="cpu", catalog=self.args.catalog)
        same = places = identical = 0
        largest = 0.0
        for number, body in bodies:
            items, scores = recommender.recommend([self.histories[number]])
            found = json.loads(body)["items"]
            same += [item["item_id"] for item in found] == items[0]
            score_of = dict(zip(items[0], scores[0], strict=True))
            for item in found:
                if item["item_id"] in score_of:
                    error = abs(item["score"] - score_of[item["item_id"]])
                    places, identical, largest = places + 1, identical + (error == 0), max(largest, error)
        return {"compared": len(bodies), "same_items": same, "scores": places, "identical": identical,
                "largest_error": largest}  # fmt: skip


def histories_of(args: argparse.Namespace) -> list[list[str]]:
    """Histories of the catalogue's test users; of a fixed length from random items for random weights."""
    if args.catalog:
        test = Catalog.load(args.catalog)
        users = test.examples("test")
        names = test.item_ids
        found = [[names[row] for row in users.history(i)] for i in range(len(users))]
    else:
        rng, names = random.Random(0), SidTable.load(args.model).item_ids
        length = json.loads((Path(args.model) / "llmrec.json").read_text(encoding="utf-8"))["max_history"]
        found = [rng.sample(names, length) for _ in range(NUM_REQUESTS)]
    return [found[i % len(found)] for i in range(max(NUM_REQUESTS, len(found)))][:NUM_REQUESTS]


def start_service(args: argparse.Namespace) -> tuple[int, subprocess.Popen]:
    """Start the service on a free port, and wait until it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llmrec", "serve", "--model", args.model, "--port", str(port)]
    command += ["--device", args.device, "--compile", args.compile]
    command += ["--catalog", args.catalog] if args.catalog else []
    command += [f"--{each}" if each[0].isalpha() else each for each in args.serve]
    process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5).close()
            return port, process
        except OSError:
            time.sleep(0.2)
    raise SystemExit("The service did not start.")


if __name__ == "__main__":
    main()
