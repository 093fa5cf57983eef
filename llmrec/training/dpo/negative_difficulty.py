"""Difficulty of the negatives of each source, for the model before it trains on them.

A negative far less probable than the target has nothing left to teach. A negative above the target costs the target its
place in the ranking.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from llmrec.model.backbone import evaluation_mode
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.table import SidTable
from llmrec.training.dpo.preferences import PreferenceCollator, Preferences

MAX_SCORED = 2000  # prompts


@torch.no_grad()
def log_prob_gaps(
    model: PreTrainedModel, preferences: Preferences, collator: PreferenceCollator, batch_size: int
) -> list[np.ndarray]:
    """Log-probability of each target minus that of each of its negatives.

    Args:
        model: Model on which `sibling_scores_in_forward` is open.
        preferences: Preferences to score.
        collator: Collator of the trainer.
        batch_size: Prompts of a forward pass.
    """
    examples, gaps = preferences.examples(), []
    with evaluation_mode(model):
        for first in range(0, len(preferences), batch_size):
            some = examples.select(range(first, min(first + batch_size, len(preferences)))).to_list()
            batch = {name: tensor.to(model.device) for name, tensor in collator(some).items() if name != "smoothing"}
            scores = model(**batch).log_probs.sum(dim=-1)
            of_prompts = (scores[:, :1] - scores[:, 1:]).float().cpu().numpy()
            gaps += [gap[: len(each["items"]) - 1] for gap, each in zip(of_prompts, some, strict=True)]
    return gaps


def difficulty(preferences: Preferences, table: SidTable, gaps: list[np.ndarray]) -> dict[str, JsonObject]:
    """Summarise the negatives of each source.

    Args:
        preferences: Prompts with their negatives.
        table: Semantic IDs.
        gaps: Gaps of `log_prob_gaps`.

    Returns:
        For each source: negatives (their number), shared_prefix (mean number of first codes that they share with the
        target), beam_rank (mean rank among the model's beams, from 0; only for `beam`), gap (mean, in nats) and
        above_target (share that the model finds more probable than the target).
    """
    items, ranks = np.concatenate(preferences.negatives), np.concatenate(preferences.ranks)
    sources = np.array([name for names in preferences.sources for name in names])
    targets = np.repeat(preferences.prompts.targets, [len(each) for each in preferences.negatives])
    shared = (table.codes(items) == table.codes(targets)).cumprod(axis=1).sum(axis=1)
    gap = np.concatenate(gaps)
    by_source = {str(name): sources == name for name in np.unique(sources)}
    return {name: _figures(shared[own], ranks[own], gap[own]) for name, own in by_source.items()}


def _figures(shared: np.ndarray, ranks: np.ndarray, gap: np.ndarray) -> JsonObject:
    figures: JsonObject = {"negatives": len(shared), "shared_prefix": round(float(shared.mean()), 3)}
    if (ranks >= 0).all():
        figures["beam_rank"] = round(float(ranks.mean()), 2)
    return figures | {"gap": round(float(gap.mean()), 3), "above_target": round(float((gap < 0).mean()), 3)}
