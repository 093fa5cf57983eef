"""The data of the distillation experiment: sequences, targets, and the prefix tree of the semantic IDs.

Shapes: B examples, T items of the longest history, P positions with a target in the batch, N items (N2 columns), L
levels, K codes of a level, H hidden.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
K = 256  # codes of a level
WINDOW = 50  # items of a history


def to_device(array: np.ndarray, dtype: torch.dtype = torch.long) -> torch.Tensor:
    """Copy an array to the device."""
    tensor = torch.as_tensor(array, dtype=dtype)
    return tensor.pin_memory().to(DEVICE, non_blocking=True) if DEVICE == "cuda" else tensor


def to_device_together(*arrays: np.ndarray) -> list[torch.Tensor]:
    """Copy several integer arrays to the device in one transfer."""
    flat = to_device(np.concatenate([np.asarray(array).reshape(-1) for array in arrays]))
    parts = flat.split([np.size(array) for array in arrays])
    return [part.view(np.shape(array)) for part, array in zip(parts, arrays, strict=True)]


def positions_of(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the positions of sequences with these lengths.

    Returns:
        For each position, its sequence and its place in the sequence.
    """
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    return sequence, np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


class Data:
    """One dataset on the device.

    Args:
        path: File that export.py wrote.
        max_users: Number of users to keep, for smoke tests; all by default.

    Attributes:
        num_items, num_levels: N and L.
        num_columns: N2, which is N + 1 rounded up to a multiple of 64, so that matrix products are aligned. Column N
            is padding; it and the columns after it hold no item.
        codes: (N, L) codes of each item.
        windows: (windows, 50) training sequences, cut from the end, so that long sequences are used whole; -1 pads.
        lengths: (windows,) number of items of each window.
        examples: Histories and targets of valid and test.
        selection: Valid examples by which the best step is chosen.
        no_item: (N2,) 0 for items and -1e9 for the other columns.
        log_popularity: (N2,) logarithm of each item's share of the training interactions.
        node: For each depth, (N,) node of every item in the prefix tree.
        child: For each level, (nodes, K) child of each node by code; -1 where there is none.
        leaf: (leaves,) item of each leaf.
    """

    def __init__(self, path: str | Path, max_users: int | None = None):
        stored = dict(np.load(path))

        def sequences(name: str) -> list[np.ndarray]:
            offsets = stored[f"{name}_off"]
            return [stored[name][start:end].astype(np.int64) for start, end in pairwise(offsets)][:max_users]

        codes = stored["codes"].astype(np.int64)
        self.num_items, self.num_levels = codes.shape
        self.num_columns = -(-(self.num_items + 1) // 64) * 64
        self.codes = torch.tensor(codes, device=DEVICE)
        self.train = sequences("train")
        self.examples = {
            split: (sequences(split), stored[f"{split}_y"].astype(np.int64)[:max_users]) for split in ("valid", "test")
        }
        self.selection = np.random.default_rng(1).permutation(len(self.examples["valid"][1]))[:4000]
        self._cut_windows()
        self._count_items()
        self._grow_tree(codes)

    def _cut_windows(self) -> None:
        cut = [items[max(0, end - WINDOW) : end] for items in self.train for end in range(len(items), 0, -WINDOW)]
        cut = [window for window in cut if len(window) > 1]
        windows = np.full((len(cut), WINDOW), -1, np.int64)
        for i, window in enumerate(cut):
            windows[i, : len(window)] = window
        self.lengths = np.array([len(window) for window in cut])
        self.windows = torch.tensor(windows, device=DEVICE)

    def _count_items(self) -> None:
        smoothed = np.bincount(np.concatenate(self.train), minlength=self.num_items) + 1e-3
        self.no_item = torch.zeros(self.num_columns, device=DEVICE)
        self.no_item[self.num_items :] = -1e9
        self.log_popularity = self.no_item.clone()
        self.log_popularity[: self.num_items] = torch.tensor(
            np.log(smoothed / smoothed.sum()), dtype=torch.float, device=DEVICE
        )

    def _grow_tree(self, codes: np.ndarray) -> None:
        """Build the prefix tree, and list the items below each node (padded with N) and their next codes."""
        items, parent = np.arange(self.num_items), np.zeros(self.num_items, np.int64)
        self.node, self.child, below = [torch.zeros(self.num_items, dtype=torch.long, device=DEVICE)], [], []
        for level in range(self.num_levels):
            num_nodes, order = parent.max() + 1, np.argsort(parent, kind="stable")
            size = np.bincount(parent, minlength=num_nodes)
            start = np.cumsum(size) - size
            members = np.full((num_nodes, size.max()), self.num_items, np.int64)
            members[parent[order], items - start[parent[order]]] = order
            below.append(torch.tensor(members, device=DEVICE))
            edges, parent_of_next = np.unique(parent * K + codes[:, level], return_inverse=True)
            child = np.full((num_nodes, K), -1, np.int64)
            child[edges // K, edges % K] = np.arange(len(edges))
            self.child.append(torch.tensor(child, device=DEVICE))
            parent = parent_of_next.reshape(-1)
            self.node.append(torch.tensor(parent, device=DEVICE))
        leaf = np.full(parent.max() + 1, -1, np.int64)
        leaf[parent] = items
        self.leaf = torch.tensor(leaf, device=DEVICE)
        padded = torch.cat([self.codes, torch.zeros(1, self.num_levels, dtype=torch.long, device=DEVICE)])
        self._below = below
        self._code_below = [padded[:, level][members] + level * K for level, members in enumerate(below)]
        self._first_code = torch.zeros(self.num_columns, K, device=DEVICE)
        self._first_code[torch.arange(self.num_items, device=DEVICE), self.codes[:, 0]] = 1.0

    def tree_targets(self, p: torch.Tensor, rows: torch.Tensor, nodes: list[torch.Tensor]) -> torch.Tensor:
        """Turn distributions over items into distributions over the codes that follow each prefix of a path.

        Args:
            p: (P, N2) distributions over items.
            rows: (Q,) distribution of each path.
            nodes: For each level, (Q,) node from which the path takes its next step.

        Returns:
            (Q, L, K) distributions; 0 where p has no mass below the node.
        """
        levels = range(1, self.num_levels)
        members = torch.cat([self._below[level][nodes[level]] for level in levels], 1)
        codes = torch.cat([self._code_below[level][nodes[level]] for level in levels], 1)
        mass = torch.zeros(len(rows), self.num_levels * K, device=DEVICE)
        mass = mass.scatter_add_(1, codes, p[rows[:, None], members]).view(-1, self.num_levels, K)
        mass[:, 0] = (p @ self._first_code)[rows]
        total = mass.sum(-1, keepdim=True)
        return torch.where(total > 1e-9, mass / total.clamp(min=1e-12), torch.zeros_like(mass))
