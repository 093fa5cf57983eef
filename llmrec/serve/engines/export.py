"""Export of a checkpoint for vLLM: the merged model, and what its answers need beside the weights.

`llmrec.serve.engines.settings` lists the files.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.checkpoint import SidConfig, load_model, load_tokenizer, save_model
from llmrec.model.history.choice import make_history_encoder
from llmrec.runtime.manifest import JsonObject
from llmrec.runtime.model_files import check_prompt
from llmrec.serve.engines.settings import ITEMS, TRIE, Settings
from llmrec.sid.answer_head import refuse_head
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary


def write_vllm(checkpoint: Path, directory: Path) -> JsonObject:
    """Write a checkpoint as a folder that vLLM serves under its trie.

    The folder's generation_config.json has no penalty and no cut, which would act on codes.

    Args:
        checkpoint: Directory of the checkpoint.
        directory: Existing directory to write.

    Returns:
        Numbers of items and of distinct semantic IDs.

    Raises:
        ValueError: If the checkpoint cannot be used, answers by a head, writes histories in pieces, or has
            tokens around items.
    """
    sid_config, table, _ = SidConfig.load(checkpoint)
    vocabulary = sid_config.vocabulary
    refuse_head(vocabulary.head, "vLLM")
    if vocabulary.has_one_block:
        raise ValueError(
            f"'{checkpoint}' writes an item in pieces that depend on its neighbours, and merges several searches, as "
            "no engine does. Use Recommender or `llmrec recommend`."
        )
    if vocabulary.layout is not None:
        raise ValueError(
            f"'{checkpoint}' has tokens around its items, which the files for vLLM do not tell, so that it would be "
            "asked otherwise than it was trained. Use Recommender, `llmrec serve`, or `llmrec export --to flashrec`."
        )
    tokenizer = load_tokenizer(checkpoint)
    prefix = sid_config.prompt.prefix(tokenizer)
    check_prompt(checkpoint, prefix)
    save_model(load_model(checkpoint, dtype="auto"), tokenizer, directory)
    trie = SidTrie(table)
    (directory / TRIE).parent.mkdir()
    trie.save(directory / TRIE)
    Settings(
        table_sha256=table.sha256,
        eos_token_id=vocabulary.eos_token_id,
        level_sizes=tuple(vocabulary.level_sizes),
        starts=None if vocabulary.words is not None else tuple(vocabulary.starts),
        normalize_over=sid_config.normalize_over,
        length_penalty=sid_config.length_penalty,
        prefix=tuple(prefix),
        max_history=sid_config.max_history,
    ).save(directory)
    with (directory / ITEMS).open("w", encoding="utf-8") as file:
        json.dump(prompt_tokens(table, vocabulary), file, ensure_ascii=False)
    return {"items": table.num_items, "sids": trie.num_leaves}


def prompt_tokens(table: SidTable, vocabulary: SidVocabulary) -> dict[str, list[int]]:
    """Tokens of each item as it stands in a history, by item_id."""
    rows = np.arange(table.num_items)
    encoded = make_history_encoder(table, vocabulary).encode_prompts((), rows, np.ones_like(rows))
    parts = np.split(encoded.tokens, encoded.lengths.cumsum()[:-1])
    return {item_id: tokens.tolist() for item_id, tokens in zip(table.item_ids, parts, strict=True)}
