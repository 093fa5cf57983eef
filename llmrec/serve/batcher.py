"""Batcher: a bounded queue, and the one thread that touches the model.

Requests that may be answered together, because their `Task` is equal, become a batch: as soon as it is full, or the
oldest has waited for `max_wait_ms`. While a GPU works on a batch, the next one is already prepared and queued on it. A
batch that fails is answered one request at a time, so that only the one at fault fails.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Done = Callable[[object], object]  # takes the result, or the exception in its place


class Task(Protocol):
    """Work on the payloads of a batch; tasks that are equal share batches."""

    def start(self, payloads: Sequence[Any]) -> Callable[[], Sequence[object]]:
        """Queue the work on the device, and return a function that waits for one result per payload."""
        ...


@dataclass(eq=False)
class Job:
    """A request that waits for the model.

    Attributes:
        task: What is to be done.
        payload: What it is done with.
        size: Number of users, which take as many places in the queue and in a batch.
        done: Called once on the thread of the model, unless the job is cancelled.
        arrived: Seconds on the clock of `time.monotonic`.
    """

    task: Task
    payload: Any
    size: int
    done: Done
    arrived: float = field(default_factory=time.monotonic)
    is_cancelled: bool = False


class QueueFull(Exception):
    """There is no place for a job."""


class Closed(Exception):
    """No job is taken any more."""


class Batcher:
    """Queue and thread.

    Args:
        max_batch: Largest number of users in a batch; no job is larger.
        max_wait_s: Seconds that a job waits for others.
        max_queue: Largest number of users that wait.
        max_expected_s: Largest time that a new job may expect to wait, by the speed of the latest batches.
        on_batch: Called with the jobs of every batch when it starts.
        overlaps: Start a batch before the last one is read; on a CPU, which computes where it starts, that only waits.
    """

    def __init__(
        self,
        max_batch: int,
        max_wait_s: float,
        max_queue: int,
        max_expected_s: float = math.inf,
        on_batch: Callable[[Sequence[Job]], None] = lambda jobs: None,
        overlaps: bool = True,
    ):
        self.max_batch, self.max_wait_s, self.max_queue = max_batch, max_wait_s, max_queue
        self.max_expected_s, self.on_batch, self.overlaps = max_expected_s, on_batch, overlaps
        self.waiting = 0  # users in the queue
        self._seconds_per_user = 0.0  # a moving average
        self._started_at = self._read_at = 0.0  # when work began after a pause, and when the last batch was read
        self._queue: dict[Job, None] = {}  # in order of arrival
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Put jobs into the queue, all of them or none.

        Raises:
            QueueFull: If it has no room for the users of the jobs.
            Closed: If the batcher was closed.
        """
        size = sum(job.size for job in jobs)
        assert all(job.size <= self.max_batch for job in jobs), "a batch has room for every job"
        with self._changed:
            if self._closed:
                raise Closed
            if self.waiting + size > self.max_queue or self.expected_wait() > self.max_expected_s:
                raise QueueFull
            is_first = not self._queue
            self._queue.update(dict.fromkeys(jobs))
            self.waiting += size
            # The thread waits for a first job, or for the last one of a full batch; in between it need not wake.
            if is_first or self.waiting >= self.max_batch:
                self._changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Give up jobs: their places in the queue are free at once, and answers that are under way are dropped."""
        with self._changed:
            for job in jobs:
                job.is_cancelled = True
                if job in self._queue:
                    self._drop(job)

    @property
    def is_alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    @property
    def is_full(self) -> bool:
        """True if no job would find a place."""
        return self.waiting >= self.max_queue or self.expected_wait() > self.max_expected_s

    def expected_wait(self) -> float:
        """Seconds that a new job will wait for those before it."""
        return self.waiting * self._seconds_per_user

    def close(self) -> None:
        """Answer what is in the queue, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _drop(self, job: Job) -> None:
        del self._queue[job]
        self.waiting -= job.size

    def _work(self) -> None:
        started: deque[tuple[Sequence[Job], Callable[[], Sequence[object]]]] = deque()
        while True:
            batch = self._take(wait=not started)
            if batch:
                if not started:
                    self._started_at = time.monotonic()
                self.on_batch(batch)
                try:
                    started.append((batch, batch[0].task.start([job.payload for job in batch])))
                except Exception as error:
                    self._answer_alone(batch, error)
            elif not started and self._closed:
                return
            if started and (len(started) > 1 or not batch or not self.overlaps):
                self._finish(*started.popleft())

    def _take(self, wait: bool) -> list[Job]:
        """Remove the oldest job and those that it shares a batch with from the queue; none if it is empty."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._queue or self._closed)
                until = next(iter(self._queue)).arrived + self.max_wait_s if self._queue else 0.0
                while self._queue and self.waiting < self.max_batch and not self._closed:
                    left = until - time.monotonic()
                    if left <= 0 or not self._changed.wait(left):
                        break
            batch: list[Job] = []
            room = self.max_batch
            for job in self._queue:
                if (not batch or job.task == batch[0].task) and job.size <= room:
                    batch.append(job)
                    room -= job.size
                if not room:
                    break
            for job in batch:
                self._drop(job)
            return batch

    def _finish(self, batch: Sequence[Job], wait: Callable[[], Sequence[object]]) -> None:
        try:
            results = wait()
        except Exception as error:
            self._answer_alone(batch, error)
            return
        self._time(batch)
        for job, result in zip(batch, results, strict=True):
            if not job.is_cancelled:
                job.done(result)

    def _time(self, batch: Sequence[Job]) -> None:
        """Learn how long a user takes from a batch that was read."""
        now, users = time.monotonic(), sum(job.size for job in batch)
        seconds = (now - max(self._read_at, self._started_at)) / users
        self._read_at = now
        self._seconds_per_user += (seconds - self._seconds_per_user) * (0.2 if self._seconds_per_user else 1.0)

    def _answer_alone(self, batch: Sequence[Job], error: Exception) -> None:
        """Answer every job of a failed batch by itself."""
        for job in batch:
            result: object = error
            if len(batch) > 1 and not job.is_cancelled:
                try:
                    (result,) = job.task.start([job.payload])()
                except Exception as own:
                    result = own
            if not job.is_cancelled:
                job.done(result)
