"""Options of `llmrec push`."""

from __future__ import annotations

from dataclasses import dataclass

from llmrec.configs.options import Config, option


@dataclass(kw_only=True)
class PushConfig(Config):
    """Upload a checkpoint, the semantic IDs of a catalogue, or a Space to the Hugging Face Hub."""

    source: str = option(
        "Directory of a checkpoint, or one written by `llmrec tokenize` or by `llmrec export --to space`."
    )
    repo_id: str = option("Repository, owner/name; it is made if there is none.")
    private: bool = option(
        "Show a repository that is made to its owner alone. One that exists keeps its visibility.", True
    )
    metrics: str | None = option("metrics.json of `llmrec evaluate`, for the card of a checkpoint.", None)
    license: str | None = option("Id of the licence that the card claims, such as apache-2.0.", None)
