"""Options of `llmrec run`: those of `prepare`, which says what is read, and two of its own."""

from __future__ import annotations

from dataclasses import dataclass

from llmrec.configs.options import Config, option
from llmrec.configs.prepare import PrepareConfig


@dataclass(kw_only=True)
class RunConfig(PrepareConfig, Config):
    """Go from your own log to recommendations in one command: every stage, with sizes that the data choose."""

    out: str = option("Directory to write; each stage gets a directory of its own in it.", "llmrec-run", identity=False)
    k_core: int | None = option(
        "Drop users and items with fewer interactions than this, again and again; 0 keeps all. The default is the "
        "largest up to 5 that keeps half of the users with three interactions or more.",
        None,
        least=0,
    )
    model: str = option(
        "Causal LLM to start from (Hub id or path). 'micro' trains a small new one, which needs neither a GPU nor a "
        "download.",
        "micro",
    )
    epochs: float | None = option(
        "Passes over the training sequences. The default is up to 12, fewer for a large log on a CPU.", None, above=0
    )
