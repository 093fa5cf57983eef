"""Semantic IDs that other projects have published, read into a SidTable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmrec.data.public_formats import read_bytes
from llmrec.sid.table import SidTable


def minionerec_sids(folder: str | Path, item_ids: Sequence[str] | None = None) -> SidTable:
    """Read the semantic IDs that MiniOneRec published, shared ones included (collision policy `accept`).

    Args:
        folder: Folder that holds `index/*.index.json`, plain or .xz.
        item_ids: Catalogue order of the table; the order of the file when left out.

    Raises:
        ValueError: If the folder does not hold exactly one index file, or an item has no published SID.
    """
    files = sorted(Path(folder).glob("index/*.index.json*"))
    if len(files) != 1:
        raise ValueError(f"'{folder}' holds {len(files)} files index/*.index.json (or .xz); exactly one is needed.")
    tokens = json.loads(read_bytes(files[0]))
    item_ids = list(tokens) if item_ids is None else list(item_ids)
    missing = [item_id for item_id in item_ids if item_id not in tokens]
    if missing:
        raise ValueError(f"{files[0]} has no SID for {len(missing)} items; first: {missing[:3]}.")
    # "<b_231>" is code 231 of the second level; the level is its place in the list.
    codes = [[int(token.strip("<>").split("_")[1]) for token in tokens[item_id]] for item_id in item_ids]
    return SidTable(item_ids, np.asarray(codes))
