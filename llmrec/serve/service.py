"""Service: requests in, answers out, by the generation of the moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from llmrec.configs.serve import Limits
from llmrec.decoding.answering import Answers, AnswerSize
from llmrec.decoding.requests import ItemRequests, read_requests
from llmrec.serve.batcher import Batcher, Closed, Job, QueueFull, Task
from llmrec.serve.generation import Generation
from llmrec.serve.messages import Request
from llmrec.serve.metrics import Metrics
from llmrec.serve.refusals import Refusal

T = TypeVar("T")


@dataclass(frozen=True)
class Recommending:
    """Task of the jobs whose users are ranked together."""

    generation: Generation
    size: AnswerSize

    def start(self, payloads: Sequence[Sequence[ItemRequests]]) -> Callable[[], Sequence[Answers]]:
        """Rank the users of all payloads as one batch; the answers of each payload are its own."""
        recommender = self.generation.recommender
        asked = joined([each for payload in payloads for each in payload])
        best = recommender.answerer.start(asked, self.size)

        def wait() -> list[Answers]:
            answers, place, found = [], 0, best()
            for payload in payloads:
                part = found[place : place + len(payload)]
                answers.append(Answers.of(part, joined(payload), recommender.table))
                place += len(payload)
            return answers

        return wait


@dataclass(frozen=True, eq=False)
class Single:
    """Task of a job that is done alone."""

    job: Callable[[Generation], Any]
    generation: Generation

    def start(self, payloads: Sequence[None]) -> Callable[[], Sequence[Any]]:
        """Do the job."""
        result = self.job(self.generation)
        return lambda: [result]


class Service:
    """Generations, queue and metrics of one process.

    Args:
        generation: What answers first.
        limits: Bounds of the queue and of the batches.

    Attributes:
        generation: What answers now; replaced by one assignment, while the jobs of the older one still hold it.
        metrics: Counts of this service.
    """

    def __init__(self, generation: Generation, limits: Limits):
        self.generation, self.limits = generation, limits
        self.metrics = Metrics()
        self.is_draining = False
        self._batcher = Batcher(limits.max_batch, limits.max_wait_ms / 1e3, limits.max_queue, self.metrics.count_batch)
        self.metrics.watch(lambda: self.waiting)

    @property
    def waiting(self) -> int:
        """Number of users in the queue."""
        return self._batcher.waiting

    async def recommend(self, requests: Sequence[Request]) -> tuple[Generation, Answers]:
        """Answer users who share `k`, `num_beams` and `min_new`.

        Args:
            requests: One of each user.

        Returns:
            The answers, and the generation that gave them.

        Raises:
            Refusal: If a request cannot be answered, the queue is full, or the deadline passes.
        """
        generation, first = self.generation, requests[0]
        recommender = generation.recommender
        try:
            size = AnswerSize.read(first.k, first.min_new, first.num_beams, self.limits.max_batch)
            payload = [
                read_requests(recommender.table, [each.history], each.exclude, as_list(each.allow), each.unknown)
                for each in requests
            ]
        except ValueError as error:
            raise Refusal(422, str(error)) from None
        return generation, await self._run(Recommending(generation, size), payload, len(payload))

    async def submit(self, job: Callable[[Generation], T]) -> T:
        """Run a function on the thread of the model, alone, in its turn.

        Args:
            job: Takes the generation of the moment.

        Raises:
            Refusal: If the queue is full, or the deadline passes; or whatever the job raises.
        """
        return await self._run(Single(job, self.generation), None, 1)

    async def _run(self, task: Task, payload: object, size: int) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future = loop.create_future()

        def settle(result: object) -> None:
            if future.done():
                return
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

        def done(result: object) -> None:
            loop.call_soon_threadsafe(settle, result)

        job = Job(task, payload, size, done)
        if self.is_draining:
            raise Refusal(503, "The service is shutting down; ask another one.", retry_after_s=1)
        try:
            self._batcher.submit(job)
        except QueueFull:
            raise self.full() from None
        except Closed:
            raise Refusal(503, "The service is shutting down; ask another one.", retry_after_s=1) from None
        try:
            async with asyncio.timeout(self.limits.deadline_s):
                return await future
        except TimeoutError:
            raise Refusal(
                504,
                f"The answer took longer than {self.limits.deadline_s:g} s; ask for less, or later.",
                retry_after_s=1,
            ) from None
        finally:
            self._batcher.cancel(job)

    def full(self) -> Refusal:
        """Refusal of a request for which the queue has no room."""
        return Refusal(429, f"{self.waiting} users wait already; try again later.", retry_after_s=1)

    def close(self) -> None:
        """Answer what is in the queue, and take nothing more."""
        self.is_draining = True
        self._batcher.close()


def joined(requests: Sequence[ItemRequests]) -> ItemRequests:
    """Requests of several users as those of one batch; what is barred for all users of a part is barred for each."""
    return ItemRequests(
        [rows for each in requests for rows in each.histories],
        [
            np.concatenate([rows, each.exclude_all]) if len(each.exclude_all) else rows
            for each in requests
            for rows in each.exclude
        ],
        np.empty(0, np.int64),
        [rows for each in requests for rows in each.allow],
        [unknown for each in requests for unknown in each.unknown],
        [item_id for each in requests for item_id in each.unknown_filters],
    )


def as_list(allow: Sequence[str] | None) -> list[Sequence[str]] | None:
    """An allow-list of the only user, which may be empty."""
    return None if allow is None else [allow]
