"""LeafMask: the leaves that each prompt of a batch may reach, as tensors on a device.

The mask of a prompt is two sets of leaves: those that its allow-list reaches (all without one) and, among them, those
whose allowed items are all excluded. A range of leaves holds a legal one if it holds more of the first set than of the
second. A set is counted over a range by searching its sorted ranks for both ends or, if an allow-list is long, by
look-ups in running counts over all leaves, which all prompts with that list share.

Nothing in `permits` synchronises with the host, and a mask is made of few tensors, so that it can be an input of a CUDA
graph.

Shapes: B prompts, U leaves, X most barred leaves of a prompt, A most leaves of a short allow-list, S long
allow-lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

UNRESTRICTED, SHORT = -1, -2  # of `list_of_row`
MIN_WIDTH = 16  # columns of `rounded` ranks


@dataclass(frozen=True)
class LeafMask:
    """Legal leaves of each prompt of a batch.

    Args:
        num_leaves: U.
        barred: (B, X) int64, sorted barred leaves of each prompt, filled up with U.
        allowed: (B, A) int64, sorted leaves of the short allow-lists, filled up with U; None if there is none.
        counts: (S, U + 1) int32, number of leaves of each long allow-list that rank below; None if there is none.
        list_of_row: (B,) int64 position of the prompt's list in `counts`, or SHORT or UNRESTRICTED; None without
            allow-lists.
    """

    num_leaves: int
    barred: Tensor
    allowed: Tensor | None = None
    counts: Tensor | None = None
    list_of_row: Tensor | None = None

    def __len__(self) -> int:
        return len(self.barred)

    def permits(self, first_leaf: Tensor, end_leaf: Tensor) -> Tensor:
        """Tell which ranges of leaves hold one that their prompt may reach.

        Args:
            first_leaf: (B, …) int64.
            end_leaf: (B, …) int64, exclusive.

        Returns:
            (B, …) bool.
        """
        bounds = torch.stack([first_leaf, end_leaf], dim=1).flatten(2)  # (B, 2, ranges)
        num_allowed = bounds[:, 1] - bounds[:, 0]
        if self.list_of_row is not None:
            kind = self.list_of_row.unsqueeze(1)
            if self.allowed is not None:
                num_allowed = torch.where(kind == SHORT, _count(self.allowed, bounds), num_allowed)
            if self.counts is not None:
                below = self.counts[self.list_of_row.clamp(min=0).view(-1, 1, 1), bounds]
                num_allowed = torch.where(kind >= 0, below[:, 1] - below[:, 0], num_allowed)
        return (num_allowed > _count(self.barred, bounds)).view(first_leaf.shape)

    def rounded(self, rows: Tensor, least: int = MIN_WIDTH) -> LeafMask:
        """Select prompts of the batch, and round the widths of the tensors up to powers of two.

        A CUDA graph is captured for each set of shapes; rounding leaves few of them.

        Args:
            rows: (B',) int64 places in this batch, which may repeat.
            least: Smallest width of the barred leaves.
        """
        counts = self.counts
        if counts is not None:
            added = _power_of_two(len(counts)) - len(counts)
            counts = torch.cat([counts, counts[:1].expand(added, -1)])
        return LeafMask(
            self.num_leaves,
            self._widened(self.barred[rows], least),
            None if self.allowed is None else self._widened(self.allowed[rows]),
            counts,
            None if self.list_of_row is None else self.list_of_row[rows],
        )

    def _widened(self, ranks: Tensor, least: int = MIN_WIDTH) -> Tensor:
        width = ranks.shape[1]
        return pad(ranks, (0, max(least, _power_of_two(width)) - width), value=self.num_leaves)

    def tensors(self) -> dict[str, Tensor]:
        """Map the names of the tensors that the mask has to these tensors."""
        named = {"barred": self.barred, "allowed": self.allowed, "counts": self.counts, "list_of_row": self.list_of_row}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def with_tensors(self, tensors: Sequence[Tensor]) -> LeafMask:
        """Put other tensors, such as the static inputs of a CUDA graph, in place of those of `tensors`."""
        named = dict(zip(self.tensors(), tensors, strict=True))
        return LeafMask(
            self.num_leaves, named["barred"], named.get("allowed"), named.get("counts"), named.get("list_of_row")
        )


def _count(ranks: Tensor, bounds: Tensor) -> Tensor:
    """Count the ranks, (B, X) sorted, that lie between bounds (B, 2, ranges); (B, ranges)."""
    begin, end = torch.searchsorted(ranks, bounds.flatten(1)).view_as(bounds).unbind(1)
    return end - begin


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()
