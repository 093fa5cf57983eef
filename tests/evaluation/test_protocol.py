"""One protocol for every ranker: equal to direct computation, in any batching, over processes, and resumable."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.examples import Examples
from llmrec.evaluation import metrics
from llmrec.evaluation.metrics import target_position
from llmrec.evaluation.protocol import Outcome, dealt, evaluate, per_batch, seen_targets
from llmrec.evaluation.ranking import Ranking


def fake_rank(histories, k, exclude=None) -> Ranking:
    """Ranks 12 items by their distance after the last item; items 2i and 2i + 1 share a group."""
    items = np.full((len(histories), 12), -1)
    for row, history in enumerate(histories):
        best = [(history[-1] // 2 * 2 + step) % 12 for step in range(12)]
        best = [item for item in best if exclude is None or item not in exclude[row]]
        items[row, : len(best)] = best
    groups = np.where(items >= 0, (items // 2 - items[:, :1] // 2) % 6, -1)
    return Ranking(items, groups, -np.arange(items.size, dtype=float).reshape(items.shape))


def fake_stream(batches, k, num_beams=None):
    """As `fake_rank`, with one batch in flight: the next is taken before the last is answered."""
    waiting = None
    for histories, exclude in batches:
        if waiting is not None:
            yield fake_rank(*waiting)
        waiting = histories, k, exclude
    if waiting is not None:
        yield fake_rank(*waiting)


def random_rows(count=40) -> Examples:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 6, size=count)
    return Examples(
        user_ids=[f"user-{i // 2}" for i in range(count)],
        values=rng.integers(0, 12, size=lengths.sum()),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        targets=rng.integers(0, 12, size=count),
    )


def assert_equal(a: Outcome, b: Outcome) -> None:
    for left, right in zip((*a.position, a.items, a.invalid), (*b.position, b.items, b.invalid), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("column", ["plain", "seen_excluded"])
def test_outcome_equals_direct_computation_in_any_batching(column):
    rows = random_rows()
    histories = [rows.history(i) for i in range(len(rows))]
    direct = fake_rank(histories, 4, histories if column == "seen_excluded" else None)
    for batch_size in (1, 7, 64):
        outcome = evaluate(fake_stream, rows, 4, column, batch_size)
        assert_equal(evaluate(per_batch(fake_rank), rows, 4, column, batch_size), outcome)
        for found, expected in zip(outcome.position, target_position(direct, rows.targets), strict=True):
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(outcome.items, direct.items[:, :4])


def test_the_order_of_examples_changes_no_answer():
    rows, order = random_rows(), np.random.default_rng(1).permutation(40)
    plain, permuted = (evaluate(fake_stream, r, 4, "plain", 7) for r in (rows, rows.take(order)))
    np.testing.assert_array_equal(permuted.items, plain.items[order])
    np.testing.assert_array_equal(permuted.position.start, plain.position.start[order])


def test_a_target_in_the_history_is_a_miss_where_seen_items_are_excluded():
    rows = random_rows()
    seen = seen_targets(rows)
    assert seen.any()
    outcome = evaluate(fake_stream, rows, 4, "seen_excluded", 7)
    np.testing.assert_array_equal(outcome.position.start == -1, seen)  # the fake ranks every item that is allowed
    assert metrics.recall(outcome.position, 4)[seen].max() == 0


def test_a_ranking_shorter_than_k_leaves_slots_unfilled():
    def short(histories, k, exclude):
        full = fake_rank(histories, k, exclude)
        return Ranking(full.items[:, :2], full.groups[:, :2], full.scores[:, :2])

    outcome = evaluate(per_batch(short), random_rows(), 4, "plain", 7)
    assert outcome.items.shape == (40, 4)
    assert metrics.unfilled(outcome.items, 4) == 0.5


def test_a_ranker_that_breaks_the_protocol_is_refused():
    with pytest.raises(ValueError, match="asked to exclude"):
        evaluate(per_batch(lambda histories, k, _: fake_rank(histories, k)), random_rows(), 4, "seen_excluded", 7)
    with pytest.raises(ValueError, match="answered 1 histories of a batch of 7"):
        evaluate(per_batch(lambda histories, k, _: fake_rank(histories[:1], k)), random_rows(), 4, "plain", 7)
    with pytest.raises(ValueError, match="answered fewer batches than the 6"):
        evaluate(lambda batches, k: islice(fake_stream(batches, k), 5), random_rows(), 4, "plain", 7)
    with pytest.raises(ValueError, match="answered more batches than the 6"):
        evaluate(lambda batches, k: [*fake_stream(batches, k), fake_rank([[1]], k)], random_rows(), 4, "plain", 7)
    with pytest.raises(ValueError, match="choose from plain, seen_excluded"):
        evaluate(fake_stream, random_rows(), 4, "seen", 7)


def test_evaluate_reads_an_answer_while_the_next_batch_runs():
    """The evaluator neither asks for all answers before it reads one, nor waits for one before it hands on the next."""
    events = []

    def rank(batches, k):
        for answer in fake_stream(noted(batches), k):
            yield answer
            events.append("read")

    def noted(batches):
        for batch in batches:
            events.append("asked")
            yield batch

    evaluate(rank, random_rows(), 4, "plain", 10)
    assert events == ["asked", "asked", "read", "asked", "read", "asked", "read", "read"]


@given(st.integers(0, 60), st.integers(1, 9))
@settings(derandomize=True, max_examples=50, deadline=None)
def test_batches_are_dealt_whole_and_evenly(num_batches, count):
    """Each batch goes to one process, and with falling costs no process works one batch longer than another."""
    shares = [dealt(list(range(num_batches)), rank, count) for rank in range(count)]
    assert sorted(batch for share in shares for batch in share) == list(range(num_batches))
    cost = [sum(num_batches - batch for batch in share) for share in shares]
    assert max(cost) - min(cost) <= num_batches
    if num_batches % (2 * count) == 0:
        assert len(set(cost)) == 1


TWO_PROCESSES = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests.evaluation.test_protocol import evaluate, fake_stream, random_rows
for column in ("plain", "seen_excluded"):
    evaluate(fake_stream, random_rows(), 4, column, 7).save(Path({out!r}) / f"{{sys.argv[1]}}-{{column}}.npz")
"""


def test_two_processes_answer_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = TWO_PROCESSES.format(tests=str(Path(__file__).parents[2]), out=str(tmp_path))
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, rank], env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in ("0", "1")
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    for column in ("plain", "seen_excluded"):
        alone = evaluate(fake_stream, random_rows(), 4, column, 7)
        for rank in ("0", "1"):
            assert_equal(Outcome.load(tmp_path / f"{rank}-{column}.npz"), alone)
