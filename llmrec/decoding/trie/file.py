"""A SidTrie as one safetensors file: `first_<level>`, `codes_<level>` and, where codes are words, `words_<level>` of
every level; `leaf_items`, `leaf_starts`.

The metadata says how to read the arrays. Nothing is packed or derived at loading, so a trie of 10^8 items is mapped
in milliseconds and read as it is used. Loading therefore checks only what the header shows: format, presence, types
and sizes of the arrays.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmrec.decoding.trie.build import Parts
from llmrec.decoding.trie.leaf_items import LeafItems
from llmrec.decoding.trie.level import BYTE, TrieLevel
from llmrec.runtime import disk
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.tokens.level_words import LevelWords

FORMAT, VERSION = "llmrec SidTrie", 1
KEY = "llmrec_trie"


def write(path: str | Path, parts: Parts, table_sha256: str | None, words: LevelWords | None) -> None:
    """Write the parts of a trie, the hash of the table that it was built from, and the token ids of its words."""
    header = {"format": FORMAT, "version": VERSION, "table_sha256": table_sha256, "num_items": parts.owners.num_items}
    header["level_sizes"] = [level.size for level in parts.levels]
    header["num_ends"] = [level.num_ends for level in parts.levels]
    header["widths"] = [level.width for level in parts.levels]
    arrays = {"leaf_items": torch.from_numpy(parts.owners.rows)}
    if parts.owners.starts is not None:
        arrays["leaf_starts"] = torch.from_numpy(parts.owners.starts)
    for i, level in enumerate(parts.levels):
        arrays[f"first_{i}"], arrays[f"codes_{i}"] = level.first, level.codes
    for i, ids in enumerate(words.ids if words is not None else ()):
        arrays[f"words_{i}"] = torch.from_numpy(ids)
    # One metadata key: safetensors writes several in any order, and equal tries must be equal files.
    # Aside first: the file may be the one that the arrays are mapped from.
    with disk.replacing(path) as temporary:
        save_file(arrays, temporary, metadata={KEY: json.dumps(header)})


def read(path: str | Path) -> tuple[Parts, str | None, LevelWords | None]:
    """Map a trie's parts into memory.

    Returns:
        The parts, the hash of the table that the trie was built from, and its words, without names.

    Raises:
        ValueError: If the file is absent, of another format, or its arrays do not fit together.
    """
    if not Path(path).is_file():
        raise ValueError(f"'{path}' does not exist; SidTrie.save writes it.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(KEY, "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, safe_open is no dict
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"'{path}' is not a trie file ({error}); save the trie again.") from error
    if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
        stated = f"format {header.get('format')}, version {header.get('version')}"
        raise ValueError(f"'{path}' has {stated}, not {FORMAT}, version {VERSION}; save the trie again.")
    try:
        parts = _parts(arrays, header)
        words = _words(arrays, header["level_sizes"]) if "words_0" in arrays else None
    except (KeyError, ValueError) as error:
        raise ValueError(f"'{path}' is damaged: {error}. Save the trie again.") from error
    return parts, header["table_sha256"], words


def _parts(arrays: dict[str, Tensor], header: JsonObject) -> Parts:
    num_nodes, levels = 1, []
    for i, (size, num_ends, width) in enumerate(
        zip(header["level_sizes"], header["num_ends"], header["widths"], strict=True)
    ):
        first, codes = _array(arrays, f"first_{i}", num_nodes + 3), arrays.get(f"codes_{i}")
        num_children = int(first[-3])
        if codes is not None and codes.dim() == 2:
            _array(arrays, f"codes_{i}", num_nodes + 1, -(-(size + (num_ends > 0)) // BYTE))
        else:
            codes = _array(arrays, f"codes_{i}", num_children + 1)
        levels.append(TrieLevel(first, codes, size, num_ends, width))
        num_nodes = num_children
    starts = _array(arrays, "leaf_starts", num_nodes + 1).numpy() if "leaf_starts" in arrays else None
    rows = _array(arrays, "leaf_items", num_nodes if starts is None else int(starts[-1])).numpy()
    return Parts(levels, LeafItems(rows, starts, header["num_items"]))


def _array(arrays: dict[str, Tensor], name: str, *shape: int) -> Tensor:
    """Look an array of the file up and check its shape."""
    if name not in arrays:
        raise ValueError(f"{name} is missing")
    if arrays[name].shape != shape or arrays[name].dtype.is_floating_point:
        raise ValueError(f"{name} is {arrays[name].dtype} {tuple(arrays[name].shape)} instead of integers {shape}")
    return arrays[name]


def _words(arrays: dict[str, Tensor], level_sizes: list[int]) -> LevelWords:
    return LevelWords([_array(arrays, f"words_{i}", size).numpy() for i, size in enumerate(level_sizes)])
