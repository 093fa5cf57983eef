"""Metrics of the service, as Prometheus reads them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from llmrec.serve.batcher import Job

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters, histograms and gauges of one service; several services of a process do not share them."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "llmrec_requests", "Requests by route and status.", ["route", "code"], registry=registry
        )
        self.seconds = Histogram(
            "llmrec_request_seconds", "Seconds from a request's head to its answer.", ["route"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.queue_seconds = Histogram(
            "llmrec_queue_seconds", "Seconds in the queue.", buckets=SECONDS, registry=registry
        )
        self.batch_users = Histogram("llmrec_batch_users", "Users of a batch.", buckets=USERS, registry=registry)

    def watch(self, waiting: Callable[[], int]) -> None:
        """Read the number of waiting users whenever the metrics are read."""
        Gauge("llmrec_queue_users", "Users in the queue.", registry=self.registry).set_function(waiting)

    def count_batch(self, jobs: Sequence[Job]) -> None:
        """Count a batch that starts."""
        now = time.monotonic()
        self.batch_users.observe(sum(job.size for job in jobs))
        for job in jobs:
            self.queue_seconds.observe(now - job.arrived)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
