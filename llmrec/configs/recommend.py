"""Options of `llmrec recommend`."""

from __future__ import annotations

from dataclasses import dataclass

from llmrec.configs.options import Config, option


@dataclass(kw_only=True)
class RecommendConfig(Config):
    """Recommend items for histories given on the command line or in a file."""

    model: str = option("Checkpoint directory or Hub id.")
    history: list[str] | None = option("item_ids of one user, oldest first.", None)
    input: str | None = option(
        "JSON lines file: one {'history': [...], 'exclude': [...], 'allow': [...]} per user.", None
    )
    k: int = option("Items per user.", 10, least=1)
    exclude_seen: bool = option("Leave out items of the history.", True)
    where: list[str] | None = option(
        'SQL conditions that all answers must meet, on the columns of `catalog`, such as "price <= 20".', None
    )
    catalog: str | None = option("Directory written by `llmrec prepare`, for titles and `where`.", None)
    device: str = option("Device of the model: auto, cpu, cuda.", "auto")
