"""Free semantic IDs beside those of a catalogue: they differ from that of some item in the last code alone.

A model knows what a code means behind prefixes that it has read, so no other prefix is offered. With a suffix this is a
place in the cluster of other items; without one, a code of the last level behind two or three that items share. None
is the beginning of an item's semantic ID, nor the other way round, so a table stays prefix-free when items move there.

Shapes: S SIDs, P parents, F free SIDs, K codes of a level, L levels.
"""

from __future__ import annotations

import numpy as np

from llmrec.sid.table import EMPTY, SidTable


def free_sids(table: SidTable) -> np.ndarray:
    """Codes of the free semantic IDs beside those of a table, (F, L) int64, -1 beyond the end of one; F may be 0."""
    found = [np.empty((0, table.num_levels), np.int64)]
    for length in np.unique(table.lengths):
        reaching = table.all_codes[table.lengths >= length]
        ends_here = table.lengths[table.lengths >= length] == length
        parents_PL, parent_S = np.unique(reaching[:, : length - 1], axis=0, return_inverse=True)
        is_free_PK = np.zeros((len(parents_PL), table.level_sizes[length - 1]), bool)
        is_free_PK[parent_S[ends_here]] = True
        is_free_PK[parent_S, reaching[:, length - 1]] = False
        parent_F, code_F = np.nonzero(is_free_PK)
        codes_FL = np.full((len(parent_F), table.num_levels), EMPTY)
        codes_FL[:, : length - 1], codes_FL[:, length - 1] = parents_PL[parent_F], code_F
        found.append(codes_FL)
    return np.concatenate(found)
