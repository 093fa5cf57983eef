"""A history as a row of feature sets with slots between them, and what merging a pair of its pieces does to it.

The order of an item's features says nothing, so a node holds the pieces of an item as a set. Two pieces of one set are
replaced by their merged piece, in this set. Two pieces of neighbouring sets leave both, and their merged piece takes
the slot between the sets, which has room for one. A set that has become empty takes over the piece of the slot on its
left, and an empty set beside an empty slot is dropped. The slot of a node is the one on its right.

The weight of a pair is the number of times that its pieces are expected to stand side by side when every set is put in
a random order. The weights of a history sum to its number of pieces less one, as long as no set is empty.

Source: ActionPiece (arXiv:2502.13581), section 3.2 and its released code, whose order of steps is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

NO_PIECE = -1
Pair = tuple[int, int]  # of piece ids, the smaller first


class Node(NamedTuple):
    """Pieces of an item, and the piece in the slot behind it.

    Attributes:
        pieces: Pieces of the set; a new one stands first.
        slot: Piece between this set and the next one; -1 if there is none.
    """

    pieces: tuple[int, ...]
    slot: int = NO_PIECE


class Place(NamedTuple):
    """A pair of pieces of a node that may be merged, and where they stand.

    Attributes:
        pair: The pieces.
        side: `set` for two pieces of the set; `sets` for one of it and one of the next set; `left` or `right` for the
            piece of the slot and one of the set on that side of it.
        cells: Number of pairs that share the weight of this place: it is 2 / n in a set of n, else 1 / cells.
    """

    pair: Pair
    side: str
    cells: float


def ordered(one: int, other: int) -> Pair:
    """Return a pair with the smaller id first."""
    return (one, other) if one < other else (other, one)


def places(node: Node, following: Node | None) -> Iterator[Place]:
    """List the pairs of a node that may be merged, in the order in which ties are broken.

    Args:
        node: Node of a history.
        following: Node behind it; None if it is the last.
    """
    pieces, slot = node
    for j, one in enumerate(pieces):
        for other in pieces[j + 1 :]:
            yield Place(ordered(one, other), "set", len(pieces) / 2)
    if following is None:
        return
    if slot == NO_PIECE:
        for one in pieces:
            for other in following.pieces:
                yield Place(ordered(one, other), "sets", len(pieces) * len(following.pieces))
        return
    for side, neighbours in (("left", pieces), ("right", following.pieces)):
        for one in neighbours:
            yield Place(ordered(one, slot), side, len(neighbours))


def merge_place(nodes: list[Node], i: int, place: Place, piece: int) -> list[Node]:
    """Merge one pair at one place.

    Args:
        nodes: History; changed.
        i: Position of a node.
        place: One of its `places`.
        piece: Id of the merged piece.

    Returns:
        The history, without sets that have become empty.
    """
    if place.side == "set":
        _merge_set(nodes, i, place.pair, piece)
    elif place.side == "sets":
        _merge_sets(nodes, i, place.pair, piece)
    else:
        _merge_slot(nodes, i, i if place.side == "left" else i + 1, place.pair, piece)
    return fill_empty(nodes)


def merge_everywhere(nodes: list[Node], pair: Pair, piece: int) -> list[Node]:
    """Merge a pair wherever it stands in a history, from left to right.

    Args:
        nodes: History; changed.
        pair: Pieces to merge.
        piece: Id of the merged piece.

    Returns:
        The history, without sets that have become empty.
    """
    one, other = pair
    for i, (pieces, slot) in enumerate(nodes):
        if one in pieces or other in pieces:
            _merge_set(nodes, i, pair, piece)
            if slot == NO_PIECE and i + 1 < len(nodes):
                _merge_sets(nodes, i, pair, piece)
        if slot in pair:
            _merge_slot(nodes, i, i, pair, piece)
            _merge_slot(nodes, i, i + 1, pair, piece)
    return fill_empty(nodes)


def _merge_set(nodes: list[Node], i: int, pair: Pair, piece: int) -> None:
    pieces, slot = nodes[i]
    if pair[0] != pair[1] and pair[0] in pieces and pair[1] in pieces:
        nodes[i] = Node((piece, *(each for each in pieces if each not in pair)), slot)


def _merge_sets(nodes: list[Node], i: int, pair: Pair, piece: int) -> None:
    (pieces, _), (following, slot) = nodes[i], nodes[i + 1]
    for one, other in (pair, pair[::-1]):
        if one in pieces and other in following:
            nodes[i], nodes[i + 1] = Node(_without(pieces, one), piece), Node(_without(following, other), slot)
            return


def _merge_slot(nodes: list[Node], i: int, neighbour: int, pair: Pair, piece: int) -> None:
    """Merge the piece in the slot of node `i` with one of the set beside it."""
    if nodes[i].slot not in pair:
        return
    other = pair[1] if nodes[i].slot == pair[0] else pair[0]
    pieces = nodes[neighbour].pieces
    if other in pieces:
        nodes[neighbour] = nodes[neighbour]._replace(pieces=_without(pieces, other))
        nodes[i] = nodes[i]._replace(slot=piece)


def _without(pieces: tuple[int, ...], piece: int) -> tuple[int, ...]:
    return tuple(each for each in pieces if each != piece)


def fill_empty(nodes: list[Node]) -> list[Node]:
    """Let empty sets take over the piece of the slot on their left, and drop those beside an empty slot."""
    while not all(node.pieces for node in nodes):
        before = list(nodes)
        for i in range(1, len(nodes)):
            if not nodes[i].pieces and nodes[i - 1].slot != NO_PIECE:
                nodes[i] = nodes[i]._replace(pieces=(nodes[i - 1].slot,))
                nodes[i - 1] = nodes[i - 1]._replace(slot=NO_PIECE)
        last = len(nodes) - 1
        nodes = [node for i, node in enumerate(nodes) if node.pieces or node.slot != NO_PIECE or i == last]
        if nodes == before:
            break
    return nodes


def flatten(nodes: Sequence[Node]) -> list[int]:
    """List the pieces of a history from left to right."""
    return [piece for node in nodes for piece in (*node.pieces, node.slot) if piece != NO_PIECE]
