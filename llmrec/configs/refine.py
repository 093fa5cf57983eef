"""Options of `llmrec refine`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmrec.configs.options import Config, StageConfig, option


@dataclass(kw_only=True)
class RefineConfig(StageConfig, Config):
    """Move items to semantic IDs that the fine-tuned LLM finds more likely for them (SIIT)."""

    stage: ClassVar[str] = "refine"

    catalog: str = option("Directory written by `llmrec prepare`.")
    model: str = option("Checkpoint directory of a stage that trains.")
    max_churn: float = option("Largest share of the items that move.", 0.2, least=0, most=1)
    min_gain: float = option(
        "Least gain of a move, in nats: what the mean log-probability of the semantic ID rises by.",
        0.1,
        least=0,
    )
    batch_size: int = option("Number of prompts read together.", 256, identity=False, least=1)
    device: str = option("Device of the model: auto, cpu or cuda.", "auto", identity=False)
