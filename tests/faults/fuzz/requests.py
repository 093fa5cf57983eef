"""Fuzzed requests to `Recommender.recommend`: histories, filters and numbers of every kind and library.

The judge knows, from the request alone, which items may be answered, and that scores fall and are finite.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from llmrec import Recommender, SidConfig, SidTable, SidVocabulary
from llmrec.model.micro import micro_model, word_tokenizer
from llmrec.model.prompts import Prompt
from tests.faults.fuzz.judge import Case, Wrong

IDS = [f"item {row}" for row in range(24)]
# A level without choice, SIDs of two lengths, and three items that share a SID.
CODES = [[row // 6, row % 6 % 4, row % 3] for row in range(20)] + [[5, 5, -1], [6, 0, 0], [6, 0, 0], [6, 0, 0]]
NUMBERS: tuple[object, ...] = (0, -1, 1, 2.0, 1.5, True, None, "3", math.nan, math.inf, 10**30, np.int64(3),
                               np.float32(2), [3], torch.tensor(3), object())  # fmt: skip
ENTRIES: tuple[object, ...] = (None, 5, "stranger", "", "item 0 ", "ITEM 0", b"item 0", ["item 0"], math.nan, True,
                               "item 0\n", "\x1b[2J", np.str_("item 0"), ("item 1",), {"item 2"}, object())  # fmt: skip
WRAPPERS: tuple[Callable[[list], Any], ...] = (
    list, list, list, tuple, np.array, lambda v: np.array(v, dtype=object), pl.Series, pa.array, set, iter,
    lambda v: (x for x in v), lambda v: {x: 1 for x in v}, lambda v: " ".join(map(str, v)), lambda v: [v],
    lambda v: pl.DataFrame({"a": v}), lambda v: np.array([v, v]), frozenset, lambda v: dict.fromkeys(v).keys(),
)  # fmt: skip


def prepare_all(directory: Path) -> Recommender:
    """A recommender of 24 items, by a model with random weights."""
    table = SidTable(IDS, CODES)
    tokenizer = word_tokenizer(IDS, max_words=64)
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes)
    model = micro_model(tokenizer, layers=1, hidden_size=32, seed=0).eval()
    return Recommender(model, tokenizer, table, SidConfig(vocabulary, Prompt(), 6, "level"))


def case(seed: int, directory: Path, shared: Recommender) -> Case:
    """One fuzzed request."""
    rng = random.Random(seed)
    given, count = valid(rng), rng.choices((0, 1, 2, 3), (20, 62, 12, 6))[0]
    plain = dict(given)
    for _ in range(count):
        change(rng, given)

    def run() -> None:
        # Answers to a generator cannot be judged by it afterwards; those are refused.
        answers = shared.recommend(**given)
        check(shared.table, given, *answers)
        if not count:
            alone = shared.recommend(**{**plain, "batch_size": 1})
            if answers[0] != alone[0] or not np.allclose(flat(answers[1]), flat(alone[1]), atol=1e-5):
                raise Wrong("a user is answered differently in a batch")

    return Case(count, run, f"seed {seed}: {given!r}"[:2000])


def flat(lists: list[list[float]]) -> list[float]:
    return [value for values in lists for value in values]


def some(rng: random.Random, least: int = 1) -> list[str]:
    return rng.choices(IDS, k=rng.randint(least, 9))


def valid(rng: random.Random) -> dict[str, Any]:
    """A request that is answered."""
    users = rng.randint(1, 5)
    given: dict[str, Any] = {"histories": [some(rng) for _ in range(users)], "k": rng.choice((1, 2, 5, 10, 24, 30))}
    filters = ("seen", None, some(rng), [rng.choice((None, some(rng, 0))) for _ in range(users)])
    given["exclude"] = rng.choice(filters)
    if rng.random() < 0.3:
        given["allow"] = rng.choice((some(rng), [rng.choice((None, some(rng))) for _ in range(users)]))
    if rng.random() < 0.3:
        given["num_beams"] = given["k"] + rng.randint(0, 20)
    if rng.random() < 0.3:
        given["batch_size"] = rng.randint(1, 4)
    return given


def change(rng: random.Random, given: dict[str, Any]) -> None:
    """Change one thing of a request, in place."""
    what = rng.choice(("number", "entry", "wrapper", "inner wrapper", "lists", "length", "unknown"))
    if what == "number":
        given[rng.choice(("k", "num_beams", "batch_size"))] = rng.choice(NUMBERS)
    elif what == "unknown":
        given["unknown"] = rng.choice(("error", "skip", "ignore", None, 1, ["skip"]))
    elif what == "lists":
        given[rng.choice(("histories", "exclude", "allow"))] = rng.choice(
            (None, [], [[]], "item 0", "seen", ["item 0"], [["item 0"]] * 3, 5, [None], {}, [[[]]], ["seen"])
        )
    else:
        given["exclude"] = given["exclude"] if isinstance(given.get("exclude"), list) else some(rng)
        name = rng.choice([name for name in ("histories", "exclude", "allow") if isinstance(given.get(name), list)])
        lists = given[name] = list(given[name])
        at = rng.randrange(len(lists)) if lists else None
        if what == "wrapper":
            with_errors(given, name, rng.choice(WRAPPERS), lists)
        elif what == "length":
            given[name] = rng.choice((lists[:-1], [*lists, [IDS[0]]], lists * 2))
        elif at is not None and isinstance(lists[at], list):
            if what == "inner wrapper":
                with_errors(lists, at, rng.choice(WRAPPERS), lists[at])
            else:
                lists[at] = [*lists[at]]
                lists[at].insert(rng.randrange(len(lists[at]) + 1), rng.choice(ENTRIES))
        elif at is not None:
            lists[at] = rng.choice(ENTRIES)


def with_errors(container: Any, key: Any, wrap: Callable[[list], Any], value: list) -> None:
    """Wrap a list if its library takes it."""
    try:
        container[key] = wrap(value)
    except Exception:
        container[key] = value


def entries(values: Any) -> list:
    """Entries of a list of any library."""
    return values.to_pylist() if hasattr(values, "to_pylist") else list(values)


def ids_of(values: Any) -> list[str]:
    """Known item_ids of such a list."""
    return [str(value) for value in entries(values) if isinstance(value, str) and value in IDS]


def check(table: SidTable, given: dict[str, Any], item_ids: list[list[str]], scores: list[list[float]]) -> None:
    """Check the answers against the request.

    Raises:
        Wrong: If an answer is no item, is barred, repeats, or is scored by what is no number.
    """
    histories, exclude, allow = given["histories"], given.get("exclude", "seen"), given.get("allow")
    users = entries(histories)
    if len(item_ids) != len(users) or len(scores) != len(users):
        raise Wrong(f"{len(item_ids)} answers to {len(users)} users")
    k = int(given["k"]) if "k" in given else 10
    for user, (answer, values) in enumerate(zip(item_ids, scores, strict=True)):
        barred = barred_of(exclude, users, user)
        allowed = allowed_of(allow, users, user)
        if len(answer) > k or len(answer) != len(values) or len(set(answer)) < len(answer):
            raise Wrong(f"user {user}: {answer} with {values} for k = {k}")
        if not set(answer) <= set(IDS) or set(answer) & barred or (allowed is not None and not set(answer) <= allowed):
            raise Wrong(f"user {user}: {answer} has items that are barred or unknown")
        free = len((set(IDS) if allowed is None else allowed) - barred)
        if "num_beams" not in given and len(answer) < min(k, free):
            raise Wrong(f"user {user}: {len(answer)} items, though {free} are allowed and k is {k}")
        if not all(map(math.isfinite, values)) or any(a < b - 1e-6 for a, b in itertools.pairwise(values)):
            raise Wrong(f"user {user}: scores {values}")


def barred_of(exclude: Any, users: list, user: int) -> set[str]:
    """Items that one user may not be given."""
    if exclude is None:
        return set()
    if isinstance(exclude, str):
        return set(ids_of(users[user]))
    lists = entries(exclude)
    if all(isinstance(entry, str) for entry in lists):  # one list for all, beside what was seen
        return set(ids_of(lists)) | set(ids_of(users[user]))
    return set() if lists[user] is None else set(ids_of(lists[user]))


def allowed_of(allow: Any, users: list, user: int) -> set[str] | None:
    """Items that one user may be given; None for all."""
    if allow is None:
        return None
    lists = entries(allow)
    if all(isinstance(entry, str) for entry in lists):
        return set(ids_of(lists))
    return None if lists[user] is None else set(ids_of(lists[user]))
