"""Check of a catalogue before a network is trained on it."""

from __future__ import annotations

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.data.side_fields import side_fields


def check_trainable(name: str, catalog: Catalog) -> None:
    """Refuse a catalogue on which a network cannot be trained, and name every problem of its split.

    Args:
        name: Name of the baseline.
        catalog: Catalogue to train on.

    Raises:
        ValueError: If there are no valid examples, no training sequence has two items, or `sasrec_fields` finds no side
            field.
    """
    problems = []
    if len(catalog.examples("valid")) == 0:
        problems.append(f"has no 'valid' examples, by which {name} chooses its epoch")
    if np.diff(catalog.train.offsets).max(initial=0) < 1:
        problems.append(f"has {len(catalog.train)} training sequences, none of which has two items to learn from")
    if problems:
        raise ValueError(
            f"{catalog.source}/split.parquet {'; it '.join(problems)}. "
            f"Run `llmrec prepare` with more users or a smaller k_core, or leave {name} out of the baselines."
        )
    if name == "sasrec_fields":
        side_fields(catalog)
