"""recommend: answer users whose histories stand on the command line, in a file, or in the catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmrec.configs import RecommendConfig
from llmrec.data.catalog import Catalog
from llmrec.data.columns import FALLBACK, HISTORY, HISTORY_TITLES, ITEM_ID, ITEMS, SCORE, TITLE, UNKNOWN, USER_ID
from llmrec.data.requests.answer_file import check_place, write_answers
from llmrec.data.requests.item_lists import find_rows, shown
from llmrec.data.requests.request_file import LISTS, UserRequest, read_requests
from llmrec.runtime.console import say, tell
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.table import SidTable

if TYPE_CHECKING:
    from llmrec.decoding.answering import Answers

POPULARITY = "popularity"
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
    if sum(given is not None for given in (config.history, config.input, config.user)) != 1:
        raise ValueError(
            "Give either --history (item_ids of one user), --input (a file of users) or --user (user_ids of the "
            "catalogue), not both or neither."
        )
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
        min_new=config.min_new,
    )
    titles = {} if catalog is None else dict(zip(catalog.item_ids, catalog.titles, strict=True))
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


def local_table(model: str) -> SidTable | None:
    """SID table of a checkpoint on this machine, by which requests are checked before the weights are read."""
    try:
        return SidTable.load(model)
    except ValueError:  # it is on the Hub, or whoever loads the whole checkpoint says what is wrong
        return None


def find_matching(where: Sequence[str], catalog: Catalog | None) -> list[str]:
    """Find the item_ids that meet all conditions, at least one.

    Raises:
        ValueError: If there is no condition or no catalogue, a condition is malformed, or no item meets all of them.
    """
    if not where:
        raise ValueError("--where is empty; give conditions such as 'price <= 20', or leave it out.")
    if catalog is None:
        raise ValueError("--where needs --catalog, the `llmrec prepare` directory that has the columns.")
    matching = catalog.where(*where)
    if not matching:
        alone = "; ".join(f"'{condition}' is met by {len(catalog.where(condition))}" for condition in where)
        raise ValueError(
            f"none of the {catalog.num_items} items of '{catalog.source}' meets --where: {alone}. Loosen a condition."
        )
    return matching


def read_items(
    config: RecommendConfig, requests: Sequence[UserRequest], table: SidTable
) -> tuple[list[str], list[str]]:
    """Read --exclude, and check that all item_ids are known, if they must be.

    Returns:
        item_ids that nobody gets, and those of --exclude that are unknown.

    Raises:
        ValueError: If an item_id is unknown, and is not to be skipped.
    """
    lists = {f'{request.place}, "{name}"': getattr(request, name) or () for request in requests for name in LISTS}
    excluded = excluded_items(config.exclude, table.row_of)
    remedy = "--unknown skip leaves unknown items out."
    found = find_rows({"--exclude": excluded, **lists}, table.row_of, config.unknown, remedy=remedy)
    return [table.item_ids[row] for row in found[0][0]], found[0][1]


def excluded_items(entries: Sequence[str] | None, known: Mapping[str, int]) -> list[str]:
    """Read the entries of --exclude: known item_ids, files with one item_id per line, or else unknown item_ids.

    Raises:
        ValueError: If a file is not UTF-8.
    """
    found = []
    for entry in entries or ():
        if entry in known or not Path(entry).is_file():
            found.append(entry)
            continue
        try:
            lines = Path(entry).read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"--exclude '{entry}' is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
        found += [line.strip() for line in lines if line.strip()]
    return found


def permitted_items(table: SidTable, matching: list[str] | None, excluded: Sequence[str]) -> list[str] | None:
    """Find the item_ids that everybody may get; None if that is all of them.

    Raises:
        ValueError: If there is none.
    """
    if matching is None and not excluded:
        return None
    barred = set(excluded)
    candidates = table.item_ids if matching is None else [item_id for item_id in matching if item_id in table.row_of]
    permitted = [item_id for item_id in candidates if item_id not in barred]
    if not permitted:
        cause = "--exclude names all items" if candidates else "the model knows none of the items that meet --where"
        raise ValueError(f"{cause}, so that nothing can be recommended.")
    return permitted


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
