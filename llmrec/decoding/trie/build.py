"""Construction of the levels of a SidTrie: from codes in any order, from a part of a trie, or from a trie and new SIDs.

The codes of a SID are packed into as few int64 words as hold them, first level highest; a SID that is shorter than the
others goes on with an end code, one past the codes of each level. Where the item row fits below the codes (4 x 256
codes and up to 2^31 items), sorting is one sort of plain values: 0.3 s for 10^7 of them with numpy's vectorised sort,
where an argsort takes 0.9 s. Wider SIDs are sorted word by word. The levels are then read off the sorted words from the
last level up, each pass over no more nodes than the depth has.

Everything runs where the codes are, on CPU or CUDA.

Shapes: E entries (one per item and SID), U distinct SIDs, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmrec.decoding.trie.leaf_items import LeafItems
from llmrec.decoding.trie.level import TrieLevel
from llmrec.sid.bounds import EMPTY

WORD_BITS = 63  # of an int64 without its sign


class Parts(NamedTuple):
    """Levels of a trie, and the items of its leaves."""

    levels: list[TrieLevel]
    owners: LeafItems


@dataclass(frozen=True)
class Packing:
    """Layout of the codes of each level in words.

    Attributes:
        level_sizes: Number of codes of each level.
        has_end: For each level, True if some SID ends before it.
    """

    level_sizes: list[int]
    has_end: list[bool]

    @property
    def bits(self) -> list[int]:
        """Number of bits that the codes of each level take."""
        return [(size - 1 + end).bit_length() for size, end in zip(self.level_sizes, self.has_end, strict=True)]

    @property
    def words(self) -> list[list[int]]:
        """Levels of each word."""
        words: list[list[int]] = [[]]
        used = 0
        for level, bits in enumerate(self.bits):
            if used + bits > WORD_BITS:
                words, used = [*words, []], 0
            words[-1].append(level)
            used += bits
        return words

    def row_bits(self, num_items: int) -> int | None:
        """Number of bits of an item row, or None if it does not fit below the codes."""
        bits = (num_items - 1).bit_length()
        return bits if sum(self.bits) + bits <= WORD_BITS else None

    def pack(self, codes: np.ndarray | Tensor) -> list[Tensor]:
        """Pack SIDs into words, (E,) int64 each."""
        return [self._pack_word(codes, levels) for levels in self.words]

    def _pack_word(self, codes: np.ndarray | Tensor, levels: list[int]) -> Tensor:
        word = torch.zeros_like(column(codes, levels[0]))
        for level in levels:
            values = column(codes, level)
            if self.has_end[level]:
                values.masked_fill_(values == EMPTY, self.level_sizes[level])
            word.bitwise_left_shift_(self.bits[level]).bitwise_or_(values)
        return word

    def pop(self, words: list[Tensor], level: int) -> tuple[Tensor, list[Tensor]]:
        """Split the codes of a level, the last one in the words, off the words."""
        bits, rest = self.bits[level], words[:-1]
        if not self._begins_word(level):
            rest = [*rest, words[-1] >> bits]
        return words[-1] & ((1 << bits) - 1), rest

    def push(self, words: list[Tensor], codes: Tensor, level: int) -> list[Tensor]:
        """Append the codes of the next level to the words."""
        if self._begins_word(level):
            return [*words, codes.long()]
        return [*words[:-1], words[-1] << self.bits[level] | codes]

    def _begins_word(self, level: int) -> bool:
        return any(levels[0] == level for levels in self.words)


def column(codes: np.ndarray | Tensor, level: int) -> Tensor:
    """Copy the codes of one level, as int64."""
    if isinstance(codes, np.ndarray):
        return torch.from_numpy(codes[:, level].astype(np.int64))
    return codes[:, level].to(torch.int64, copy=True)


def check_entries(
    codes: np.ndarray | Tensor, level_sizes: list[int], item_rows: np.ndarray | Tensor | Sequence[int] | None
) -> tuple[np.ndarray | Tensor, Tensor]:
    """Convert codes and their item rows, and check their shapes.

    Returns:
        Codes as an array or tensor, and (E,) int64 item rows on the same device: the positions of the codes when left
        out.

    Raises:
        ValueError: If there are no SIDs, the shapes do not fit, or an item row is negative.
    """
    codes = codes if isinstance(codes, Tensor) else np.asarray(codes)
    device = codes.device if isinstance(codes, Tensor) else None
    if codes.dtype.is_floating_point if isinstance(codes, Tensor) else codes.dtype.kind not in "iu":
        raise ValueError(f"codes are {codes.dtype}; integers are needed.")
    if min(level_sizes, default=0) < 1:
        raise ValueError(f"level_sizes is {level_sizes}; a level without a code is none, so leave it out.")
    if codes.ndim != 2 or codes.shape[1] != len(level_sizes):
        raise ValueError(f"codes have the shape {tuple(codes.shape)}; one row per SID, {len(level_sizes)} codes wide.")
    if len(codes) == 0:
        raise ValueError("A trie needs at least one item; no SID was given, or the given rows name none of the table.")
    if item_rows is None:
        return codes, torch.arange(len(codes), device=device)
    rows = torch.as_tensor(item_rows, dtype=torch.int64, device=device)
    if rows.shape != (len(codes),):
        raise ValueError(f"{len(codes)} SIDs were given for item rows of the shape {tuple(rows.shape)}.")
    if int(rows.min()) < 0:
        raise ValueError(f"item rows must not be negative; found {int(rows.min())}.")
    return codes, rows


def find_ends(codes: np.ndarray | Tensor, level_sizes: list[int]) -> list[bool]:
    """Find, for each level, if some SID ends before it.

    Raises:
        ValueError: If a code is outside its level, or a code follows the end of a SID.
    """
    has_end: list[bool] = []
    ended: Tensor | None = None
    for level, size in enumerate(level_sizes):
        values = column(codes, level)
        low, high = (int(value) for value in values.aminmax())
        if high >= size or low < (EMPTY if level else 0):
            row = int(((values >= size) | (values < (EMPTY if level else 0))).nonzero()[0])
            raise ValueError(f"row {row} has code {int(values[row])} at level {level}, which has {size} codes.")
        if ended is not None and bool((ended & (values >= 0)).any()):
            row = int((ended & (values >= 0)).nonzero()[0])
            raise ValueError(f"row {row} has a code at level {level} after its SID ended; -1 may only end a SID.")
        ended = values < 0 if low < 0 else None
        has_end.append(low < 0)
    return has_end


def build(codes: np.ndarray | Tensor, level_sizes: list[int], item_rows: Tensor, num_items: int) -> Parts:
    """Build the levels and leaves of SIDs in any order."""
    packing = Packing(level_sizes, find_ends(codes, level_sizes))
    return _from_sorted(packing, *_sort(packing, packing.pack(codes), item_rows, num_items), num_items)


def append(parts: Parts, codes: np.ndarray | Tensor, rows: Tensor, num_items: int) -> Parts:
    """Add SIDs to a trie: the new ones are sorted and merged into the old ones, which are sorted already."""
    sizes = [level.size for level in parts.levels]
    ends = zip(parts.levels, find_ends(codes, sizes), strict=True)
    packing = Packing(sizes, [level.num_ends > 0 or has_end for level, has_end in ends])
    old_words, old_rows = _entries(parts, packing)
    new_words = packing.pack(codes)
    bits = packing.row_bits(num_items)
    if bits is None:  # Rare and wide: no single value orders the entries.
        words = [torch.cat(pair) for pair in zip(old_words, new_words, strict=True)]
        return _from_sorted(packing, *_sort(packing, words, torch.cat([old_rows, rows]), num_items), num_items)
    old, new = old_words[0] << bits | old_rows, _sort_values(new_words[0] << bits | rows)
    place = torch.searchsorted(old, new) + torch.arange(len(new), device=new.device)
    is_old = torch.ones(len(old) + len(new), dtype=torch.bool, device=new.device)
    is_old[place] = False
    merged = torch.empty(len(is_old), dtype=torch.int64, device=new.device)
    merged[place], merged[is_old] = new, old
    return _from_sorted(packing, [merged >> bits], merged & ((1 << bits) - 1), num_items)


def select(parts: Parts, is_kept: np.ndarray) -> Parts:
    """Keep the part of a trie that leads to some of its entries: (E,) bool, at least one True."""
    owners, is_kept_leaf = parts.owners.select(is_kept)
    keep = torch.from_numpy(is_kept_leaf).to(parts.levels[0].first.device)
    levels: list[TrieLevel] = []
    for level in reversed(parts.levels):
        before = torch.cat([keep.new_zeros(1, dtype=torch.int64), keep.cumsum(0)])
        counts = before[level.first[:-2]].diff()  # kept children of each node
        codes, keep = level.code_list()[keep], counts > 0
        first = torch.cat([counts.new_zeros(1), counts[keep].cumsum(0)])
        levels.insert(0, TrieLevel.build(first, codes, level.size))
    return Parts(levels, owners)


def _entries(parts: Parts, packing: Packing) -> tuple[list[Tensor], Tensor]:
    """Words and item rows of all entries, sorted."""
    words: list[Tensor] = []
    for depth, level in enumerate(parts.levels):
        counts = level.first[:-2].diff()
        words = packing.push([word.repeat_interleave(counts) for word in words], level.code_list(), depth)
    rows = torch.from_numpy(parts.owners.rows.astype(np.int64)).to(words[0].device)
    if parts.owners.starts is not None:
        counts = torch.from_numpy(np.diff(parts.owners.starts)).to(rows.device)
        words = [word.repeat_interleave(counts) for word in words]
    return words, rows


def _sort(packing: Packing, words: list[Tensor], rows: Tensor, num_items: int) -> tuple[list[Tensor], Tensor]:
    """Sort entries by SID and, below a SID, by item row. The words given are overwritten."""
    bits = packing.row_bits(num_items)
    if bits is not None:
        key = _sort_values(words[0].bitwise_left_shift_(bits).bitwise_or_(rows))
        rows = (key & ((1 << bits) - 1)).to(torch.int32)
        return [key.bitwise_right_shift_(bits)], rows
    order = rows.argsort(stable=True)
    for word in reversed(words):
        order = order[word[order].argsort(stable=True)]
    return [word[order] for word in words], rows[order]


def _sort_values(key: Tensor) -> Tensor:
    if key.is_cuda:
        return key.sort().values
    key.numpy().sort()
    return key


def _from_sorted(packing: Packing, words: list[Tensor], rows: Tensor, num_items: int) -> Parts:
    starts = _starts(words)
    leaf_starts = None
    if len(starts) < len(rows):
        words = [word[starts] for word in words]
        leaf_starts = _host(torch.cat([starts, starts.new_full((1,), len(rows))]), len(rows))
    levels: list[TrieLevel] = []
    for level in reversed(range(len(packing.level_sizes))):
        codes, words = packing.pop(words, level)
        first = _starts(words) if level else codes.new_zeros(1)
        _check_prefix_free(packing, words, codes, first, level)
        words = [word[first] for word in words]
        first = torch.cat([first, first.new_full((1,), len(codes))])
        levels.insert(0, TrieLevel.build(first, codes, packing.level_sizes[level]))
    return Parts(levels, LeafItems(_host(rows, num_items), leaf_starts, num_items))


def _starts(words: list[Tensor]) -> Tensor:
    """Positions at which a new value begins, the first one included."""
    is_new = torch.ones(len(words[0]), dtype=torch.bool, device=words[0].device)
    torch.ne(words[0][1:], words[0][:-1], out=is_new[1:])
    for word in words[1:]:
        is_new[1:] |= word[1:] != word[:-1]
    return is_new.nonzero().squeeze(1)


def _check_prefix_free(packing: Packing, words: list[Tensor], codes: Tensor, first: Tensor, level: int) -> None:
    """The end code sorts last, so a SID that others continue ends as a later child than the first."""
    if not packing.has_end[level]:
        return
    late_end = codes == packing.level_sizes[level]
    late_end[first] = False
    if not bool(late_end.any()):
        return
    words = [word[late_end][:1] for word in words]
    prefix: list[int] = []
    for above in reversed(range(level)):
        code, words = packing.pop(words, above)
        prefix.insert(0, int(code))
    raise ValueError(
        f"The SID {prefix} is also the beginning of another one, so its end cannot be told; SidTable adds a terminal "
        "code to such SIDs."
    )


def _host(values: Tensor, largest: int) -> np.ndarray:
    return values.to(torch.int32 if largest < 2**31 else torch.int64).cpu().numpy()
