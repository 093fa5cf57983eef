"""Options of `llmrec import`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmrec.configs.options import Config, StageConfig, option


@dataclass(kw_only=True)
class ImportConfig(StageConfig, Config):
    """Take a checkpoint of another project, which answers as it was trained: with its tokens, SIDs and prompt."""

    layout: Literal["minionerec", "openonerec", "lcrec"] = option(
        "Project whose files these are: MiniOneRec, OpenOneRec or LC-Rec."
    )
    model: str = option("Directory or Hub id of the checkpoint: a causal LM as safetensors, with its tokenizer.")
    index: str = option(
        "File with the semantic IDs of the items: index.json of MiniOneRec and LC-Rec, sid2pid.json or sid2iid.json of "
        "OpenOneRec."
    )
    info: str | None = option(
        "File with the titles: MiniOneRec's info/*.txt, LC-Rec's item.json, or a JSON object of item_id and title. "
        "Items have none when left out.",
        None,
    )
    test: str | None = option(
        "File whose held-out items `llmrec evaluate` asks for: MiniOneRec's test/*.csv, LC-Rec's inter.json, or "
        "histories in that form, {user: [item_id, ...]}, for OpenOneRec.",
        None,
    )
    prompt: str | None = option(
        "Text file with another prompt than the one that the project tests with; {history} stands for the history.",
        None,
    )
