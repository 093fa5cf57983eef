"""A catalogue in which something is preferred that the histories do not tell, for the stages that learn preferences.

Users of the simulator meet items of their clusters by popularity. Half of the items are liked; what a user ends with,
the last item of the training sequence and the two that are held out, is drawn from the same truth among liked items
alone. So next-item prediction on every item learns what is met, and only the last items tell what is liked.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.configs import ExtendConfig
from llmrec.data.columns import ITEM_ID, TITLE, USER_ID
from llmrec.data.simulator import Simulation, simulate
from llmrec.sid.table import SidTable
from llmrec.stages import extend
from tests.support.extended import write_sid
from tests.support.prepared import write_catalog

HELD_OUT = 2
LONGEST = 12  # items met


def planted(root: Path, num_users: int, num_items: int, seed: int = 0) -> tuple[str, Path, np.ndarray]:
    """Catalogue directory, a micro model extended for it, and (N,) bool which items are liked."""
    truth = simulate(num_users, num_items, seed)
    rng = np.random.default_rng(seed)
    liked = rng.permutation(num_items) % 2 == 0
    item_ids = truth.dataset.items[ITEM_ID].to_list()
    items = pa.table({"item_id": item_ids, "title": truth.dataset.items[TITLE].to_list()})
    rows = [row for user, met in enumerate(sequences(truth)) for row in split(truth, user, met, liked, item_ids, rng)]
    catalog = write_catalog(root / "catalog", items, pa.Table.from_pylist(rows)).source
    sid = write_sid(root / "sid", SidTable(item_ids, codes(truth)))
    options = {"model": "micro", "micro_hidden": 64, "micro_layers": 2}
    base = extend.main(ExtendConfig(out=str(root / "base"), sid=str(sid), catalog=catalog, **options))["out"]
    return catalog, Path(base), liked


def sequences(truth: Simulation) -> list[list[int]]:
    """Item rows that each user met, oldest first."""
    row_of = {item_id: row for row, item_id in enumerate(truth.dataset.items[ITEM_ID])}
    log = truth.dataset.interactions.sort(USER_ID, "timestamp")
    by_user = {key: part[ITEM_ID].to_list() for (key,), part in log.partition_by(USER_ID, as_dict=True).items()}
    return [[row_of[i] for i in by_user[f"user-{user}"]][-LONGEST:] for user in range(len(by_user))]


def split(truth, user, met, liked, item_ids, rng) -> list[dict]:
    """Rows of a user whose last three items are liked."""
    walked = list(met)
    for _ in range(1 + HELD_OUT):
        chances = truth.next_item(user, walked[-1]) * liked
        walked.append(int(rng.choice(len(chances), p=chances / chances.sum())))
    ids = [item_ids[row] for row in walked]
    ends = {"train": len(ids) - 3, "valid": len(ids) - 2, "test": len(ids) - 1}
    return [{"user_id": f"user-{user}", "split": name, "history": ids[:end], "target": ids[end]}
            for name, end in ends.items()]  # fmt: skip


def codes(truth: Simulation) -> np.ndarray:
    """(N, 3) cluster, then the place within it in base 8."""
    place = np.zeros(len(truth.item_clusters), np.int64)
    for cluster in np.unique(truth.item_clusters):
        members = np.flatnonzero(truth.item_clusters == cluster)
        place[members] = np.arange(len(members))
    return np.stack([truth.item_clusters, place // 8, place % 8], axis=1)
