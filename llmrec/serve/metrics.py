"""Metrics of the service, as Prometheus reads them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from llmrec.serve.batcher import Job
from llmrec.serve.generation import Generation
from llmrec.serve.messages import Request

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BEAMS = (10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """Counters, histograms and gauges of one service; several services of a process do not share them."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "llmrec_requests", "Requests by route and status.", ["route", "code"], registry=registry
        )
        self.seconds = Histogram(
            "llmrec_request_seconds", "Seconds from the head of a request to its answer.", ["route"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.queue_seconds = Histogram(
            "llmrec_queue_seconds", "Seconds in the queue.", buckets=SECONDS, registry=registry
        )
        self.batch_users = Histogram("llmrec_batch_users", "Users of a batch.", buckets=USERS, registry=registry)
        self.beams = Histogram(
            "llmrec_num_beams", "Beam width of users who asked for one.", buckets=BEAMS, registry=registry
        )
        self.fallback = Counter("llmrec_fallback", "Users who got popular items.", ["reason"], registry=registry)
        self.short = Counter("llmrec_short", "Users who got fewer than k items.", registry=registry)
        self.model = Gauge(
            "llmrec_model_info", "1 for the model that answers.", ["model", "sid_table"], registry=registry
        )
        self.items = Gauge("llmrec_catalog_items", "Items that may be shown.", registry=registry)
        self.generation = Gauge("llmrec_generation", "Number of the generation that answers.", registry=registry)
        self.waiting = Gauge("llmrec_queue_users", "Users in the queue.", registry=registry)

    def watch(self, waiting: Callable[[], int]) -> None:
        """Read the number of waiting users whenever the metrics are read."""
        self.waiting.set_function(waiting)

    def show(self, generation: Generation) -> None:
        """Show what answers from now on."""
        self.model.clear()
        self.model.labels(generation.model_sha256, generation.sid_table_sha256).set(1)
        self.items.set(generation.num_shown)
        self.generation.set(generation.number)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self.requests.labels(route, status).inc()
        self.seconds.labels(route).observe(seconds)

    def count_batch(self, jobs: Sequence[Job]) -> None:
        """Count a batch that starts."""
        now = time.monotonic()
        self.batch_users.observe(sum(job.size for job in jobs))
        for job in jobs:
            self.queue_seconds.observe(now - job.arrived)

    def count_answers(self, requests: Sequence[Request], answers: Iterable) -> None:
        """Count what was not answered as it was asked."""
        for request, answer in zip(requests, answers, strict=True):
            if request.num_beams is not None:
                self.beams.observe(request.num_beams)
            if answer.is_fallback:
                self.fallback.labels("unknown" if request.history else "empty").inc()
            if len(answer.item_ids) < request.k:
                self.short.inc()

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
