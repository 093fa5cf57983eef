"""What the index of a catalogue costs: bytes per item, time to build, to save and to load.

    OMP_NUM_THREADS=1 python scripts/benchmarks/index.py
    OMP_NUM_THREADS=1 python scripts/benchmarks/index.py --items 100000000

Random SIDs of 4 levels of 256 codes, some of them shared. Beside it, in the same process, the nested dicts that
prefix-constrained decoding is usually written with, up to 10^6 items; before anything is timed, both must allow the
same codes after the prefixes of a sample of items.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import clock, emit, emit_machine

from llmrec.decoding.trie.lookups import ROOT
from llmrec.decoding.trie.trie import SidTrie

NUM_LEVELS, CODEBOOK_SIZE = 4, 256
LEVEL_SIZES = [CODEBOOK_SIZE] * NUM_LEVELS
DICT_UP_TO = 10**6  # items; 450 bytes of dict for each
SAMPLE = 1000  # items whose prefixes are compared
KEY_FIGURES = [{"case": "index", "figure": "dict_seconds", "over": "build_seconds_unsorted", "by": ["items"]}]
RUNS = {"quick-index": ["--items", "100000"], "cpu-index": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each timing; the fastest counts")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    emit_machine()
    for num_items in args.items:
        generator = np.random.default_rng(args.seed)
        codes = generator.integers(0, CODEBOOK_SIZE, (num_items, NUM_LEVELS), dtype=np.uint8)
        measure(codes, generator, args.repeats)


def measure(codes: np.ndarray, generator: np.random.Generator, repeats: int) -> None:
    trie, num_items = SidTrie.from_codes(codes, LEVEL_SIZES), len(codes)
    values = {"items": num_items, "leaves": trie.num_leaves, "bytes_per_item": trie.num_bytes / num_items}
    values["leaf_items_bytes_per_item"] = trie.owners.num_bytes / num_items
    if num_items <= DICT_UP_TO:
        values |= against_dicts(trie, codes, generator, repeats)
    del trie  # at 10^8 items every copy counts
    values["build_seconds_unsorted"] = fastest(lambda: SidTrie.from_codes(codes, LEVEL_SIZES), repeats)
    codes = codes.view(">u4").ravel()  # big-endian words sort as their codes do
    codes = np.sort(codes.astype(np.uint32)).astype(">u4").view(np.uint8).reshape(-1, NUM_LEVELS)
    values["build_seconds_sorted"] = fastest(lambda: SidTrie.from_codes(codes, LEVEL_SIZES), repeats)
    trie = SidTrie.from_codes(codes, LEVEL_SIZES)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trie.safetensors"
        values["save_seconds"] = fastest(lambda: trie.save(path), repeats)
        values["load_seconds"] = fastest(lambda: SidTrie.load(path), repeats)
        values["file_bytes"] = path.stat().st_size
    emit("index", **values)


def against_dicts(
    trie: SidTrie, codes: np.ndarray, generator: np.random.Generator, repeats: int
) -> dict[str, int | float]:
    """Check the trie against nested dicts; what the dicts cost."""
    root = nested_dict(codes)
    sample = codes[generator.integers(0, len(codes), SAMPLE)]
    assert_same(trie, root, sample)
    size = dict_bytes(root)
    del root
    return {"dict_bytes_per_item": size / len(codes), "dict_seconds": fastest(lambda: nested_dict(codes), repeats)}


def nested_dict(codes: np.ndarray) -> dict[int, Any]:
    root: dict[int, Any] = {}
    for sid in codes.tolist():
        node = root
        for code in sid:
            node = node.setdefault(code, {})
    return root


def dict_bytes(node: dict[int, Any]) -> int:
    """Bytes of the dicts; the codes are Python's own small integers."""
    return sys.getsizeof(node) + sum(map(dict_bytes, node.values()))


def assert_same(trie: SidTrie, root: dict[int, Any], sample: np.ndarray) -> None:
    nodes, found = torch.full((len(sample),), ROOT), [root] * len(sample)
    for level in range(NUM_LEVELS):
        for row, allowed in zip(found, trie.allowed(nodes, level), strict=True):
            assert sorted(row) == allowed.nonzero().squeeze(1).tolist(), "the trie and the dicts allow different codes"
        chosen = torch.from_numpy(sample[:, level].astype(np.int64)).unsqueeze(1)
        nodes = trie.children(nodes, level).gather(1, chosen).squeeze(1)
        found = [row[int(code)] for row, code in zip(found, sample[:, level], strict=True)]


def fastest(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = clock()
        call()
        times.append(clock() - started)
    return min(times)


if __name__ == "__main__":
    main()
