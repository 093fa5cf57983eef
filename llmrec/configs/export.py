"""Options of `llmrec export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmrec.configs.options import Config, StageConfig, option


@dataclass(kw_only=True)
class ExportConfig(StageConfig, Config):
    """Write a checkpoint in the format of another program."""

    model: str = option("Directory or Hub id of the checkpoint.")
    to: Literal["flashrec", "vllm", "space", "torch"] = option(
        "Program that reads the result. 'flashrec' is the engine FlashRec: a model directory and its catalogue of "
        "semantic IDs. 'vllm' is any engine that runs a processor of logits: the merged model, and its trie. 'space' "
        "is a Docker Space of the Hugging Face Hub, which serves the checkpoint and its page. 'torch' is a program of "
        "torch.export that scores all items in one forward pass, for a model with item rows or a head."
    )
    catalog: str | None = option(
        "Directory written by `llmrec prepare`, whose items a Space shows by title. Its interactions are left out.",
        None,
    )

    def problems(self) -> list[str]:
        """List what does not go with the program."""
        is_lost = self.catalog is not None and self.to != "space"
        found = [f"catalog is for a Space, and to is '{self.to}'; leave it out"] if is_lost else []
        return found + super().problems()
