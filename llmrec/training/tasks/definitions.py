"""Alignment tasks: prompts that tie semantic IDs to titles, descriptions, categories and to what comes next.

Texts are those of items.parquet; histories and the items that follow them are training interactions (`catalog.train`).
`llmrec.training.tasks.examples` turns the table below into training examples.

Departures from LC-Rec and MiniOneRec: the wording of the templates is our own, and no text is written by another LLM.

Source: tasks of LC-Rec (arXiv:2311.09049) and MiniOneRec (arXiv:2510.24431).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmrec.configs import SftConfig
from llmrec.data import columns
from llmrec.data.catalog import Catalog

SLOT = "{given}"  # where a template shows what is given
CATEGORY_COLUMNS = ("category", "genres", "brand")


@dataclass(frozen=True)
class Task:
    """One kind of question.

    Args:
        given: What the prompt shows.
        answer: What is learned.
        templates: Texts of the prompt; one is drawn for each example.
        of_history: Whether the question is what came after a training history, instead of about one item.
    """

    given: Literal["sid", "title", "description", "category"]
    answer: Literal["sid", "title"]
    templates: tuple[str, ...]
    of_history: bool = False


TASKS = {
    "sid_to_title": Task("sid", "title", (
        "What is the item {given} called? Its title:",
        "The title of the item with the semantic ID {given}:",
        "Name this item: {given}. It is",
    )),
    "title_to_sid": Task("title", "sid", (
        "Which semantic ID has the item {given}? Its semantic ID:",
        "Title: {given}. Semantic ID:",
        "Find the item with the title {given}:",
    )),
    "titles_to_sid": Task("title", "sid", (
        "A user with this history, oldest first: {given}. The semantic ID of the next item:",
        "Items that a user chose one after another: {given}. The item after them:",
        "Recommend the next item, as a semantic ID, after {given}:",
    ), of_history=True),
    "sids_to_title": Task("sid", "title", (
        "A user with this history, oldest first: {given}. The title of the next item:",
        "Items that a user chose one after another: {given}. The next one is called",
        "Recommend the next item, by its title, after {given}:",
    ), of_history=True),
    "description_to_sid": Task("description", "sid", (
        "An item is described as follows: {given}. Its semantic ID:",
        "Which item is this? {given}. Semantic ID:",
        "Find the item that fits this description: {given}. It is",
    )),
    "category_to_sids": Task("category", "sid", (
        "Some items of {given}, as semantic IDs:",
        "Recommend a few items of the kind {given}:",
        "Which items belong to {given}? For example",
    )),
}  # fmt: skip


def task_problems(config: SftConfig, catalog: Catalog) -> list[str]:
    """Columns that the tasks need and that items.parquet lacks, or has without a value; empty if none."""
    return [problem for name in config.tasks for problem in _column_problems(name, config, catalog)]


def descriptions(catalog: Catalog) -> list[str]:
    """What the column `text` says of each item beyond its title; empty where that is nothing."""
    if columns.TEXT not in catalog.items.column_names:
        return [""] * catalog.num_items
    texts = catalog.items[columns.TEXT].to_pylist()
    pairs = zip(catalog.titles, texts, strict=True)
    return [(text or "").strip().removeprefix(title.strip()).strip(" .,:;-\n") for title, text in pairs]


def categories(catalog: Catalog, column: str | None) -> dict[str, np.ndarray]:
    """Item rows of each value of a column, whose values may be lists; of the first of CATEGORY_COLUMNS if None."""
    names = [column] if column else CATEGORY_COLUMNS
    found = next((name for name in names if name in catalog.items.column_names), None)
    members: dict[str, list[int]] = {}
    for row, values in enumerate(catalog.items[found].to_pylist() if found else []):
        for value in dict.fromkeys(values if isinstance(values, list) else [values]):
            if value is not None and str(value).strip():
                members.setdefault(str(value).strip(), []).append(row)
    return {value: np.array(rows) for value, rows in members.items()}


def _column_problems(name: str, config: SftConfig, catalog: Catalog) -> list[str]:
    needs = {TASKS[name].given, TASKS[name].answer}
    lacking = []
    if "title" in needs and not any(catalog.titles):
        lacking.append(f"texts in the column '{columns.TITLE}'")
    if "description" in needs and not any(descriptions(catalog)):
        lacking.append(f"a column '{columns.TEXT}' that says more than the title")
    if "category" in needs and not categories(catalog, config.category_column):
        known = f"one of the columns {', '.join(CATEGORY_COLUMNS)}, or the name of another in category_column"
        lacking.append(f"the column '{config.category_column}'" if config.category_column else known)
    has = f"{catalog.source}/items.parquet has {', '.join(catalog.items.column_names)}"
    return [f"task '{name}' needs {what}; {has}" for what in lacking]
