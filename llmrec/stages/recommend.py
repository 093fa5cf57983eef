"""recommend: answer histories given on the command line or in a JSON-lines file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from llmrec.configs import RecommendConfig
from llmrec.data.catalog import Catalog
from llmrec.runtime.console import tell
from llmrec.runtime.manifest import JsonObject

KEYS = {"history", "exclude", "allow"}
Request = dict[str, list[str]]


def main(config: RecommendConfig) -> JsonObject:
    """Recommend for every history.

    Returns:
        `users`: for each history its `history`, and `items` with item_id and score; given a catalogue, the
        `history_titles`, and the title of each item.

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
    matching = None if config.where is None else find_matching(config.where, catalog)
    from llmrec.recommender import Recommender  # imports torch, which takes seconds; refused requests need not wait

    recommender = Recommender.from_pretrained(config.model, device=config.device, rank=config.rank)
    lists = {f'{place}, "{key}"': ids for place, request in by_place.items() for key, ids in request.items()}
    recommender.table.find_items(lists if matching is None else lists | {"--where": matching})  # refuses unknown ones
    requests = list(by_place.values())
    histories = [request["history"] for request in requests]
    barred = [
        [*request.get("exclude", []), *(request["history"] if config.exclude_seen else [])] for request in requests
    ]
    allowed = restrict([request.get("allow") for request in requests], matching)
    answers = recommender.recommend(histories, config.k, exclude=barred, allow=allowed)
    titles = {} if catalog is None else dict(zip(catalog.item_ids, catalog.titles, strict=True))
    users = [
        {
            "history": history,
            **({"history_titles": [titles.get(item_id) for item_id in history]} if titles else {}),
            "items": [_item(*pair, titles) for pair in zip(items, scores, strict=True)],
        }
        for history, items, scores in zip(histories, *answers, strict=True)
    ]
    return {"users": users}


def find_requests(config: RecommendConfig) -> dict[str, Request]:
    """Collect the requests, at least one, under a name for messages.

    Raises:
        ValueError: If a history is empty, or the file cannot be read.
    """
    if config.input is not None:
        return read_requests(config.input)
    if not config.history:
        raise ValueError("--history is empty; give at least one item_id.")
    return {"--history": {"history": config.history}}


def read_requests(path: str) -> dict[str, Request]:
    """Read the requests of a JSON-lines file; each is named by the file and its line.

    Raises:
        ValueError: With every line that is not {"history": [...], "exclude": [...], "allow": [...]}.
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


def restrict(allowed: list[list[str] | None], matching: list[str] | None) -> list[list[str] | None]:
    """Cut the allow-lists of requests to the matching items; requests without a list of their own share these."""
    if matching is None:
        return allowed
    members = set(matching)
    return [matching if ids is None else [item_id for item_id in ids if item_id in members] for ids in allowed]


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


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    for user in result["users"]:
        titles = user.get("history_titles", user["history"])
        tell("history: " + ", ".join(title or item for title, item in zip(titles, user["history"], strict=True)))
        for rank, item in enumerate(user["items"], 1):
            tell(f"{rank:4d}  {item['score']:9.4f}  {item['item_id']}  {item.get('title', '')}".rstrip())
