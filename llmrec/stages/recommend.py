"""recommend: answer histories given on the command line or in a JSON-lines file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from llmrec.configs import RecommendConfig
from llmrec.data.catalog import Catalog
from llmrec.runtime.console import is_quiet
from llmrec.runtime.manifest import JsonObject

KEYS = {"history", "exclude", "allow"}
Request = dict[str, list[str]]


def main(config: RecommendConfig) -> JsonObject:
    """Recommend for every history and print the answers on stdout.

    Returns:
        `users`: for each history its `history`, and `items` with item_id, score and, given a catalogue, title.

    Raises:
        ValueError: If a request or condition is malformed, a request names an unknown item, no item meets the
            conditions, or the checkpoint is not usable.
    """
    if (config.history is None) == (config.input is None):
        raise ValueError(
            "Give either --history (item_ids of one user) or --input (a JSON-lines file), not both or neither."
        )
    by_place = find_requests(config)
    catalog = None if config.catalog is None else Catalog.load(config.catalog)
    wanted = None if config.where is None else find_wanted(config.where, catalog)
    from llmrec.recommender import Recommender  # torch and transformers, whose seconds no refused request should cost

    recommender = Recommender.from_pretrained(config.model, device=config.device)
    lists = {f'{place}, "{key}"': ids for place, request in by_place.items() for key, ids in request.items()}
    recommender.table.find_items(lists if wanted is None else lists | {"--where": wanted})  # refuses unknown ones
    requests = list(by_place.values())
    histories = [request["history"] for request in requests]
    barred = [
        [*request.get("exclude", []), *(request["history"] if config.exclude_seen else [])] for request in requests
    ]
    allowed = restrict([request.get("allow") for request in requests], wanted)
    answers = recommender.recommend(histories, config.k, exclude=barred, allow=allowed)
    titles = {} if catalog is None else dict(zip(catalog.item_ids, catalog.titles, strict=True))
    users = [
        {"history": history, "items": [_item(*found, titles) for found in zip(items, scores, strict=True)]}
        for history, items, scores in zip(histories, *answers, strict=True)
    ]
    if not is_quiet():
        show(users, titles)
    return {"users": users}


def find_requests(config: RecommendConfig) -> dict[str, Request]:
    """Where each request comes from, for messages -> the request; not empty.

    Raises:
        ValueError: If a history is empty, or the file cannot be read.
    """
    if config.input is not None:
        return read_requests(config.input)
    if not config.history:
        raise ValueError("--history is empty; give at least one item_id.")
    return {"--history": {"history": config.history}}


def read_requests(path: str) -> dict[str, Request]:
    """Requests of a JSON-lines file, by the file and line that they stand in.

    Raises:
        ValueError: With the line of every row that is not {"history": [...], "exclude": [...], "allow": [...]}.
    """
    if not Path(path).is_file():
        raise ValueError(f"input '{path}' does not exist; give a JSON-lines file with one user per line.")
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # not splitlines: JSON text may hold U+2028
    except UnicodeDecodeError as error:
        raise ValueError(f"input '{path}' is not UTF-8 (byte {error.start}); save it as UTF-8.") from error
    requests, problems = {}, []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                requests[f"{path}, line {number}"] = _parse_request(line)
            except ValueError as error:
                problems.append(f"line {number}: {error}")
    if problems or not requests:
        raise ValueError(f"input '{path}': " + ("; ".join(problems[:10]) or "no request in it."))
    return requests


def find_wanted(where: Sequence[str], catalog: Catalog | None) -> list[str]:
    """item_ids that meet all conditions; not empty.

    Raises:
        ValueError: If there is no condition or no catalogue, a condition is malformed, or no item meets all of them.
    """
    if not where:
        raise ValueError("--where is empty; give conditions such as 'price <= 20', or leave it out.")
    if catalog is None:
        raise ValueError("--where needs --catalog, the directory of `llmrec prepare` whose columns it is about.")
    wanted = catalog.where(*where)
    if not wanted:
        alone = "; ".join(f"'{condition}' is met by {len(catalog.where(condition))}" for condition in where)
        raise ValueError(
            f"none of the {catalog.num_items} items of '{catalog.source}' meets --where: {alone}. Loosen a condition."
        )
    return wanted


def restrict(allowed: list[list[str] | None], wanted: list[str] | None) -> list[list[str] | None]:
    """Allow-lists of requests, cut to the wanted items; a request without its own shares the one list of them."""
    if wanted is None:
        return allowed
    known = set(wanted)
    return [wanted if ids is None else [item_id for item_id in ids if item_id in known] for ids in allowed]


def _parse_request(line: str) -> Request:
    try:
        request = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(request, dict) or "history" not in request or set(request) - KEYS:
        raise ValueError('needs {"history": [...]} and may have "exclude" and "allow"')
    for key, ids in request.items():
        if not isinstance(ids, list) or not all(isinstance(item_id, str) for item_id in ids):
            raise ValueError(f'"{key}" must be a list of item_id strings')
    if not request["history"]:
        raise ValueError('"history" is empty; give at least one item_id')
    return request


def _item(item_id: str, score: float, titles: dict[str, str]) -> JsonObject:
    title = {"title": titles[item_id]} if item_id in titles else {}
    return {"item_id": item_id, "score": round(score, 4), **title}


def show(users: list[JsonObject], titles: dict[str, str]) -> None:
    """Print histories and answers as text."""
    for user in users:
        print("history:", ", ".join(titles.get(item_id) or item_id for item_id in user["history"]))
        for rank, item in enumerate(user["items"], 1):
            print(f"{rank:4d}  {item['score']:9.4f}  {item['item_id']}  {item.get('title', '')}".rstrip())
