"""Options of `llmrec quickstart`."""

from __future__ import annotations

from dataclasses import dataclass

from llmrec.configs.options import MAX_SEED, Config, option


@dataclass(kw_only=True)
class QuickstartConfig(Config):
    """Run every stage on MovieTweetings (or the simulator) and print ours beside the baselines."""

    out: str = option("Directory of all stages.", "llmrec-quickstart")
    model: str = option(
        "Hub id or path of a causal LLM; 'micro' trains a small new one; 'auto' takes SmolLM2-135M on a GPU.", "auto"
    )
    dataset: str = option("Known dataset to run on.", "movietweetings")
    num_users: int | None = option("Keep a random sample of users.", None, least=1)
    epochs: float | None = option("Passes over the training sequences.", None, above=0)
    overwrite: bool = option("Start again.", False)
    seed: int = option("Seed of every stage.", 0, least=0, most=MAX_SEED)
