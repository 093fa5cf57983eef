"""One vector per item: all of its views side by side.

Each view is scaled to unit length, multiplied by its weight and laid next to the others; a view that misses an item
contributes zeros. Items that no view knows have the zero vector and take no part in `fit`.

Shapes: N items, B of a block, n of some item rows, D sum of the view dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from llmrec.data.catalog import Catalog
from llmrec.runtime import processes
from llmrec.runtime.console import say
from llmrec.tokenizers.shared.row_blocks import blocks
from llmrec.views import ItemViews
from llmrec.views.mapped import let_go

CHUNK = 65536  # vectors that go through a network together
MOST_FITTED = 2**20  # items that codes are learned from


class JointVectors:
    """Vectors of a catalogue's items, which are made when they are asked for.

    Args:
        catalog: Whose items the views describe.
        views: One row per item.
        weights: One per view; all 1 when left out.
        without: A view that is not part of the vectors.

    Attributes:
        dims: Dimension of each view, in the order in which they stand side by side.
        known: (N,) bool, items that some view knows.
        item_ids: (N,) ids of the items.

    Raises:
        ValueError: If a view is of another catalogue, or there is not one weight per view.
    """

    def __init__(
        self,
        catalog: Catalog,
        views: ItemViews,
        weights: Sequence[float] | None = None,
        without: str | None = None,
    ):
        require_rows(catalog, views)
        weights = weights or [1.0] * len(views)
        if len(weights) != len(views):
            raise ValueError(f"view_weights is {weights} for the views {list(views)}; give one weight per view.")
        kept = ItemViews({name: view for name, view in views.items() if name != without})
        self._views = list(kept.values())
        self._weights = [weight for name, weight in zip(views, weights, strict=True) if name != without]
        self.dims = {name: view.vectors.shape[1] for name, view in kept.items()}
        self.known, self.item_ids, self._source = kept.known, catalog.item_ids, catalog.source

    def of(self, rows: np.ndarray) -> Tensor:
        """Join the vectors of item rows (n,).

        Returns:
            (n, D) float32 on the CPU.
        """
        points_ND = torch.empty(len(rows), sum(self.dims.values()))
        for first in range(0, len(rows), CHUNK):  # every copy of all vectors counts
            part = rows[first : first + CHUNK]
            parts = [torch.from_numpy(view.vectors[part]) for view in self._views]
            points_ND[first : first + CHUNK] = self._join(part, parts)
            for view in self._views:
                let_go(view.vectors, slice(int(part.min()), int(part.max()) + 1))
        return points_ND

    def to_fit(self, least_distinct: int, all_items: bool = False, is_share: bool = False) -> Tensor:
        """Join the vectors of the items that a tokenizer is fitted to: those that some view knows.

        Above MOST_FITTED items they are a random sample, the same every time. These are 4,096 items for each of 256
        codes; codes from ten times as many leave .3 to .6 % less of new vectors, and take ten times the memory.

        Args:
            least_distinct: Number of distinct vectors that a codebook needs.
            all_items: Take all items, where each is given its place while the tokenizer is fitted.
            is_share: Join those of this process's share of these items alone.

        Returns:
            (n, D) float32 on the CPU, in the order of item rows.

        Raises:
            ValueError: If no view knows any item, or there are fewer distinct vectors.
        """
        rows = np.flatnonzero(self.known)
        if len(rows) > MOST_FITTED and not all_items:
            say(f"tokenize: codes are learned from {MOST_FITTED:,} of {len(rows):,} items, drawn at random.")
            rows = np.sort(np.random.default_rng(0).choice(rows, MOST_FITTED, replace=False))
        if not len(rows):
            raise ValueError(
                f"no view has a vector for any item of '{self._source}'. Run `llmrec embed` with other views."
            )
        points_ND = self.of(rows[processes.share(len(rows))] if is_share else rows)
        require_distinct(points_ND, least_distinct, is_share)
        return points_ND

    def blocks(self, device: torch.device) -> Iterator[Tensor]:
        """Join the vectors of this process's share of the items, block after block; those of all in a single process.

        Yields:
            (B, D) float32 on the device. The views may be larger than its memory, or than that of the host.
        """
        share = processes.share(len(self.known))
        for rows, parts in blocks([view.vectors for view in self._views], device, share):
            yield self._join(rows, parts)

    def _join(self, rows: slice | np.ndarray, parts: Sequence[Tensor]) -> Tensor:
        """Lay the vectors of some items in each view side by side, on the device of these."""
        joined = []
        for view, weight, part_BD in zip(self._views, self._weights, parts, strict=True):
            known_B1 = torch.from_numpy(~view.missing[rows]).to(part_BD.device)[:, None]
            joined.append(normalize(part_BD, dim=1) * known_B1 * weight)
        return torch.cat(joined, dim=1)


def require_rows(catalog: Catalog, views: ItemViews) -> None:
    """Refuse views of another catalogue.

    Raises:
        ValueError: If a view has not one row per item.
    """
    for name, view in views.items():
        if len(view.vectors) != catalog.num_items:
            raise ValueError(
                f"view '{name}' has {len(view.vectors)} rows but the catalogue has {catalog.num_items} items; "
                "run `llmrec embed` on this catalogue."
            )


def require_distinct(points_ND: Tensor, least: int, is_share: bool = False) -> None:
    """Refuse vectors among which fewer than `least` are distinct; counts only as far as needed.

    Args:
        points_ND: (N, D) on the CPU.
        least: Number of distinct vectors that are needed.
        is_share: Whether each process has other vectors, to be counted together.

    Raises:
        ValueError: With the option to lower.
    """
    distinct: set[bytes] = set()
    for point_D in points_ND.numpy():
        distinct.add(point_D.tobytes())
        if len(distinct) >= least:
            break
    num_points = len(points_ND)
    if is_share:
        distinct, num_points = set(processes.gather(list(distinct))), sum(processes.gather([num_points]))
    if len(distinct) >= least:
        return
    if len(distinct) == 1:
        raise ValueError(
            f"all of the {num_points} item vectors are equal; items that cannot be told apart get no semantic IDs. "
            "Check what the views were built from."
        )
    raise ValueError(
        f"{num_points} items with a vector, {len(distinct)} distinct vectors, cannot fill codebooks of {least} "
        f"codes. Lower codebook_size to at most {len(distinct)}."
    )
