"""Appending items to a checkpoint: it takes up a table that `llmrec tokenize --append` made of its own.

Published semantic IDs are the same in both tables, so every trained token keeps its meaning, and new semantic IDs
consist of codes that have tokens already. A level that grew uses its spare tokens. The last level, behind which no
other token lies, may grow beyond them; its new vectors are untrained, as those of `extend`, and items with them have
to wait for the next `llmrec sft`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from llmrec.data.catalog import Catalog
from llmrec.data.item_ids import UNKNOWN_ROW
from llmrec.data.pairs import numbered_pairs
from llmrec.model.new_rows import add_rows
from llmrec.runtime.manifest import MANIFEST, JsonObject, content_hash, read_manifest
from llmrec.sid.aliases import aliases_of
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary


def check_appended(old: SidTable, new: SidTable) -> None:
    """Refuse a table that is not the old one with items added.

    Raises:
        ValueError: If an item of the old table is absent or has another semantic ID, or the levels do not go together.
    """
    remedy = "Give the table that `llmrec tokenize --append` made of it, or extend the original model and train again."
    rows = new.row_of.rows(old.item_ids)
    gone = old.item_ids.of(np.flatnonzero(rows == UNKNOWN_ROW))
    if gone:
        raise ValueError(f"{len(gone)} items of the checkpoint are not in the SID table, first {gone[:3]}. {remedy}")
    if new.num_levels != old.num_levels or any(np.less(new.level_sizes, old.level_sizes)):
        raise ValueError(
            f"the levels of the checkpoint's SID table have {old.level_sizes} codes, those of the given one "
            f"{new.level_sizes}. "
            f"{remedy}"
        )
    if (old.words is None) != (new.words is None) or (old.words and new.words and not new.words.continues(old.words)):
        raise ValueError(f"the words of the checkpoint's items are not those of the SID table. {remedy}")
    if new.pieces != old.pieces:
        raise ValueError(f"the SID table has other pieces than the checkpoint. {remedy}")
    if len(aliases_of(old)) != len(aliases_of(new)):
        have = f"{len(aliases_of(old))} semantic IDs in the checkpoint, {len(aliases_of(new))} in the SID table"
        raise ValueError(f"an item has {have}. {remedy}")
    before = np.concatenate([alias.codes(np.arange(old.num_items)) for alias in aliases_of(old)], axis=1)
    after = np.concatenate([alias.codes(rows) for alias in aliases_of(new)], axis=1)
    moved = np.flatnonzero((before != after).any(axis=1))
    if len(moved):
        raise ValueError(
            f"{len(moved)} items have other semantic IDs than in the checkpoint, first '{old.item_ids[moved[0]]}': "
            f"{before[moved[0]].tolist()} in the checkpoint, {after[moved[0]].tolist()} in the SID table. {remedy}"
        )


def grow_vocabulary(
    vocabulary: SidVocabulary,
    level_sizes: list[int],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    seed: int,
) -> tuple[SidVocabulary, list[str]]:
    """Make room for levels that have grown.

    Args:
        vocabulary: Vocabulary of the checkpoint.
        level_sizes: Number of codes of each level, at least those of the vocabulary.
        tokenizer: Tokenizer of the checkpoint; takes the tokens that a last level needs beyond its spare ones.
        model: Model of the checkpoint; takes the vectors of these tokens.
        seed: Seed of these vectors.

    Returns:
        The vocabulary, and a sentence for each level that grew.

    Raises:
        ValueError: If a level has too few spare tokens and is not the last, or other tokens were added behind it.
    """
    sizes = zip(vocabulary.level_sizes, level_sizes, strict=True)
    notes = [f"level {level} grew from {old} to {new} codes" for level, (old, new) in enumerate(sizes) if new > old]
    last, end = vocabulary.num_levels - 1, vocabulary.token_range.stop
    short = [level for level, size in enumerate(level_sizes) if size > vocabulary.block_sizes[level]]
    if short and (short != [last] or len(tokenizer) != end or vocabulary.layout is not None):
        raise ValueError(
            f"{'; '.join(notes)}, but the checkpoint has tokens for {list(vocabulary.block_sizes)} codes only, and "
            "other tokens follow them. Extend the original model by this SID table, with spare_codes, and train again."
        )
    blocks = tuple(map(max, vocabulary.block_sizes, level_sizes))
    larger = dataclasses.replace(vocabulary, level_sizes=tuple(level_sizes), block_sizes=blocks)
    if short:
        count = blocks[last] - vocabulary.block_sizes[last]
        tokens = larger.tokens()[-count:]
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
        tail = SidVocabulary((count,), (end,), (count,), vocabulary.eos_token_id, vocabulary.template)
        add_rows(
            model, tail, seed + end
        )  # with the seed of `extend` alone, the noise of its first tokens would come again
        notes.append(f"{count} tokens are new")
    larger.check(tokenizer)
    return larger, notes


def carry_details_over(details: JsonObject, model: str | Path, sid: str | Path) -> tuple[JsonObject, str | None]:
    """Put the catalogue of an appended table in place of a checkpoint's own in its details.

    `sft` and `evaluate` accept a checkpoint for a catalogue by this hash. It changes only if all that the checkpoint
    was trained on is training data of the new catalogue too, and nothing that it holds out (law 1).

    Returns:
        The details, and the reason if the hash is still the old one.
    """
    if details.get("catalog_sha256") is None:  # the semantic IDs were adopted, so there is nothing to compare
        return details, None
    old, new = unchanged_catalog(model), unchanged_catalog(sid)
    if old is None or new is None or content_hash(old) != details["catalog_sha256"]:
        return details, "the catalogues of the checkpoint and of the SID table are not both here to be compared"
    held_out = count_lost_training_pairs(Catalog.load(old), Catalog.load(new))
    if held_out:
        return details, f"{held_out} interactions that the checkpoint was trained on are not training data of '{new}'"
    return {**details, "catalog_sha256": content_hash(new)}, None


def unchanged_catalog(directory: str | Path) -> str | None:
    """Path of the catalogue that a result of `tokenize`, `extend` or `sft` was made on; None if that has changed."""
    if not (Path(directory) / MANIFEST).is_file():
        return None
    manifest = read_manifest(directory)
    sources, hashes = manifest.get("inputs", {}), manifest["identity"].get("inputs", {})
    if "catalog" not in sources:
        return unchanged_catalog(sources["sid"]) if "sid" in sources else None
    return sources["catalog"] if content_hash(sources["catalog"]) == hashes.get("catalog") else None


def count_lost_training_pairs(old: Catalog, new: Catalog) -> int:
    """Count pairs of user and item that train in `old` but not in `new`, which may hold them out."""
    users: dict[str, int] = {}
    trained, trainable = (numbered_pairs(catalog, "train", new, users) for catalog in (old, new))
    return len(np.setdiff1d(trained, trainable))
