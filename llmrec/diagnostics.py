"""Quality of a SidTable before any LLM is trained: collisions, use of the codes, and where the information sits.

All entropies are plug-in estimates in bits over uniformly drawn items. For distinct semantic IDs the prefix-conditional
entropies H(c_l | c_<l) add up to log2 N whatever the tokenizer, so their sum ranks nothing; how it is spread over the
levels is what differs.

Shapes: N items, L levels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmrec.console import say, table
from llmrec.sid import EMPTY, SidTable


def collision_report(codes_NL: np.ndarray) -> dict[str, Any]:
    """How many items share all codes with another.

    Returns:
        collision_rate: items less distinct semantic IDs, over items. shared_items: share of items whose semantic ID is
        not theirs alone. max_bucket: most items on one semantic ID.
    """
    counts = np.unique(codes_NL, axis=0, return_counts=True)[1]
    return {
        "collision_rate": float(1 - len(counts) / len(codes_NL)),
        "shared_items": float(counts[counts > 1].sum() / len(codes_NL)),
        "max_bucket": int(counts.max()),
    }


def level_report(sid_table: SidTable) -> list[dict[str, Any]]:
    """Use of the codes of each level by the items' first semantic IDs.

    Returns:
        Per level: used codes and their share; entropy in bits; perplexity 2^entropy over codebook size;
        prefix-conditional entropy in bits, where the end of a shorter semantic ID counts as a code.
    """
    codes_NL = sid_table.codes(np.arange(sid_table.num_items))
    prefix_N, prefix_entropy, levels = np.zeros(len(codes_NL), np.int64), 0.0, []
    for level, size in enumerate(sid_table.level_sizes):
        codes_N = codes_NL[:, level]
        counts = np.bincount(codes_N[codes_N != EMPTY], minlength=size)
        extended = np.unique(prefix_N * (size + 1) + codes_N + 1, return_inverse=True, return_counts=True)
        prefix_N, joint_entropy = extended[1].reshape(-1), entropy_bits(extended[2])
        levels.append(
            {
                "level": level,
                "codebook_size": size,
                "used": int((counts > 0).sum()),
                "usage": float((counts > 0).mean()),
                "entropy_bits": entropy_bits(counts),
                "perplexity_share": 2 ** entropy_bits(counts) / size,
                "conditional_entropy_bits": joint_entropy - prefix_entropy,
            }
        )
        prefix_entropy = joint_entropy
    return levels


def entropy_bits(counts: np.ndarray) -> float:
    """Plug-in entropy of a histogram, in bits."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def show(report: dict[str, Any]) -> None:
    """Print the report of `llmrec tokenize` as tables."""
    stages = [(name, report[name]) for name in ("before_policy", "after_policy")]
    table(
        f"Collisions of {report['num_items']} items",
        ("", "collision rate", "items in shared SIDs", "largest bucket"),
        [(name.replace("_", " "), r["collision_rate"], r["shared_items"], r["max_bucket"]) for name, r in stages],
    )
    keys = ("codebook_size", "used", "usage", "entropy_bits", "perplexity_share", "conditional_entropy_bits")
    table(
        "Codes per level",
        ("level", "codes", "used", "usage", "entropy (bits)", "perplexity / codes", "entropy given prefix (bits)"),
        [(str(row["level"]), *(row[key] for key in keys)) for row in report["levels"]],
    )
    say(
        f"Expected collision rate of uniform codes: {report['expected_collision_rate']:.4f}; "
        f"cosine of items and their reconstruction: {report['reconstruction_cosine']:.4f}."
    )
    for note in report["notes"]:
        say(note)
