"""Options of `llmrec extend`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmrec.configs.options import StageConfig, option


@dataclass(kw_only=True)
class ExtendConfig(StageConfig):
    """Add the semantic-ID tokens to a causal LLM and save it as the base of fine-tuning."""

    sid: str = option("Directory written by `llmrec tokenize`.")
    model: str = option(
        "Hub id or path of a causal LLM; a checkpoint of llmrec, which takes up a table appended to its own; or "
        "'micro' for a small new one with a word-level tokenizer."
    )
    catalog: str | None = option(
        "Directory written by `llmrec prepare`; 'micro' takes its vocabulary from the titles, and rows their words.",
        None,
    )
    rows: Literal["noise", "titles", "codewords"] = option(
        "First rows of the codes: noise; leaning towards the words of their items' titles; or towards what their "
        "codewords say of titles by a linear map, for methods whose codewords add up to an item.",
        "noise",
    )
    template: str = option("Token of a code; {letter} or {level}, and {code}.", "<{letter}_{code}>")
    spare_codes: int = option("Token rows per level kept free for codes of later items.", 0, least=0)
    weights: Literal["pretrained", "random"] = option(
        "Those of `model`, or new ones drawn by its config, to train from scratch.", "pretrained"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = option("Type of the saved weights.", "auto")
    micro_layers: int = option("Layers of 'micro'.", 2, least=1)
    micro_hidden: int = option("Hidden size of 'micro'.", 128, least=32)
    micro_dropout: float = option("Attention dropout of 'micro'.", 0.0, least=0, most=1)
    micro_words: int = option("Largest word vocabulary of 'micro'.", 8000, least=64)
