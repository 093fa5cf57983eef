"""TrieLevel: one step of a SidTrie, from the nodes of a depth to their children.

The children of node n are the consecutive nodes first[n] … first[n + 1] - 1 of the next depth, so ids of children are
never stored. Their codes are a list in that order or, if it takes fewer bytes, one bitmap per node. Node -1, which has
no children, reads the last entry of every array, so no look-up has to treat it apart.

No look-up synchronises with the host or makes a tensor from Python values, so all of them can be captured in a CUDA
graph.

Shapes: K codes of the level, K' with the end code K of a level that some SIDs do not reach, W = `width`.

Source: implicit child ids as in LOUDS (Jacobson, 1989), with offsets in place of its unary counts; lists and bitmaps as
the sparse and dense levels of SuRF (Zhang et al., SIGMOD 2018), chosen by size, without its rank and select tables.
"""

from __future__ import annotations

import torch
from torch import Tensor

BYTE = 8  # bits


class TrieLevel:
    """Children of the nodes of one depth.

    Args:
        first: (nodes + 3,) int32 or int64; after the end of the last node's children come two zeros.
        codes: (children + 1,) integer code of each child, 0 at the end; or (nodes + 1, ceil(K' / 8)) uint8, bit c % 8
            of byte c // 8 set where a node has a child of code c, zeros at the end.
        size: K.
        num_ends: Number of SIDs that ended before this level; each has the end code K here.
        width: Largest number of children of a node.
    """

    def __init__(self, first: Tensor, codes: Tensor, size: int, num_ends: int, width: int):
        self.first, self.codes, self.size, self.num_ends = first, codes, size, num_ends
        self.is_bitmap = codes.dim() == 2
        self.width = size if self.is_bitmap else width
        self.num_nodes = len(first) - 3
        self._bounds = first.unfold(0, 2, 1)  # (nodes + 2, 2) begin and end of the children; (0, 0) for node -1
        self._slots = torch.arange(self.width, device=first.device)
        # Eight flags, one byte each, of every byte of a bitmap: reading bits is one look-up, not shift, mask and cast.
        byte = torch.arange(2**BYTE, device=first.device).unsqueeze(1)
        flags = (byte >> torch.arange(BYTE, device=first.device)) & 1
        self._flags_of_byte = flags.to(torch.uint8).view(torch.int64).squeeze(1)  # (256,)

    @classmethod
    def build(cls, first: Tensor, codes: Tensor, size: int) -> TrieLevel:
        """Lay out a level in the form that takes fewer bytes.

        Args:
            first: (nodes + 1,) begin of each node's children, and the end of the last one's.
            codes: (children,) integers in [0, size], ascending below a node; `size` is the end code.
            size: K.
        """
        num_ends = int((codes == size).sum())
        num_codes = size + (num_ends > 0)
        counts = first.diff()
        num_nodes, num_children = len(counts), len(codes)
        row_bytes = -(-num_codes // BYTE)
        dtype = torch.uint8 if num_codes <= 2**8 else torch.int16 if num_codes <= 2**15 else torch.int32
        laid_out = torch.zeros(num_children + 1, dtype=dtype, device=codes.device)
        if num_nodes * row_bytes < num_children * dtype.itemsize:
            node = torch.arange(num_nodes, device=codes.device).repeat_interleave(counts)
            laid_out = torch.zeros((num_nodes + 1) * row_bytes, dtype=torch.uint8, device=codes.device)
            bits = torch.ones_like(codes, dtype=torch.uint8) << (codes & (BYTE - 1)).to(torch.uint8)
            laid_out = laid_out.index_add_(0, node * row_bytes + (codes >> 3), bits).view(-1, row_bytes)
        else:
            laid_out[:-1] = codes
        offsets = torch.int32 if num_children < 2**31 else torch.int64
        first = torch.cat([first.to(offsets), torch.zeros(2, dtype=offsets, device=first.device)])
        return cls(first, laid_out, size, num_ends, int(counts.max()))

    @property
    def num_children(self) -> int:
        """Number of nodes of the next depth."""
        return int(self.first[self.num_nodes])

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays, on their device."""
        return self.first.nbytes + self.codes.nbytes

    def to(self, device: torch.device | str) -> TrieLevel:
        """Copy the level to a device."""
        return TrieLevel(self.first.to(device), self.codes.to(device), self.size, self.num_ends, self.width)

    def bounds(self, nodes: Tensor) -> Tensor:
        """(…, 2) begin and end of the children of each node; both 0 for -1."""
        return self._bounds[nodes]

    def allowed(self, nodes: Tensor) -> Tensor:
        """(…, K) bool, codes under which each node has a child."""
        if self.is_bitmap:
            return self._flags(nodes)[..., : self.size]
        children = self._repeated(nodes)
        flags = torch.zeros(*nodes.shape, self.size + (self.num_ends > 0), dtype=torch.bool, device=nodes.device)
        return flags.scatter_(-1, self.codes[children].long(), children >= 0)[..., : self.size]

    def children(self, nodes: Tensor) -> Tensor:
        """(…, K) child of each node under each code, -1 if it has none."""
        if self.is_bitmap:
            exists = self._flags(nodes)[..., : self.size]
            before = self.first[nodes].unsqueeze(-1) - 1
            return exists.cumsum(-1).add_(before).masked_fill_(~exists, -1)
        children = self._repeated(nodes)
        by_code = torch.full((*nodes.shape, self.size + (self.num_ends > 0)), -1, device=nodes.device)
        return by_code.scatter_(-1, self.codes[children].long(), children)[..., : self.size]

    def expand(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """List codes and children of each node, (…, W) each; 0 and -1 in the slots beyond its last child."""
        if self.is_bitmap:
            children = self.children(nodes)
            return self._slots * (children >= 0), children
        begin, end = self._bounds[nodes].unsqueeze(-2).unbind(-1)  # (…, 1)
        children = begin + self._slots
        children.masked_fill_(children >= end, -1)
        codes = self.codes[children].long()
        if self.num_ends:
            is_end = codes == self.size
            codes, children = codes.masked_fill_(is_end, 0), children.masked_fill_(is_end, -1)
        return codes, children

    def child(self, nodes: Tensor, codes: Tensor) -> Tensor:
        """(…) child of each node under its code, -1 if it has none."""
        listed, children = self.expand(nodes)
        return children.masked_fill(listed != codes.unsqueeze(-1), -1).amax(dim=-1)

    def ends(self, nodes: Tensor) -> Tensor:
        """(…) bool, nodes whose SID ended before this level."""
        if self.num_ends == 0:
            return torch.zeros_like(nodes, dtype=torch.bool)
        if self.is_bitmap:
            return self._flags(nodes)[..., self.size]
        return (self.codes[self.first[nodes]] == self.size) & (nodes >= 0)

    def origin(self, children: Tensor) -> tuple[Tensor, Tensor]:
        """Find parent and code of nodes of the next depth; -1 has the parent -1."""
        ends = self.first[:-2]
        parents = torch.searchsorted(ends, children.to(ends.dtype).contiguous(), right=True) - 1
        if not self.is_bitmap:
            return parents, self.codes[children].long()
        place = children - self.first[parents]  # among the children of the parent
        return parents, (self._flags(parents).cumsum(-1) <= place.unsqueeze(-1)).sum(-1)

    def code_list(self) -> Tensor:
        """(children,) code of each child."""
        if not self.is_bitmap:
            return self.codes[:-1]
        return self._flags(torch.arange(self.num_nodes, device=self.first.device)).nonzero()[:, 1]

    def _repeated(self, nodes: Tensor) -> Tensor:
        """(…, W) children of each node, the last one repeated in the slots beyond it; -1 if there is none.

        Scattered by code, the repetitions write what is there already, so no slot has to be masked.
        """
        begin, end = self._bounds[nodes].unsqueeze(-2).unbind(-1)  # (…, 1)
        return torch.minimum(begin + self._slots, end - 1)

    def _flags(self, nodes: Tensor) -> Tensor:
        """(…, K' rounded up to bytes) bool, bits of each node."""
        return self._flags_of_byte[self.codes[nodes].long()].view(torch.bool)
