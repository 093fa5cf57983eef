"""Texts of the catalogue that alignment tasks use: descriptions and categories of items.

They come from items.parquet. Histories, and the items that follow them, are training interactions (`catalog.train`).
"""

from __future__ import annotations

import numpy as np

from llmrec.configs import SftConfig
from llmrec.configs.tasks import TASKS
from llmrec.data import columns
from llmrec.data.catalog import Catalog

CATEGORY_COLUMNS = ("category", "genres", "brand")  # the first that a catalogue has is used


def task_problems(config: SftConfig, catalog: Catalog) -> list[str]:
    """List what the tasks of a run need and items.parquet does not have, or has without a value."""
    return [problem for name in config.tasks for problem in _missing_texts(name, catalog)]


def descriptions(catalog: Catalog) -> list[str]:
    """Text of each item in the column `text`, without the title that it starts with; empty if nothing is left."""
    if columns.TEXT not in catalog.items.column_names:
        return [""] * catalog.num_items
    texts = catalog.items[columns.TEXT].to_pylist()
    pairs = zip(catalog.titles, texts, strict=True)
    return [(text or "").strip().removeprefix(title.strip()).strip(" .,:;-\n") for title, text in pairs]


def categories(catalog: Catalog) -> dict[str, np.ndarray]:
    """Item rows of each value of the first of CATEGORY_COLUMNS; a value may be a list, and each entry counts."""
    column = next((name for name in CATEGORY_COLUMNS if name in catalog.items.column_names), None)
    members: dict[str, list[int]] = {}
    for row, values in enumerate(catalog.items[column].to_pylist() if column else []):
        for value in dict.fromkeys(values if isinstance(values, list) else [values]):
            if value is not None and str(value).strip():
                members.setdefault(str(value).strip(), []).append(row)
    return {value: np.array(rows) for value, rows in members.items()}


def _missing_texts(name: str, catalog: Catalog) -> list[str]:
    needs = {TASKS[name].given, TASKS[name].answer}
    missing = []
    if "title" in needs and not any(catalog.titles):
        missing.append(f"texts in the column '{columns.TITLE}'")
    if "description" in needs and not any(descriptions(catalog)):
        missing.append(f"a column '{columns.TEXT}' that says more than the title")
    if "category" in needs and not categories(catalog):
        missing.append(f"one of the columns {', '.join(CATEGORY_COLUMNS)}")
    has = f"{catalog.source}/items.parquet has {', '.join(catalog.items.column_names)}"
    return [f"task '{name}' needs {what}; {has}" for what in missing]
