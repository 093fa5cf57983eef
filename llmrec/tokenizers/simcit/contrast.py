"""NT-Xent between what the codes of items stand for and each view of the items.

By cosine, the anchor of an item must be nearer to the item's own vector in a view than the other items' vectors in that
view are, and than the other items' anchors are: of B items 2B - 1 candidates, the positive one among them. Two items
that are all but equal tell nothing apart, so neither is a negative of the other: in a view where its vectors there have
a cosine above .99, among the anchors where the vectors of all views together have. An item that is twice in a batch is
no negative of itself by the same rule.

An item may have several anchors, such as what its first code stands for alone; each asks for itself.

Of b rows at a time, the logits and masks are (b, B): a batch whose (B, B) would not fit is asked part by part.

Source: SimCIT (arXiv:2506.16683) as released, anchored on one side; duplicates are ours.

Shapes: B rows, b rows of a part, A anchors of an item, M views, D dimension of vectors, E of anchors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from llmrec.tokenizers.simcit.gradient_cache import in_parts

DUPLICATE = 0.99  # cosine above which two items are one, in the eyes of the contrast
NEVER = -1e12  # logit of what is no candidate: finite, so that its gradient is zero and not undefined


def duplicates(vectors_BD: Tensor, rows_b: Tensor) -> Tensor:
    """(b, B) bool, which other rows have a cosine above .99 with these."""
    vectors_BD = normalize(vectors_BD, dim=1)
    alike_bB = vectors_BD[rows_b] @ vectors_BD.T > DUPLICATE
    return alike_bB.scatter_(1, rows_b[:, None], False)


def nt_xent(
    anchors_BAE: Tensor,
    targets_BME: Tensor,
    known_BM: Tensor,
    joint_BD: Tensor,
    blocks: Sequence[Tensor],
    temperature: float,
    part_size: int | None = None,
) -> Tensor:
    """Cross-entropy of finding each item's own vector in a view.

    Args:
        anchors_BAE: (B, A, E).
        targets_BME: (B, M, E) the items' vectors in the views.
        known_BM: (B, M) bool; where False, the item is neither asked for in the view nor a candidate there.
        joint_BD: (B, D) vectors whose near equality makes two rows no negatives of each other among the anchors.
        blocks: Of each view, (B, V) vectors whose near equality makes two rows no negatives of each other in it.
        temperature: Divides the cosines.
        part_size: Rows asked at a time; None asks all at once. The result differs by rounding alone.

    Returns:
        (A, M) mean over the items that a view knows; 0 for a view that knows none.

    Source: SimCIT (arXiv:2506.16683), as in the released code.
    """
    anchors, targets = normalize(anchors_BAE, dim=2).unbind(1), normalize(targets_BME, dim=2).unbind(1)

    def asked(rows_b: Tensor) -> Tensor:
        """(A, M) sums over rows."""
        same_anchors_bB = duplicates(joint_BD, rows_b).scatter_(1, rows_b[:, None], True)
        among = [(each_BE[rows_b] @ each_BE.T / temperature).masked_fill(same_anchors_bB, NEVER) for each_BE in anchors]
        sums = []
        for targets_BE, known_B, block_BV in zip(targets, known_BM.unbind(1), blocks, strict=True):
            never_bB = duplicates(block_BV, rows_b) | ~known_B
            for each_BE, among_bB in zip(anchors, among, strict=True):
                logits_bB = (each_BE[rows_b] @ targets_BE.T / temperature).masked_fill(never_bB, NEVER)
                losses_b = torch.cat([logits_bB, among_bB], 1).logsumexp(1) - logits_bB.gather(1, rows_b[:, None])[:, 0]
                sums.append(torch.where(known_B[rows_b], losses_b, 0).sum())
        return torch.stack(sums).view(len(targets), len(anchors)).T

    rows_B = torch.arange(len(anchors_BAE), device=anchors_BAE.device)
    return sum(in_parts(asked, part_size, rows_B)) / known_BM.sum(0).clamp(min=1)
