"""ForeignData: the names of the items' tokens, titles, held-out examples and the prompt, from the files of a project.

A project is one file (`minionerec.py`, `lcrec.py`, `openonerec.py`) with a function that reads its files into a
ForeignData; `tokens.py` finds the named tokens in the checkpoint.

Shapes: N items, L levels.
"""

from __future__ import annotations

import dataclasses
import json
import lzma
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llmrec.configs import ImportConfig
from llmrec.data.columns import HISTORY, SPLIT, TARGET, USER_ID
from llmrec.runtime.reading import reading
from llmrec.sid.bounds import LARGEST, MOST_LEVELS

SLOT = "{history}"
MOST_BYTES = 1 << 30  # of a file; RecIF's sid2pid.json, the largest known, is smaller
LETTER_TOKEN = re.compile(r"<([a-z])_(\d{1,9})>")


@dataclass(frozen=True)
class PromptTexts:
    """The prompt of a project.

    Attributes:
        text: Text of a prompt, with {history} in it.
        separator: Text between two items.
        begin: Token before every item, the answer as well; "" for none.
        end: Token behind every item of a history; "" for none.
        max_history: Largest number of items that it shows.
    """

    text: str
    separator: str
    begin: str = ""
    end: str = ""
    max_history: int = 20


@dataclass(frozen=True)
class ForeignData:
    """Content of a project's files.

    Attributes:
        item_ids: N distinct ids.
        numbers_NL: (N, L) number in the name of each token.
        template: Text of a token, with {letter} and {code}.
        prompt: The prompt.
        titles: Title of each item; "" if it has none.
        examples: Columns user_id, split, history and target; None if no file of them was given.
    """

    item_ids: list[str]
    numbers_NL: np.ndarray
    template: str
    prompt: PromptTexts
    titles: list[str]
    examples: pl.DataFrame | None = None

    def __post_init__(self) -> None:
        known = set(self.item_ids)
        if self.examples is not None and self.examples.height:
            named = set(self.examples[HISTORY].explode().drop_nulls()) | set(self.examples[TARGET])
            if named - known:
                raise ValueError(
                    f"the file of held-out items names {len(named - known)} items that the index lacks, first: "
                    f"'{min(named - known)}'; give the two files of one data set."
                )


def read_whole(path: str | Path) -> bytes:
    """Read a file, plain or .xz, which may not unfold to more than MOST_BYTES.

    Raises:
        ValueError: If it has more.
    """
    path = Path(path)
    with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    return content


def read_json_object(path: str | Path) -> dict[str, Any]:
    """Read a JSON object, plain or .xz.

    Raises:
        ValueError: If the file is absent, too large, or no JSON object with entries.
    """
    with reading(path, "a JSON file", "give the file that the project publishes"):
        values = json.loads(read_whole(path))
        if not isinstance(values, dict) or not values:
            raise ValueError("a JSON object with an entry for each item is needed")
    return values


def read_letter_index(path: str | Path) -> tuple[list[str], np.ndarray]:
    """Read an index of LC-Rec's form, `{"0": ["<a_12>", "<b_3>", …], …}`.

    Returns:
        N item ids, and (N, L) numbers in the names of their tokens.

    Raises:
        ValueError: If an entry is not a list of tokens a, b, c and so on, or the lists differ in length.
    """
    index = read_json_object(path)
    rows = []
    for item_id, tokens in index.items():
        found = [LETTER_TOKEN.fullmatch(token) if isinstance(token, str) else None for token in as_list(tokens)]
        letters = "".join(match[1] for match in found if match)
        if not found or letters != "abcdefghijklmnopqrstuvwxyz"[: len(found)]:
            raise ValueError(
                f"'{path}' has {str(tokens)[:80]!r} for item '{item_id[:40]}'; a list such as "
                '["<a_12>", "<b_3>", "<c_40>"] is needed, its letters in order.'
            )
        rows.append([int(match[2]) for match in found if match])
    return list(index), check_numbers(rows, list(index), path)


def as_list(value: object) -> list[object]:
    """Return a list of at most as many entries as there may be levels; anything else has none."""
    return value if isinstance(value, list) and len(value) <= MOST_LEVELS else []


def check_numbers(rows: list[list[int]], item_ids: list[str], path: str | Path) -> np.ndarray:
    """Return the (N, L) numbers of all items.

    Raises:
        ValueError: If items differ in their number of levels, or a number is too large.
    """
    for item_id, numbers in zip(item_ids, rows, strict=True):
        if len(numbers) != len(rows[0]) or max(numbers) > LARGEST:
            raise ValueError(
                f"'{path}' has {len(numbers)} levels for item '{item_id[:40]}' and {len(rows[0])} for "
                f"'{item_ids[0][:40]}'; every item needs as many, with numbers below 2^31."
            )
    return np.array(rows, np.int64)


def with_text(prompt: PromptTexts, config: ImportConfig) -> PromptTexts:
    """Replace the text of a prompt by that of a file, if the config names one.

    Raises:
        ValueError: If the file cannot be read, or does not have {history} once, behind some text.
    """
    if config.prompt is None:
        return prompt
    with reading(config.prompt, "a text file", "give UTF-8 text with {history} in it"):
        text = Path(config.prompt).read_text(encoding="utf-8")
    if text.count(SLOT) != 1 or not text.split(SLOT)[0]:
        raise ValueError(f"prompt '{config.prompt}' needs {SLOT} once, with text before it.")
    return dataclasses.replace(prompt, text=text)


def examples_table(rows: Iterable[tuple[str, str, list[str], str]]) -> pl.DataFrame:
    """Make the table of examples from user, split, history and target."""
    text = pl.String()
    schema: dict[str, pl.DataType] = {USER_ID: text, SPLIT: text, HISTORY: pl.List(text), TARGET: text}
    return pl.DataFrame(list(rows), schema=schema, orient="row")
