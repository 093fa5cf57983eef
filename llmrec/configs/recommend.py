"""Options of `llmrec recommend`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmrec.configs.options import Config, option

RankBy = Literal["sid", "items", "mixture"]
RANK_HELP = (
    "Rank by SIDs under a beam, by item rows in one pass (of a model extended with `item_rows`), or by a mixture of "
    "both probabilities."
)


@dataclass(kw_only=True)
class RecommendConfig(Config):
    """Recommend items for histories given on the command line or in a file."""

    model: str = option("Directory or Hub id of the checkpoint.")
    history: list[str] | None = option("History of one user: item_ids, oldest first.", None)
    input: str | None = option(
        "JSON-lines file with one {'history': [...], 'exclude': [...], 'allow': [...]} for each user.", None
    )
    k: int = option("Number of items per user.", 10, least=1)
    rank: RankBy = option(RANK_HELP, "sid")
    exclude_seen: bool = option("Leave out the items of the history.", True)
    where: list[str] | None = option(
        'SQL conditions that all answers must meet, on the columns of `catalog`, such as "price <= 20".', None
    )
    catalog: str | None = option(
        "Directory written by `llmrec prepare`. It is needed for titles and for `where`.", None
    )
    device: str = option("Device of the model: auto, cpu or cuda.", "auto")
