"""Options of `llmrec extend`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmrec.configs.options import Config, StageConfig, option

OWN_MODEL = "give the directory of a model that transformers saved with it"


@dataclass(kw_only=True)
class ExtendConfig(StageConfig, Config):
    """Add the semantic-ID tokens to a causal LLM and save it as the base of fine-tuning."""

    renamed: ClassVar[dict[str, str]] = {
        "rows": "sid_init",
        "template": "removed: tokens are named <a_12>, or <0_12> where there are more than 26 levels",
        "weights": f"removed: to start from random weights, {OWN_MODEL}",
        "dtype": f"removed: weights keep the type that `model` has; for another one, {OWN_MODEL}",
        "micro_dropout": "removed: set dropout in `llmrec sft`",
    }
    renamed_values: ClassVar[dict[str, dict[str, str]]] = {
        "sid_init": {"codewords": "removed: choose from noise, titles"},
    }

    sid: str = option("Directory written by `llmrec tokenize`.")
    model: str = option(
        "Hub id or path of a causal LLM. 'micro' makes a small new one with a word-level tokenizer. Give a checkpoint "
        "of llmrec to add the items of `llmrec tokenize --append` to it."
    )
    catalog: str | None = option(
        "Directory written by `llmrec prepare`, whose titles 'micro' and sid_init 'titles' need.", None
    )
    sid_init: Literal["noise", "titles"] = option(
        "First vectors of the new tokens. 'noise' is the mean of the old vectors plus noise. 'titles' is close to the "
        "mean vector of the words in the titles of a code's items.",
        "noise",
    )
    spare_codes: int = option("Number of tokens per level to keep free for the codes of later items.", 0, least=0)
    item_rows: bool = option(
        "Give every item a token of its own as well. It follows the item's SID in a history, and its embedding scores "
        "the item without beams.",
        False,
    )
    layout: Literal["llmrec", "openonerec"] = option(
        "Way of writing an item. 'llmrec' is `<a_12><b_3>`. 'openonerec' is `<|sid_begin|><s_a_12><s_b_3><|sid_end|>`, "
        "two tokens more, which the engine FlashRec needs.",
        "llmrec",
    )
    head: Literal["none", "codes", "vectors", "projection"] = option(
        "Head that answers in one forward pass, without beams. 'codes' predicts the codes of all levels at once, as "
        "RPG does, and 'vectors' compares with the vectors of the items, as VQ-Rec does; an item of a history is then "
        "one vector, the mean of its codes. 'projection' compares with the vectors that the item tokenizer quantised, "
        "as TokenRec does. With 'none' the model writes semantic IDs.",
        "none",
    )
    head_temperature: float = option("Divisor of the cosines that `head` compares by.", 0.07, above=0)
    # The paper's.
    segmentations: int = option(
        "For a table of pieces (method action_piece): number of ways in which a history is written when it is asked "
        "about, each drawn at random; their rankings are merged. With 0, histories are written in one fixed way, also "
        "in training.",
        5,
        least=0,
        most=64,
    )
    micro_layers: int = option("Number of layers of 'micro'.", 2, least=1)
    micro_hidden: int = option("Hidden size of 'micro'; a multiple of 32.", 128, least=32)
    micro_words: int = option("Largest number of words in the vocabulary of 'micro'.", 8000, least=64)

    def problems(self) -> list[str]:
        """List the options that contradict each other."""
        both = self.item_rows and self.head != "none"
        found = ["item_rows and head both read and score items; leave one of them out"] if both else []
        if self.layout != "llmrec" and (self.item_rows or self.head != "none"):
            found.append("layout 'openonerec' is of semantic IDs alone; leave item_rows and head out")
        return found + super().problems()
