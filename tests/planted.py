"""A simulated log in which users browse and, at the end, take what they like: a preference to learn beyond the log.

The simulator's sequences are what users look at. After them each takes three items, the last of the training sequence
and the targets of valid and test: `FAITHFUL` of these are the favourite that follows the item before, the others are
drawn from the simulator's truth. One target in many of the training log follows the preference, every held-out one may.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from extended import fine_tune, write_sid
from prepared import write_catalog

from llmrec.catalog import Catalog
from llmrec.columns import ITEM_ID, TEXT, TITLE, USER_ID
from llmrec.configs import ExtendConfig
from llmrec.sid import SidTable
from llmrec.simulate import Simulation, simulate
from llmrec.stages import extend

NUM_USERS, NUM_ITEMS, FAITHFUL = 800, 96, 0.7
TAKEN = ("train", "valid", "test")


def favourites(simulation: Simulation) -> np.ndarray:
    """(N,) item that follows each item where users follow their preference: any of the next cluster but its top two."""
    rng, clusters = np.random.default_rng(0), simulation.item_clusters
    found = np.empty(NUM_ITEMS, dtype=np.int64)
    for item, cluster in enumerate(clusters):
        nearby = np.flatnonzero(clusters == (cluster + 1) % (clusters.max() + 1))
        found[item] = rng.choice(nearby[np.argsort(-simulation.popularity[nearby])[2:]])
    return found


def planted_catalog(path: Path) -> tuple[Catalog, np.ndarray]:
    """The catalogue, and the (N,) cluster of each item row."""
    simulation = simulate(NUM_USERS, NUM_ITEMS)
    rng, follows = np.random.default_rng(1), favourites(simulation)
    item_ids = simulation.dataset.items[ITEM_ID].to_list()
    rows = []
    browsed = simulation.dataset.interactions.group_by(USER_ID, maintain_order=True).agg(ITEM_ID)
    for user, history in browsed.iter_rows():
        for split in TAKEN:
            last = item_ids.index(history[-1])
            drawn = rng.choice(NUM_ITEMS, p=simulation.next_item(int(user.removeprefix("user-")), last))
            target = item_ids[follows[last] if rng.random() < FAITHFUL else drawn]
            rows.append({"user_id": user, "split": split, "history": list(history), "target": target})
            history.append(target)
    items = pa.table({"item_id": item_ids, "title": simulation.dataset.items[TITLE].to_list(),
                      "text": simulation.dataset.items[TEXT].to_list()})  # fmt: skip
    return write_catalog(path, items, pa.Table.from_pylist(rows)), simulation.item_clusters


def fine_tuned(root: Path) -> tuple[str, Path]:
    """Catalogue directory and a micro model fine-tuned on it; SIDs are the cluster and the place in it."""
    catalog, clusters = planted_catalog(root / "catalog")
    place = np.empty(NUM_ITEMS, dtype=np.int64)
    for cluster in np.unique(clusters):
        place[clusters == cluster] = np.arange((clusters == cluster).sum())
    codes = np.stack([clusters // 4, clusters % 4, place], axis=1)
    sid = write_sid(root / "sid", SidTable(catalog.item_ids, codes))
    base = extend.main(
        ExtendConfig(out=str(root / "base"), sid=str(sid), model="micro", catalog=catalog.source, micro_layers=2,
                     micro_hidden=64)
    )["out"]  # fmt: skip
    fine_tune(
        root / "sft", catalog.source, Path(base), train="full", max_steps=-1, epochs=8, batch_size=64,
        micro_batch_size=64, max_history=10, learning_rate=3e-3, warmup_steps=10, logging_steps=100,
    )  # fmt: skip
    return catalog.source, root / "sft"
