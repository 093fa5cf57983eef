"""Options of `llmrec quickstart`."""

from __future__ import annotations

from dataclasses import dataclass

from llmrec.configs.options import MAX_SEED, Config, option


@dataclass(kw_only=True)
class QuickstartConfig(Config):
    """Run every stage on MovieTweetings (or the simulator) and compare the LLM with SASRec and other rankers."""

    out: str = option("Directory to write; each stage gets a directory of its own in it.", "llmrec-quickstart")
    model: str = option(
        "Causal LLM to start from (Hub id or path). 'micro' trains a small new one; 'auto' takes SmolLM2-135M if there "
        "is a GPU, else 'micro'.",
        "auto",
    )
    dataset: str = option("Known dataset to run on, or simulated.", "movietweetings")
    num_users: int | None = option("Keep a random sample of this many users. The default is all.", None, least=1)
    epochs: float | None = option(
        "Passes over the training sequences. The default is 12 for 'micro' and 3 for a pretrained model.", None, above=0
    )
    overwrite: bool = option("Replace the results of an earlier run.", False)
    seed: int = option("Seed of every stage.", 0, least=0, most=MAX_SEED)
