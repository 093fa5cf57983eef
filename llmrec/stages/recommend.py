"""recommend: answer users whose histories stand on the command line, in a file, or in the catalogue.

Tables of millions of users (`--users`) are answered by `llmrec.stages.recommend_users`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmrec.configs import RecommendConfig
from llmrec.data.catalog import Catalog
from llmrec.data.columns import FALLBACK, HISTORY, HISTORY_TITLES, ITEM_ID, ITEMS, SCORE, TITLE, UNKNOWN, USER_ID
from llmrec.data.requests.answer_file import POPULARITY, check_place, write_answers
from llmrec.data.requests.item_lists import shown
from llmrec.data.requests.request_file import LISTS, UserRequest, read_requests
from llmrec.runtime import processes
from llmrec.runtime.console import say, tell
from llmrec.runtime.manifest import JsonObject
from llmrec.serve.batch.permitted import find_matching, local_table, permitted_items, read_excluded
from llmrec.sid.table import SidTable
from llmrec.stages import recommend_users

if TYPE_CHECKING:
    from llmrec.decoding.answering import Answers

OUT, COUNTS = "out", "counts"


def main(config: RecommendConfig) -> JsonObject:
    """Recommend for every user.

    Returns:
        `users`: for each user the keys that its request carried, its `history`, and `items` with item_id and score;
        given a catalogue, the `history_titles`, and the title of each item; `unknown`, the item_ids that were left
        out, and `fallback`, if the items are the popular ones. With `out`, its path instead of `users`. `counts` of
        users and of what was left out.

    Raises:
        ValueError: If a request or condition is malformed, a request names an unknown item, no item meets the
            conditions, the catalogue is of other items, or the checkpoint is not usable.
    """
    if sum(given is not None for given in (config.history, config.input, config.users, config.user)) != 1:
        raise ValueError(
            "Give either --history (item_ids of one user), --input (a file of users), --users (a table of any size) or "
            "--user (user_ids of the catalogue), not both or neither."
        )
    if config.users is not None:
        return recommend_users.main(config)
    if processes.count() > 1:
        raise ValueError(f"{processes.count()} processes were started; only --users is shared out, so start one.")
    return answer_requests(config)


def answer_requests(config: RecommendConfig) -> JsonObject:
    """Answer the requests that fit into memory, as `main` says."""
    catalog = None if config.catalog is None else Catalog.load(config.catalog)
    requests = find_requests(config, catalog)
    matching = None if config.where is None else find_matching(config.where, catalog)
    if config.out is not None:
        check_place(Path(config.out), requests, [config.input, config.catalog, config.model])
    here = local_table(config.model)
    if here is not None:
        read_items(config, requests, here)
    from llmrec.recommender import Recommender  # imports torch, which takes seconds; refused requests need not wait

    recommender = Recommender.from_pretrained(config.model, device=config.device, rank=config.rank, catalog=catalog)
    for note in recommender.given.notes() if recommender.given else ():
        say(f"recommend: {note}.")
    table = recommender.table
    excluded, strangers = read_items(config, requests, table)
    permitted = permitted_items(table, matching, excluded)
    seen = [[i for i in request.history if i in table.row_of] if config.exclude_seen else [] for request in requests]
    answers = recommender.recommend(
        [request.history for request in requests],
        config.k,
        exclude=[request.exclude + own for request, own in zip(requests, seen, strict=True)],
        allow=restrict([request.allow for request in requests], permitted),
        unknown=config.unknown,
        batch_size=config.batch_size,
        min_new=config.min_new,
    )
    titles = {} if catalog is None else catalog.title_of
    users = [described(request, place, answers, titles) for place, request in enumerate(requests)]
    counts = {
        "users": len(users),
        FALLBACK: sum(answers.is_fallback),
        UNKNOWN: sum(map(len, answers.unknown)),
        **({} if recommender.given is None else {"catalog": recommender.given.counts}),
    }
    for note in notes_of(users, [*strangers, *answers.unknown_filters]):
        say(f"recommend: {note}.")
    if config.out is None:
        return {"users": users, COUNTS: counts}
    write_answers(Path(config.out), requests, users)
    return {OUT: config.out, COUNTS: counts}


def find_requests(config: RecommendConfig, catalog: Catalog | None) -> list[UserRequest]:
    """Collect the requests, at least one, each under a name for messages.

    Raises:
        ValueError: If --history or --user is empty, a user is unknown, or the file cannot be read.
    """
    if config.input is not None:
        return read_requests(config.input)
    if config.user is None:
        if not config.history:
            raise ValueError("--history is empty; give at least one item_id.")
        return [UserRequest("--history", config.history, [], None, {})]
    if catalog is None or not config.user:
        problem = "is empty; give at least one user_id" if catalog else "needs --catalog, which has their histories"
        raise ValueError(f"--user {problem}.")
    histories = catalog.user_histories(config.user)
    absent = [user_id for user_id, history in zip(config.user, histories, strict=True) if not history]
    if absent and config.unknown == "error":
        raise ValueError(
            f"--user names {len(absent)} of {len(histories)} users that '{catalog.source}' does not have: "
            f"{shown(absent[:3])}. With --unknown skip they get popular items."
        )
    pairs = zip(config.user, histories, strict=True)
    return [UserRequest(f"--user {shown(user)}", history, [], None, {USER_ID: user}) for user, history in pairs]


def read_items(
    config: RecommendConfig, requests: Sequence[UserRequest], table: SidTable
) -> tuple[list[str], list[str]]:
    """Read --exclude, and check it and all requests.

    Returns:
        item_ids that nobody gets, and those of --exclude that are unknown.

    Raises:
        ValueError: If an item_id is unknown, and is not to be skipped.
    """
    lists = {f'{request.place}, "{name}"': getattr(request, name) or () for request in requests for name in LISTS}
    return read_excluded(config.exclude, table, config.unknown, lists)


def restrict(allowed: list[list[str] | None], permitted: list[str] | None) -> list[list[str] | None]:
    """Cut the allow-lists of requests to permitted items; requests without a list of their own share these."""
    if permitted is None:
        return allowed
    members = set(permitted)
    return [permitted if ids is None else [item_id for item_id in ids if item_id in members] for ids in allowed]


def described(request: UserRequest, place: int, answers: Answers, titles: Mapping[str, str]) -> JsonObject:
    """Answer at a place, as it is printed and written."""
    items = [
        {ITEM_ID: item_id, SCORE: score, **({TITLE: titles[item_id]} if titles else {})}
        for item_id, score in zip(answers.item_ids[place], answers.scores[place], strict=True)
    ]
    unknown = answers.unknown[place]
    return {
        **request.carried,
        HISTORY: request.history,
        **({HISTORY_TITLES: [titles.get(item_id) for item_id in request.history]} if titles else {}),
        ITEMS: items,
        **({UNKNOWN: unknown} if unknown else {}),
        **({FALLBACK: POPULARITY} if answers.is_fallback[place] else {}),
    }


def notes_of(users: Sequence[JsonObject], strangers: Sequence[str]) -> list[str]:
    """Sentences about what was left out and who got popular items."""
    notes = []
    unknown = [user[UNKNOWN] for user in users if UNKNOWN in user]
    if unknown:
        counted = f"{len(unknown)} of {len(users)}"
        notes.append(f"unknown items were left out of {counted} histories, first {shown(unknown[0])}")
    if strangers:
        ids = list(dict.fromkeys(strangers))
        notes.append(f"unknown items were left out of what to exclude or allow: {len(ids)}, first {shown(ids[:3])}")
    cold = sum(FALLBACK in user for user in users)
    if cold:
        notes.append(f"{cold} of {len(users)} users got the most popular items, as no known item is in their history")
    short = sum(not user[ITEMS] for user in users)
    if short:
        notes.append(f"{short} of {len(users)} users got no item, as their filters leave none")
    return notes


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    if OUT in result:
        tell(f"{result[COUNTS]['users']} users answered -> {result[OUT]}")
        return
    for user in result["users"]:
        titles = user.get(HISTORY_TITLES, user[HISTORY])
        name = f"user {user[USER_ID]}, " if USER_ID in user else ""
        history = ", ".join(title or item for title, item in zip(titles, user[HISTORY], strict=True))
        tell(f"{name}history: {history or 'none, so popular items'}")
        for rank, item in enumerate(user[ITEMS], 1):
            tell(f"{rank:4d}  {item['score']:9.4f}  {item['item_id']}  {item.get('title', '')}".rstrip())
