"""Write the arrays of the distillation experiment from a catalogue and a SID directory of llmrec.

    python scripts/experiments/distillation/export.py --catalog runs/mt/catalog --sid runs/mt/sid --out data/mt.npz

The file holds only item rows and codes. Each split has its sequences as `<split>` (all values, one after another) and
`<split>_off` (where each begins and ends); valid and test also have their targets as `<split>_y`. A training sequence
is a user's history and target together. `codes` is (items, levels). Prepare the catalogue with a `max_history` that
cuts nothing, since "seen excluded" removes the whole history.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from llmrec import SidTable
from llmrec.data.catalog import Catalog


def arrays(catalog: Catalog, table: SidTable) -> dict[str, np.ndarray]:
    """Collect sequences, targets and codes.

    Raises:
        ValueError: If the SIDs do not identify the items one to one, or differ in length.
    """
    codes = table.all_codes
    if len(codes) != catalog.num_items or (codes < 0).any() or len(np.unique(codes, axis=0)) < len(codes):
        raise ValueError("Each item needs exactly one SID of its own, and all SIDs must have the same length.")
    train = catalog.train.sequences()
    made = {
        "codes": codes.astype(np.int16),
        "train": np.concatenate(train).astype(np.int16),
        "train_off": np.cumsum([0, *map(len, train)]).astype(np.int32),
    }
    for split in ("valid", "test"):
        examples = catalog.examples(split)
        made[split] = examples.values.astype(np.int16)
        made[f"{split}_off"] = examples.offsets.astype(np.int32)
        made[f"{split}_y"] = examples.targets.astype(np.int16)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--catalog", required=True, help="directory that `llmrec prepare` wrote")
    parser.add_argument("--sid", required=True, help="directory that `llmrec tokenize` wrote")
    parser.add_argument("--out", required=True, type=Path, help="the .npz file to write")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.out, **arrays(Catalog.load(arguments.catalog), SidTable.load(arguments.sid)))


if __name__ == "__main__":
    main()
