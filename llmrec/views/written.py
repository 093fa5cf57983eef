"""View files written block after block: the vectors of a large catalogue may not fit into memory.

Source: https://huggingface.co/docs/safetensors; the format is the length of a JSON header, the header, the data. The
bytes are those of safetensors itself, whose `save_file` copies all vectors.

Shapes: N items, D dimension of the view.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from llmrec.runtime import disk

ALIGNMENT = 8  # bytes, of the header


def write(path: Path, blocks: Iterable[np.ndarray], dim: int, missing: np.ndarray, provenance: dict[str, str]) -> None:
    """Write a view; the file appears only when it is complete.

    Args:
        path: File to write.
        blocks: Vectors (B, D) of the items, one block after another.
        dim: D.
        missing: (N,) bool, True for items that have no vector.
        provenance: Encoder, its settings and the catalogue.
    """
    size = len(missing) * dim * np.dtype(np.float32).itemsize
    # One metadata key: safetensors writes several in any order, and equal views must be equal files.
    header = {
        "__metadata__": {"provenance": json.dumps(provenance, sort_keys=True)},
        "vectors": {"dtype": "F32", "shape": [len(missing), dim], "data_offsets": [0, size]},
        "missing": {"dtype": "BOOL", "shape": [len(missing)], "data_offsets": [size, size + len(missing)]},
    }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with disk.replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        num_vectors = 0
        for block_BD in blocks:
            assert block_BD.shape[1:] == (dim,)
            np.ascontiguousarray(block_BD, "<f4").tofile(file)
            num_vectors += len(block_BD)
        assert num_vectors == len(missing)
        file.write(missing.tobytes())
