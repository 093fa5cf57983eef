"""How hard negatives are for the model before it trains on them, by source.

A negative that the model gives less probability than the target by far has nothing left to teach; one above the target
is what costs the target its place in the ranking.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from llmrec.runtime.manifest import JsonObject
from llmrec.sid.table import SidTable
from llmrec.training.dpo.preferences import PreferenceCollator, Preferences
from llmrec.training.validation import evaluation_mode

MOST_SCORED = 2000  # prompts


@torch.no_grad()
def log_prob_gaps(
    model: nn.Module, preferences: Preferences, collator: PreferenceCollator, batch_size: int
) -> list[np.ndarray]:
    """Log-probability of each target less that of each of its negatives.

    Args:
        model: With `sibling_scores_in_forward` open, on its device.
        preferences: What is scored.
        collator: Of the trainer.
        batch_size: Prompts of a pass.
    """
    examples, gaps = preferences.examples(0.0), []
    with evaluation_mode(model):
        for first in range(0, len(preferences), batch_size):
            some = examples.select(range(first, min(first + batch_size, len(preferences)))).to_list()
            batch = {name: tensor.to(model.device) for name, tensor in collator(some).items() if name != "smoothing"}
            scores = model(**batch).log_probs.sum(dim=-1)
            rows = (scores[:, :1] - scores[:, 1:]).float().cpu().numpy()
            gaps += [row[: len(each["items"]) - 1] for row, each in zip(rows, some, strict=True)]
    return gaps


def hardness(preferences: Preferences, table: SidTable, gaps: list[np.ndarray]) -> dict[str, JsonObject]:
    """Figures of each source.

    Args:
        preferences: Some prompts with their negatives.
        table: Semantic IDs.
        gaps: Of `log_prob_gaps`.

    Returns:
        For each source negatives (how many), shared_prefix (mean codes that they begin with like the target),
        beam_rank (mean place in the model's ranking of what is unseen, from 0; absent of other sources), gap (mean, in
        nats) and above_target (share that the model finds likelier than the target).
    """
    rows, ranks = np.concatenate(preferences.negatives), np.concatenate(preferences.ranks)
    sources = np.array([name for names in preferences.sources for name in names])
    targets = np.repeat(preferences.prompts.targets, [len(each) for each in preferences.negatives])
    shared = (table.codes(rows) == table.codes(targets)).cumprod(axis=1).sum(axis=1)
    gap = np.concatenate(gaps)
    by_source = {str(name): sources == name for name in np.unique(sources)}
    return {name: _figures(shared[own], ranks[own], gap[own]) for name, own in by_source.items()}


def _figures(shared: np.ndarray, ranks: np.ndarray, gap: np.ndarray) -> JsonObject:
    figures = {"negatives": len(shared), "shared_prefix": round(float(shared.mean()), 3)}
    if (ranks >= 0).all():
        figures["beam_rank"] = round(float(ranks.mean()), 2)
    return figures | {"gap": round(float(gap.mean()), 3), "above_target": round(float((gap < 0).mean()), 3)}
