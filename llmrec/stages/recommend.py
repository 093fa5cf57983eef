"""recommend: answer histories given on the command line or in a JSON-lines file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmrec.catalog import Catalog
from llmrec.configs import RecommendConfig
from llmrec.console import is_quiet
from llmrec.recommender import Recommender

KEYS = {"history", "exclude", "allow"}
Request = dict[str, list[str]]


def main(config: RecommendConfig) -> dict[str, Any]:
    """Recommend for every history and print the answers on stdout.

    Returns:
        `users`: for each history its `history`, and `items` with item_id, score and, given a catalogue, title.

    Raises:
        ValueError: If a request is malformed or names an unknown item, or the checkpoint is not usable.
    """
    if (config.history is None) == (config.input is None):
        raise ValueError(
            "Give either --history (item_ids of one user) or --input (a JSON-lines file), not both or neither."
        )
    places, requests = zip(*find_requests(config).items(), strict=True)
    titles = titles_of(config.catalog)
    recommender = Recommender.from_pretrained(config.model, device=config.device)
    check_items(dict(zip(places, requests, strict=True)), recommender.table.item_ids)
    histories = [request["history"] for request in requests]
    barred = [
        [*request.get("exclude", []), *(request["history"] if config.exclude_seen else [])] for request in requests
    ]
    allowed = [request.get("allow") for request in requests]
    answers = recommender.recommend(histories, config.k, exclude=barred, allow=allowed)
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


def check_items(requests: dict[str, Request], item_ids: list[str]) -> None:
    """Refuse requests that name unknown items, with the place of each of the first ten.

    Raises:
        ValueError: If there is one.
    """
    known = set(item_ids)
    problems = [
        f'{place} names items in "{key}" that this checkpoint does not know: {unknown[:3]}'
        for place, request in requests.items()
        for key, ids in request.items()
        if (unknown := [item_id for item_id in ids if item_id not in known])
    ]
    if problems:
        more = f"; {len(problems) - 10} more such lists" if len(problems) > 10 else ""
        raise ValueError(
            "; ".join(problems[:10]) + f"{more}. Its catalogue has {len(known)} items, such as '{item_ids[0]}'."
        )


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


def titles_of(catalog: str | None) -> dict[str, str]:
    """Title of each item_id; empty without a catalogue."""
    if catalog is None:
        return {}
    loaded = Catalog.load(catalog)
    return dict(zip(loaded.item_ids, loaded.titles, strict=True))


def _item(item_id: str, score: float, titles: dict[str, str]) -> dict[str, Any]:
    title = {"title": titles[item_id]} if item_id in titles else {}
    return {"item_id": item_id, "score": round(score, 4), **title}


def show(users: list[dict[str, Any]], titles: dict[str, str]) -> None:
    """Print histories and answers as text."""
    for user in users:
        print("history:", ", ".join(titles.get(item_id) or item_id for item_id in user["history"]))
        for rank, item in enumerate(user["items"], 1):
            print(f"{rank:4d}  {item['score']:9.4f}  {item['item_id']}  {item.get('title', '')}".rstrip())
