"""Options of `llmrec recommend`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmrec.configs.options import Config, StageConfig, option

RankBy = Literal["sid", "items", "mixture", "ground"]
RANK_HELP = (
    "Rank by SIDs under a beam, by item rows in one pass (of a model extended with `item_rows`), or by a mixture of "
    "both probabilities. 'ground' lets a model of titles write freely, and ranks by the distance of titles from that."
)
SHARD_SIZE = 10_000


@dataclass(kw_only=True)
class RecommendConfig(Config):
    """Recommend items for histories given on the command line, in a file, or in a table of millions of users."""

    model: str = option("Directory or Hub id of the checkpoint.")
    history: list[str] | None = option("History of one user: item_ids, oldest first.", None)
    input: str | None = option(
        "File with one user per line: JSON lines with {'history': [...], 'exclude': [...], 'allow': [...]}, or parquet "
        "with these columns; further keys, such as user_id, are repeated in the answers.",
        None,
    )
    users: str | None = option(
        "Parquet file with the columns of `input`, or a directory of such files, of any size. It is answered in "
        "shards: `out` becomes a directory with one parquet file for every `shard_size` users, and the same command "
        "continues after an interruption.",
        None,
    )
    user: list[str] | None = option("User_ids of `catalog`, whose histories are read from there.", None)
    out: str | None = option(
        "File to write the answers to, .parquet or .jsonl, one user per line, instead of printing them; with `users`, "
        "the directory to write.",
        None,
    )
    k: int = option("Number of items per user.", 10, least=1)
    rank: RankBy = option(RANK_HELP, "sid")
    exclude_seen: bool = option("Leave out the items of the history.", True)
    exclude: list[str] | None = option(
        "Items that nobody is recommended: item_ids, or files with one item_id per line.", None
    )
    unknown: Literal["error", "skip"] = option(
        "What is done about item_ids and user_ids that are unknown: refuse them, or leave them out and say so. A user "
        "without a known item gets popular items.",
        "error",
    )
    min_new: int = option(
        "Least number of the `k` items that were appended after training, which take the last places.", 0, least=0
    )
    where: list[str] | None = option(
        'SQL conditions that all answers must meet, on the columns of `catalog`, such as "price <= 20".', None
    )
    catalog: str | None = option(
        "Directory written by `llmrec prepare`: the model's catalogue or a later one. Only items that it has are "
        "recommended. It is needed for titles, `where` and `user`.",
        None,
    )
    shard_size: int = option("Number of users in a file of the answers to `users`.", SHARD_SIZE, least=1)
    overwrite: bool = option("Replace the result of another run of `users` in `out`.", False, identity=False)
    batch_size: int = option(
        "Number of users decoded together on one device. It affects only the speed and the memory.",
        64,
        identity=False,
        least=1,
    )
    device: str = option("Device of the model: auto, cpu or cuda.", "auto", identity=False)

    def problems(self) -> list[str]:
        """Sentences about options that only `users` has, what it needs, and numbers that do not fit."""
        is_given = {"shard_size": self.shard_size != SHARD_SIZE, "overwrite": self.overwrite}
        given = [name for name in is_given if is_given[name]]
        found = []
        if self.users is not None and self.out is None:
            found.append("users needs out, the directory for the answers")
        if self.users is None and given:
            found.append(f"{' and '.join(given)}: only users has this; give users, or leave it out")
        if self.min_new > self.k:
            found.append(f"min_new is {self.min_new}, more than k = {self.k}; give {self.k} or less")
        return found


@dataclass(kw_only=True)
class UsersConfig(StageConfig, RecommendConfig):  # type: ignore[misc]  # `out` is no option here, but needed
    """Options of `llmrec recommend --users`, as those of a stage that writes a directory."""
