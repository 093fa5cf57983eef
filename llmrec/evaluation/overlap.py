"""Overlap: the items and examples by which a checkpoint can be tested on a catalogue that is not its own.

The catalogue is a later one, or a part of it. Items that the checkpoint does not know cannot be ranked, so all systems
are compared on the items that both have. Examples whose target the checkpoint may have learned are left out (law 1).

Whether a target was learned is a question of interactions, which have no ids. A user's earlier interactions with the
target explain as many trained ones as there are; only if they explain all of them, the target itself is new. Times are
not compared, because two exports may write them in different units. So one case stays open: an interaction that is
added later, with a time before a trained one of the same user and item, stands for that one.

Shapes: N items of both, n examples of the split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.data.examples import Examples
from llmrec.data.item_ids import UNKNOWN_ROW
from llmrec.data.pairs import numbered_pairs
from llmrec.data.part import part_of
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.catalogs.given_catalog import GivenCatalog
from llmrec.sid.groups import ordinals
from llmrec.sid.table import SidTable

BEFORE = {"valid": ("train",), "test": ("train", "valid")}  # what a training reads, or chooses its weights by


@dataclass(frozen=True)
class Overlap:
    """Items of a catalogue and a checkpoint, and the examples that may test it.

    Attributes:
        catalog: The catalogue without the items that the checkpoint does not know.
        rows: (N,) item row of each of its items in the checkpoint's SID table.
        examples: The examples.
        places: (n,) their ascending positions in the split of the whole catalogue.
        facts: `items` and `examples` by what became of them, `shortened` histories, and `notes`, which say it.
    """

    catalog: Catalog
    rows: np.ndarray
    examples: Examples
    places: np.ndarray
    facts: JsonObject

    @classmethod
    def find(cls, catalog: Catalog, given: GivenCatalog, table: SidTable, own: Catalog, split: str) -> Overlap:
        """Find what both have in common, and what has to be left out.

        Args:
            catalog: Catalogue to evaluate on.
            given: What `match_catalog` found of it.
            table: SID table of the checkpoint.
            own: Catalogue that the checkpoint was trained on.
            split: The examples to evaluate, valid or test.

        Raises:
            ValueError: If no example is left.
        """
        is_known = table.row_of.rows(catalog.item_ids) != UNKNOWN_ROW
        whole, shared = catalog.examples(split), part_of(catalog, is_known)
        places, examples = np.flatnonzero(is_known[whole.targets]), shared.examples(split)
        has_history = np.diff(examples.offsets) > 0
        is_new = has_history & ~may_be_learned(shared, own, split)
        counts = {
            "tested": int(is_new.sum()),
            "unknown_target": len(whole) - len(examples),
            "no_known_history": int((~has_history).sum()),
            "target_may_be_learned": int((has_history & ~is_new).sum()),
        }
        kept = np.flatnonzero(is_new)
        tested = examples.take(kept)
        lengths = np.diff(whole.offsets)[places[kept]]
        facts = {
            "items": given.counts,
            "examples": counts,
            "shortened": int((lengths > np.diff(tested.offsets)).sum()),
            "users_in_training": len(set(tested.user_ids) & set(own.train.user_ids)),
        }
        notes = sentences(facts, given, split, len(set(tested.user_ids)))
        if not len(tested):
            raise ValueError(f"no example of '{catalog.source}' can test the model. {' '.join(notes)}")
        rows = table.row_of.rows(shared.item_ids)
        return cls(shared, rows, tested, places[kept], facts | {"notes": notes})


def sentences(facts: JsonObject, given: GivenCatalog, split: str, num_users: int) -> list[str]:
    """Sentences on what is compared and what was left out."""
    items, examples = facts["items"], facts["examples"]
    reasons = {
        "unknown_target": "have a target that the model does not know",
        "no_known_history": "have no item in their history that it knows",
        "target_may_be_learned": "have a target that it may have learned from this user",
    }
    left_out = [f"{examples[name]:,} {reason}" for name, reason in reasons.items() if examples[name]]
    notes = [
        f"'{given.source}' is not the catalogue that the model was trained on; "
        f"{examples['tested']:,} of its {sum(examples.values()):,} {split} examples are evaluated"
        + (f": {', '.join(left_out)}." if left_out else ".")
    ]
    differing = {
        "gone": "the model alone knows",
        "new": "the model does not know",
        "retitled": "have another title now",
    }
    found = ", ".join(f"{items[name]:,} {what}" for name, what in differing.items() if items[name])
    notes.append(
        f"All systems rank the {items['shown']:,} items of both{f' ({found})' if found else ''}. The baselines learned "
        "from this catalogue, the model from its own."
    )
    if facts["shortened"]:
        notes.append(f"Unknown items were left out of {facts['shortened']:,} histories.")
    if not facts["users_in_training"]:
        notes.append(
            f"None of the {num_users:,} user_ids is one that the model was trained on; if these are the same people "
            "under other ids, their targets may have been learned."
        )
    return notes


def may_be_learned(catalog: Catalog, own: Catalog, split: str) -> np.ndarray:
    """Tell which targets a training on another catalogue may have read, or chosen its weights by.

    Args:
        catalog: Catalogue of the examples.
        own: Catalogue of the training.
        split: The examples, valid or test.

    Returns:
        (n,) bool. False where the user had at least as many earlier interactions with the target in `catalog` as the
        training has of them.
    """
    users: dict[str, int] = {}
    *earlier, targets = (numbered_pairs(catalog, name, catalog, users) for name in (*BEFORE[split], split))
    learned = np.concatenate([numbered_pairs(own, name, catalog, users) for name in BEFORE[split]])
    num_before = sum(map(len, earlier))
    num_earlier = ordinals(np.concatenate([*earlier, targets])[:, None])[0][num_before:]
    distinct, number = np.unique(np.concatenate([learned, targets]), return_inverse=True)
    num_learned = np.bincount(number[: len(learned)], minlength=len(distinct))[number[len(learned) :]]
    return num_earlier < num_learned
