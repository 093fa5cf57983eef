"""The queue: batches, bounds, deadlines, cancellation, and the end."""

from __future__ import annotations

import asyncio
import time

import pytest

from llmrec.serve.batcher import Batcher, Job
from llmrec.serve.refusals import Refusal
from tests.serve.conftest import HISTORY, error_of


async def until(condition) -> float:
    """Wait for a condition; seconds that it took."""
    started = time.perf_counter()
    while not condition():
        assert time.perf_counter() - started < 5
        await asyncio.sleep(0.001)
    return time.perf_counter() - started


def posted(connected, **body) -> asyncio.Task:
    return asyncio.ensure_future(connected.post("/v1/recommend", json={"history": HISTORY, **body}))


def test_a_full_queue_refuses_with_429_and_says_when_to_come_back(client, serving, held):
    service = serving(max_batch=2, max_queue=2)

    async def run():
        busy = held(service)
        holding = await busy.hold()
        async with client(service) as connected:
            waiting = [posted(connected), posted(connected)]
            await until(lambda: service.waiting == 2)
            refused = await posted(connected)
            alive = await connected.get("/health")
            busy.gone.set()
            await holding
            return refused, alive, [(await each).status_code for each in waiting]

    refused, alive, answered = asyncio.run(run())
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert error_of(refused).startswith("2 users wait already, for about 0.0 s; at most 2 may wait")
    assert alive.status_code == 200 and answered == [200, 200]


def test_a_list_needs_a_place_for_each_of_its_users(client, serving, held):
    service = serving(max_batch=3, max_queue=3)

    async def run():
        holding = await held(service).hold()
        async with client(service) as connected:
            one = posted(connected)
            await until(lambda: service.waiting == 1)
            refused = await connected.post("/v1/recommend", json=[{"history": HISTORY}] * 3)
            one.cancel()
            holding.cancel()
            return refused.status_code

    assert asyncio.run(run()) == 429


def test_a_cancelled_request_frees_its_place_at_once(client, serving, held):
    service = serving()

    async def run():
        busy = held(service)
        holding = await busy.hold()
        async with client(service) as connected:
            request = posted(connected)
            await until(lambda: service.waiting == 1)
            request.cancel()
            queued = await until(lambda: service.waiting == 0 and service.in_flight == 1)
            holding.cancel()  # it runs, and cannot be interrupted, but nothing waits for it
            running = await until(lambda: service.in_flight == 0)
            busy.gone.set()
            return queued, running, (await posted(connected)).status_code

    queued, running, status = asyncio.run(run())
    assert queued < 0.25 and running < 0.25 and status == 200


def test_a_deadline_is_kept_also_if_the_model_is_stuck(client, serving, held):
    service = serving(deadline_s=0.05)

    async def run():
        holding = await held(service).hold()
        async with client(service) as connected:
            answer = await posted(connected)
        with pytest.raises(Refusal, match=r"took longer than 0\.05 s"):
            await holding
        return answer

    answer = asyncio.run(run())
    assert answer.status_code == 504 and service.waiting == 0
    assert error_of(answer) == "The answer took longer than 0.05 s; ask for less, or later."


def test_at_the_end_what_waits_is_answered_and_the_rest_refused(client, serving, held):
    service = serving()

    async def run():
        busy = held(service)
        holding = await busy.hold()
        async with client(service) as connected:
            waiting = posted(connected)
            await until(lambda: service.waiting == 1)
            service.is_draining = True
            late, ready, alive = await posted(connected), await connected.get("/ready"), await connected.get("/health")
            busy.gone.set()
            await holding
            return late, ready, alive, await waiting

    late, ready, alive, waiting = asyncio.run(run())
    assert [each.status_code for each in (late, ready, alive, waiting)] == [503, 503, 200, 200]
    assert error_of(late) == error_of(ready) == "The service is shutting down; ask another one."


class Recording:
    """Task that keeps the batches that it was started with."""

    def __init__(self):
        self.batches = []

    def start(self, payloads):
        self.batches.append(list(payloads))
        return lambda: payloads


def run_jobs(batcher: Batcher, jobs: list[tuple[Recording, str, int]]) -> list:
    results = []
    batcher.submit([Job(task, payload, size, results.append) for task, payload, size in jobs])
    batcher.close()
    return results


def test_batches_are_formed_in_order_of_arrival_and_kind():
    one, other = Recording(), Recording()
    batcher = Batcher(max_batch=4, max_wait_s=5, max_queue=100)
    jobs = [(one, "a", 1), (other, "b", 1), (one, "c", 2), (one, "d", 2), (one, "e", 1), (other, "f", 4)]
    assert run_jobs(batcher, jobs) == ["a", "c", "e", "b", "d", "f"]
    assert one.batches == [["a", "c", "e"], ["d"]] and other.batches == [["b"], ["f"]]


def test_a_job_waits_for_others_but_not_for_long():
    task, results, batcher = Recording(), [], Batcher(max_batch=4, max_wait_s=0.05, max_queue=9)
    started = time.monotonic()
    for payload in ("a", "b"):
        batcher.submit([Job(task, payload, 1, results.append)])
    while len(results) < 2:
        assert time.monotonic() - started < 5
        time.sleep(0.001)
    assert time.monotonic() - started >= 0.05 and task.batches == [["a", "b"]]
    batcher.close()


def test_a_queue_that_empties_while_a_batch_forms_goes_on():
    task, results, batcher = Recording(), [], Batcher(max_batch=4, max_wait_s=0.05, max_queue=9)
    given_up = Job(task, "a", 1, results.append)
    batcher.submit([given_up])
    time.sleep(0.01)
    batcher.cancel([given_up])
    time.sleep(0.1)
    assert batcher.is_alive
    batcher.submit([Job(task, "b", 1, results.append)])
    batcher.close()
    assert results == ["b"] and not batcher.is_alive


def test_a_service_whose_thread_has_ended_is_not_ready(client, serving):
    service = serving()
    service._batcher.close()

    async def run():
        async with client(service) as connected:
            return [await connected.get("/ready"), await posted(connected), await connected.get("/health")]

    assert [answer.status_code for answer in asyncio.run(run())] == [503, 503, 200]


@pytest.mark.parametrize(
    ("overlaps", "expected"),
    [
        (True, ["start a", "start b", "read a", "start c", "read b", "read c"]),
        (False, ["start a", "read a", "start b", "read b", "start c", "read c"]),
    ],
)
def test_on_a_gpu_the_next_batch_starts_before_the_last_one_is_read(overlaps, expected):
    events = []

    class Slow:
        def start(self, payloads):
            events.append(f"start {payloads[0]}")
            return lambda: events.append(f"read {payloads[0]}") or payloads

    batcher = Batcher(max_batch=1, max_wait_s=0, max_queue=9, overlaps=overlaps)
    run_jobs(batcher, [(Slow(), name, 1) for name in "abc"])
    assert events == expected
