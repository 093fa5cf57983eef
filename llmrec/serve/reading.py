"""From requests as clients send them to item rows, and those of several requests to one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from llmrec.decoding.answering import AnswerSize
from llmrec.decoding.requests import NO_ROWS, ItemRequests, read_requests
from llmrec.serve.generation import Generation
from llmrec.serve.messages import Request
from llmrec.serve.refusals import Refusal
from llmrec.sid.table import SidTable


def read(
    generation: Generation, requests: Sequence[Request], size_of: Callable[[Request], AnswerSize]
) -> list[ItemRequests]:
    """Check requests against a checkpoint, and convert their item_ids to item rows.

    Args:
        generation: The checkpoint and its catalogue.
        requests: One of each user.
        size_of: Reads how many items a request wants, and how they are searched; raises ValueError.

    Returns:
        Each request by itself.

    Raises:
        Refusal: If one cannot be answered, with every such request.
    """
    recommender, found, problems = generation.recommender, [], []
    plain = read_plain(recommender.table, requests)
    for place, each in enumerate(requests):
        try:
            asked = plain[place] if place in plain else read_one(recommender.table, each)
            if each.is_filtered:
                asked = generation.items.restrict(asked, tuple(each.where), each.max_popularity)
            recommender.sid_config.vocabulary.check_rank(each.rank or "sid")
            recommender.answerer.check(asked, size_of(each))
            found.append(asked)
        except ValueError as error:
            problems.append(f"{f'request {place}: ' if len(requests) > 1 else ''}{error}")
    if problems:
        more = f" {len(problems) - 5} more such requests." if len(problems) > 5 else ""
        raise Refusal(422, " ".join(problems[:5]) + more)
    return found


def read_plain(table: SidTable, requests: Sequence[Request]) -> dict[int, ItemRequests]:
    """Read in one call, which takes a fifth of the time, the requests that have no lists but their histories.

    Returns:
        Those requests by their places; none of them can be refused for its items.
    """
    places = [
        place
        for place, each in enumerate(requests)
        if each.allow is None and each.unknown == "skip" and not isinstance(each.exclude, list)
    ]
    asked = read_requests(table, [requests[place].history for place in places], None, None, "skip")
    return {
        place: ItemRequests([rows], [NO_ROWS if requests[place].exclude is None else rows], NO_ROWS, [None], [ids], [])
        for place, rows, ids in zip(places, asked.histories, asked.unknown, strict=True)
    }


def read_one(table: SidTable, request: Request) -> ItemRequests:
    """Read a request with lists of its own.

    Raises:
        ValueError: If it has unknown items, and they are not skipped.
    """
    allow = None if request.allow is None else [request.allow]  # of the only user; it may be empty
    return read_requests(table, [request.history], request.exclude, allow, request.unknown)


def joined(users: Sequence[ItemRequests]) -> ItemRequests:
    """Requests of one user each as those of one batch."""
    return ItemRequests(
        [each.histories[0] for each in users],
        [np.concatenate([each.exclude[0], each.exclude_all]) for each in users],
        NO_ROWS,
        [each.allow[0] for each in users],
        [each.unknown[0] for each in users],
        [],
    )
