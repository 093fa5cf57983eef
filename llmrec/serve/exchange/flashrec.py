"""FlashRec: a checkpoint as the model directory and the catalogue that this engine serves.

FlashRec (0.1.2) finds the tokens of the codes by their names, `<s_a_0>` and so on, in one block per level, with
`<|sid_begin|>` and `<|sid_end|>` right behind. It ends every prompt with `<|sid_begin|>`, so a model answers as it was
trained only if that token stands before every item: `llmrec extend --layout openonerec` makes such a model, and those
of OpenOneRec are of this kind. Its scores are normalised over the codes of a level.

Three files are written otherwise than transformers 5 does. config.json has `rope_theta` at its top, where the engine
looks for it, and takes 1e6 if it is absent. tokenizer_config.json names a class that transformers 4 knows. The chat
template hands the text of messages on as it is, so that a request holds the whole prompt.

Source: github.com/sohu-mptc/FlashRec, flashrec/sid_layout.py and flashrec/search/trie.py.
"""

from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from llmrec.model.checkpoint import SidConfig, load_tokenizer
from llmrec.runtime.manifest import JsonObject, read_json, write_json
from llmrec.sid.item_layout import BEGIN, END
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary

CATALOG = "sid_catalog.json"
TOKEN = re.compile(r"<s_[A-Za-z0-9]+_(\d+)>")
NEEDED = "Make one with `llmrec extend --layout openonerec` from a Qwen3 model, and train it."
MESSAGES_AS_THEY_ARE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def write_flashrec(checkpoint: Path, directory: Path) -> JsonObject:
    """Write the model directory and the catalogue.

    Args:
        checkpoint: Directory of the checkpoint.
        directory: Existing directory to write.

    Raises:
        ValueError: If FlashRec cannot read such a checkpoint; with every reason.
    """
    sid_config, table, _ = SidConfig.load(checkpoint)
    model_config, tokenizer = read_json(checkpoint / "config.json"), load_tokenizer(checkpoint)
    problems = problems_of(model_config, sid_config.vocabulary, table, tokenizer)
    if problems:
        raise ValueError(f"FlashRec cannot serve '{checkpoint}': {'; '.join(problems)}. {NEEDED}")
    for path in checkpoint.glob("*.safetensors*"):
        shutil.copyfile(path, directory / path.name)
    write_json(directory / "config.json", {**model_config, "rope_theta": rope_theta(model_config)})
    tokenizer.chat_template = MESSAGES_AS_THEY_ARE
    tokenizer.save_pretrained(directory)
    written = read_json(directory / "tokenizer_config.json")
    write_json(
        directory / "tokenizer_config.json",
        {**written, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": MESSAGES_AS_THEY_ARE},
    )
    catalog = catalog_of(table)
    (directory / CATALOG).write_text(json.dumps(catalog), encoding="utf-8")
    return {"items": table.num_items, "sids": len(catalog)}


def problems_of(
    model_config: JsonObject, vocabulary: SidVocabulary, table: SidTable, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """List the reasons for which FlashRec cannot serve a checkpoint; none if it can."""
    problems = []
    if model_config.get("model_type") != "qwen3":
        problems.append(f"it reads Qwen3 models, not {model_config.get('model_type')}")
    if not vocabulary.tells_level or vocabulary.head is not None:
        return [*problems, "it searches semantic IDs whose codes have tokens of their own, without a head"]
    if table.sids_per_item is not None or len(np.unique(table.lengths)) > 1 or table.num_levels < 2:
        problems.append("every item needs one semantic ID, all of one length of at least 2")
    tokens, end = vocabulary.tokens(), vocabulary.token_range.stop
    numbers = [int(found[1]) if (found := TOKEN.fullmatch(token)) else -1 for token in tokens]
    starts = [start - vocabulary.token_range.start for start in (*vocabulary.starts, end)]
    if any(numbers[first:last] != list(range(last - first)) for first, last in pairwise(starts)):
        problems.append(f"its tokens have to be named <s_a_0>, <s_a_1> and so on; the first is {tokens[0]}")
    if tokenizer.convert_tokens_to_ids([BEGIN, END]) != [end, end + 1]:
        problems.append(f"it needs {BEGIN} and {END} right behind the tokens of the codes")
    return problems


def rope_theta(model_config: JsonObject) -> float:
    """Base of the rotary positions, which transformers 5 writes into a block of its own."""
    block = model_config.get("rope_parameters") or {}
    return float(model_config.get("rope_theta") or block.get("rope_theta") or 10000.0)


def catalog_of(table: SidTable) -> dict[str, list[str]]:
    """Map each semantic ID, as codes with commas between them, to the item_ids that own it.

    >>> catalog_of(SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [0, 1]]))
    {'0,1': ['red', 'blue'], '1,0': ['green']}
    """
    catalog: dict[str, list[str]] = {}
    for codes, row in zip(table.all_codes.tolist(), table.item_rows.tolist(), strict=True):
        catalog.setdefault(",".join(map(str, codes)), []).append(table.item_ids[row])
    return catalog
