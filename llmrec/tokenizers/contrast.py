"""NT-Xent between what the codes of items stand for and each view of the items.

By cosine, the anchor of an item must be nearer to the item's own vector in a view than the other items' vectors in that
view are, and than the other items' anchors are: of B items 2B - 1 candidates, the positive one among them. Two items
that are all but equal tell nothing apart, so neither is a negative of the other: in a view where its vectors there have
a cosine above .99, among the anchors where the vectors of all views together have. An item that is twice in a batch is
no negative of itself by the same rule.

Source: SimCIT (arXiv:2506.16683) as released, anchored on one side; duplicates are ours.

Shapes: B rows, M views, D dimension of vectors, E of anchors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

DUPLICATE = 0.99  # cosine above which two items are one, in the eyes of the contrast
NEVER = -1e12  # logit of what is no candidate: finite, so that its gradient is zero and not undefined


def duplicates(vectors_BD: Tensor) -> Tensor:
    """(B, B) bool, pairs of different rows whose cosine is above .99."""
    vectors_BD = normalize(vectors_BD, dim=1)
    return (vectors_BD @ vectors_BD.T > DUPLICATE).fill_diagonal_(False)


def nt_xent(
    anchors_BE: Tensor,
    targets_BME: Tensor,
    known_BM: Tensor,
    same_anchors_BB: Tensor,
    same_targets: Sequence[Tensor],
    temperature: float,
) -> Tensor:
    """Cross-entropy of finding each item's own vector in a view.

    Args:
        anchors_BE: (B, E).
        targets_BME: (B, M, E) the items' vectors in the views.
        known_BM: (B, M) bool; where False, the item is neither asked for in the view nor a candidate there.
        same_anchors_BB: (B, B) bool, pairs of rows that are no negatives of each other among the anchors.
        same_targets: Of each view, (B, B) bool, pairs that are no negatives of each other in it.
        temperature: Divides the cosines.

    Returns:
        (M,) mean over the items that a view knows; 0 for a view that knows none.

    Source: SimCIT (arXiv:2506.16683), as in the released code.
    """
    anchors_BE, targets_BME = normalize(anchors_BE, dim=1), normalize(targets_BME, dim=2)
    own_BB = torch.eye(len(anchors_BE), dtype=torch.bool, device=anchors_BE.device)
    among_anchors_BB = (anchors_BE @ anchors_BE.T / temperature).masked_fill(own_BB | same_anchors_BB, NEVER)
    losses = []
    for targets_BE, known_B, same_BB in zip(targets_BME.unbind(1), known_BM.unbind(1), same_targets, strict=True):
        logits_BB = (anchors_BE @ targets_BE.T / temperature).masked_fill(same_BB | ~known_B, NEVER)
        losses_B = torch.cat([logits_BB, among_anchors_BB], 1).logsumexp(1) - logits_BB.diagonal()
        losses.append(torch.where(known_B, losses_B, 0).sum() / known_B.sum().clamp(min=1))
    return torch.stack(losses)
