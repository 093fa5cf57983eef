"""Service: requests in, answers out, by the generation of the moment."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np

from llmrec.configs.recommend import RankBy
from llmrec.configs.serve import Limits
from llmrec.decoding.answering import AnswerSize
from llmrec.decoding.requests import ItemRequests
from llmrec.serve.batcher import Batcher, Closed, Job, QueueFull, Task
from llmrec.serve.generation import Generation
from llmrec.serve.messages import Request
from llmrec.serve.metrics import Metrics
from llmrec.serve.reading import joined, read
from llmrec.serve.refusals import Refusal
from llmrec.serve.warm_up import batch_sizes, warm_up

T = TypeVar("T")
CLOSING = "The service is shutting down; ask another one."
MOST_FILTERS = 16  # of one request; so many are kept
QUEUED = ("/v1/recommend", "/v1/explain")  # routes that need room in the queue


class Answered(NamedTuple):
    """Answer to a user."""

    item_ids: list[str]
    scores: list[float]
    unknown: list[str]
    is_fallback: bool


@dataclass(frozen=True)
class Recommending:
    """Task of the jobs whose users are ranked together."""

    generation: Generation
    size: AnswerSize
    rank: RankBy | None

    def start(self, payloads: Sequence[Sequence[ItemRequests]]) -> Callable[[], Sequence[list[Answered]]]:
        """Rank the users of all payloads as one batch."""
        recommender, users = self.generation.ranked_by(self.rank), [each for payload in payloads for each in payload]
        ranked = recommender.answerer.start(joined(users), self.size)

        def wait() -> list[list[Answered]]:
            found, answers = ranked(), []
            names = iter(recommender.table.item_ids.of(np.concatenate([best.rows for best in found])))
            for best, asked in zip(found, users, strict=True):
                unknown = list(dict.fromkeys([*asked.unknown[0], *asked.unknown_filters]))
                item_ids = list(islice(names, len(best.rows)))
                answers.append(Answered(item_ids, best.scores.tolist(), unknown, not len(asked.histories[0])))
            left = iter(answers)
            return [[next(left) for _ in payload] for payload in payloads]

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
        previous: What answered before, to go back to.
        metrics: Counts of this service.
        is_draining: True once new requests are refused, because the service is shutting down.
    """

    def __init__(self, generation: Generation, limits: Limits):
        self.generation, self.limits = generation, limits
        self.previous: Generation | None = None
        self.is_draining, self.metrics = False, Metrics()
        self.in_flight = 0  # requests that wait or are being answered
        self._batcher = Batcher(
            limits.max_batch, limits.max_wait_ms / 1e3, limits.max_queue, limits.deadline_s / 2,
            self.metrics.count_batch, overlaps=generation.recommender.model.device.type == "cuda",
        )  # fmt: skip
        self.metrics.watch(lambda: self.waiting)
        self.metrics.show(generation)

    @property
    def waiting(self) -> int:
        """Number of users in the queue."""
        return self._batcher.waiting

    @property
    def is_alive(self) -> bool:
        """True while the thread of the model runs."""
        return self._batcher.is_alive

    def check_room(self, path: str) -> None:
        """Refuse a request at once, before its body is read, while it would find no place in the queue.

        Raises:
            Refusal: If the queue is full, or the service is shutting down.
        """
        self.check_open()
        if path in QUEUED and self._batcher.is_full:
            raise self._full()

    def check_open(self) -> None:
        """Refuse a request while the service is shutting down.

        Raises:
            Refusal: If it is.
        """
        if self.is_draining or not self.is_alive:
            raise Refusal(503, CLOSING, retry_after_s=1)

    def read(self, requests: Sequence[Request]) -> list[ItemRequests]:
        """Check requests against the checkpoint that answers now, and convert their item_ids to item rows.

        Raises:
            Refusal: If one cannot be answered, with every such request.
        """
        return read(self.generation, requests, self._size)

    async def find_items(self, requests: Sequence[Request]) -> None:
        """Find the items that meet the conditions of requests beside the event loop, as all items are read for that.

        Raises:
            Refusal: If a condition cannot be read, or the requests have too many different ones.
        """
        filters = {(tuple(each.where), each.max_popularity) for each in requests if each.is_filtered}
        if not filters:
            return
        if len(filters) > MOST_FILTERS:
            raise Refusal(422, f"the requests have {len(filters)} different filters; at most {MOST_FILTERS} at once.")
        generation = self.generation
        try:
            await asyncio.to_thread(lambda: [generation.items.permitted(*each) for each in filters])
        except ValueError as error:
            raise Refusal(422, str(error)) from None

    async def recommend(self, requests: Sequence[Request]) -> tuple[Generation, list[Answered]]:
        """Answer users; those who share `k`, `num_beams`, `min_new` and `rank` are ranked together.

        Args:
            requests: One of each user.

        Returns:
            The generation that answers, and its answers.

        Raises:
            Refusal: If a request cannot be answered, the queue is full, or the deadline passes.
        """
        await self.find_items(requests)
        generation, asked = self.generation, self.read(requests)
        places: dict[tuple[AnswerSize, RankBy | None], list[int]] = {}
        for place, each in enumerate(requests):
            places.setdefault((self._size(each), each.rank), []).append(place)
        work = [(Recommending(generation, *shared), [asked[i] for i in users]) for shared, users in places.items()]
        parts = await self._run([(task, users, len(users)) for task, users in work])
        answers = dict(zip((i for users in places.values() for i in users), (a for p in parts for a in p), strict=True))
        found = [answers[place] for place in range(len(requests))]
        self.metrics.count_answers(requests, found)
        return generation, found

    async def submit(self, job: Callable[[Generation], T]) -> T:
        """Run a function on the thread of the model, alone, in its turn.

        Args:
            job: Takes the generation of the moment.

        Raises:
            Refusal: If the queue is full, or the deadline passes; or whatever the job raises.
        """
        (result,) = await self._run([(Single(job, self.generation), None, 1)])
        return result

    async def warm_up(self, generation: Generation) -> int:
        """Answer made-up requests by a generation that was just loaded, between those of users.

        Returns:
            Number of batches.
        """
        steps: Iterator = warm_up(generation.recommender.answerer, batch_sizes(self.limits.max_batch), k=10)
        count = 0
        while await self.submit(lambda _: next(steps, None)) is not None:
            count += 1
        return count

    def swap(self, generation: Generation) -> None:
        """Let another generation answer from now on, and keep the one of before."""
        self.previous, self.generation = self.generation, generation
        self.metrics.show(generation)

    async def _run(self, work: Sequence[tuple[Task, object, int]]) -> list[Any]:
        """Wait for the results of tasks, each with its payload and its number of users."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future] = [loop.create_future() for _ in work]
        jobs = [
            Job(task, payload, size, functools.partial(deliver, loop, future))
            for (task, payload, size), future in zip(work, futures, strict=True)
        ]
        try:
            if self.is_draining:
                raise Closed
            self._batcher.submit(jobs)
        except QueueFull:
            raise self._full() from None
        except Closed:
            raise Refusal(503, CLOSING, retry_after_s=1) from None
        self.in_flight += 1
        try:
            async with asyncio.timeout(self.limits.deadline_s):
                return [await future for future in futures]
        except TimeoutError:
            late = f"The answer took longer than {self.limits.deadline_s:g} s; ask for less, or later."
            raise Refusal(504, late, retry_after_s=self._batcher.expected_wait()) from None
        finally:
            self.in_flight -= 1
            self._batcher.cancel(jobs)

    def _size(self, request: Request) -> AnswerSize:
        return AnswerSize.read(request.k, request.min_new, request.num_beams, self.limits.max_batch)

    def _full(self) -> Refusal:
        expected = self._batcher.expected_wait()
        message = (
            f"{self.waiting} users wait already, for about {expected:.1f} s; at most {self.limits.max_queue} may wait, "
            f"and for half of the deadline of {self.limits.deadline_s:g} s. Try again later."
        )
        return Refusal(429, message, retry_after_s=expected)

    def close(self) -> None:
        """Answer what is in the queue, and take nothing more."""
        self.is_draining = True
        self._batcher.close()


def deliver(loop: asyncio.AbstractEventLoop, future: asyncio.Future, result: object) -> None:
    """Give a future of an event loop its result, from another thread."""
    with suppress(RuntimeError):  # the loop was closed
        loop.call_soon_threadsafe(settle, future, result)


def settle(future: asyncio.Future, result: object) -> None:
    """Give a future its result, unless nobody waits for it any more."""
    if not future.done():
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
