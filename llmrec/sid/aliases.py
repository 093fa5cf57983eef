"""Aliases: several semantic IDs of each item, those of one number being one way of writing the whole catalogue.

A table whose items all have equally many SIDs has aliases. A history is written in one of them, and so are the answers
that follow it (`llmrec.model.history.aliases`). Tables in which some items have more SIDs than others have none, and so
have tables of pieces, where the SIDs of an item are ways of writing this item alone.

Aliases may share codes, where a code means about the same in each (checkpoints of one tokenizer), or have codes of
their own (trees): code c of alias a is then c A + a, so that a level may grow without moving a published code.

Shapes: N items, A aliases, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmrec.sid.codes import EMPTY
from llmrec.sid.pieces.pieces import Pieces
from llmrec.sid.table import SidTable


def aliases_of(table: SidTable) -> list[SidTable]:
    """Split a table into its aliases, with the same codes and level sizes.

    Args:
        table: Semantic IDs.

    Returns:
        A tables of one SID for each item; the table itself if it has no aliases.

    Examples:
        >>> from llmrec import SidTable
        >>> from llmrec.sid.aliases import aliases_of
        >>> table = SidTable(["red", "green"], [[0, 1], [1, 0], [2, 2], [0, 2]], item_rows=[0, 1, 0, 1])
        >>> [alias.all_codes.tolist() for alias in aliases_of(table)]
        [[[0, 1], [1, 0]], [[2, 2], [0, 2]]]
    """
    counts = table.sids_per_item
    if counts is None or counts.min() < counts.max() or table.pieces is not None:
        return [table]
    codes_ANL = table.all_codes.reshape(table.num_items, -1, table.num_levels).swapaxes(0, 1)
    return [SidTable(table.item_ids, codes_NL, None, table.level_sizes, table.words) for codes_NL in codes_ANL]


def join_aliases(
    item_ids: Sequence[str],
    codes: Sequence[np.ndarray],
    level_sizes: Sequence[int],
    share_codes: bool,
    pieces: Pieces | None = None,
) -> SidTable:
    """Make a table of the codes that each alias gives the items.

    Args:
        item_ids: N ids.
        codes: (N, l) codes of each of A aliases, -1 beyond a SID's length; l may differ, L is the largest.
        level_sizes: Number of codes of each of the L levels, in every alias.
        share_codes: A code is the same in all aliases, and not one of its own in each.
        pieces: Pieces that the codes of a single alias stand for, if they do.

    Raises:
        ValueError: If aliases that share codes end at different levels: a SID could be the beginning of another one.

    Examples:
        >>> import numpy as np
        >>> from llmrec.sid.aliases import join_aliases
        >>> one, two = np.array([[0, 1], [1, 0]]), np.array([[1, 1], [0, 0]])
        >>> join_aliases(["red", "green"], [one, two], [2, 2], share_codes=False).all_codes.tolist()
        [[0, 2], [3, 3], [2, 0], [1, 1]]
    """
    count, num_levels = len(codes), len(level_sizes)
    if share_codes and count > 1 and any(each.shape[1] < num_levels or (each == EMPTY).any() for each in codes):
        raise ValueError(
            "The semantic IDs of the aliases end at different levels, so that one could be the beginning of another; "
            "use collision suffix_ordinal."
        )
    padded = [np.pad(each, ((0, 0), (0, num_levels - each.shape[1])), constant_values=EMPTY) for each in codes]
    factor = 1 if share_codes else count
    own = [each if share_codes else np.where(each == EMPTY, EMPTY, each * count + a) for a, each in enumerate(padded)]
    rows = np.tile(np.arange(len(item_ids)), count)
    return SidTable(item_ids, np.concatenate(own), rows, [size * factor for size in level_sizes], pieces=pieces)


def codes_of_alias(table: SidTable, alias: int, share_codes: bool) -> tuple[np.ndarray, list[int]]:
    """Look up the codes that `join_aliases` was given.

    Args:
        table: Table that it made, with items that were added since.
        alias: Number of the alias.
        share_codes: As it was given.

    Returns:
        (N, L) int64 codes of one alias, and the number of codes of each level.
    """
    tables = aliases_of(table)
    codes, count = tables[alias].codes(np.arange(table.num_items)), 1 if share_codes else len(tables)
    return np.where(codes == EMPTY, EMPTY, codes // count), [-(-size // count) for size in table.level_sizes]


def first_alias(table: SidTable, share_codes: bool) -> SidTable:
    """Table of the first alias, in the codes that `join_aliases` was given; the table itself without aliases.

    Args:
        table: Table that it made.
        share_codes: As it was given.
    """
    if len(aliases_of(table)) == 1:
        return table
    codes, level_sizes = codes_of_alias(table, 0, share_codes)
    return SidTable(table.item_ids, codes, level_sizes=level_sizes)


def refuse_aliases(table: SidTable, what: str) -> None:
    """Refuse a table with aliases where one semantic ID of each item is trained.

    Args:
        table: Semantic IDs.
        what: What trains them, as the beginning of a sentence.

    Raises:
        ValueError: If the table has aliases.
    """
    if len(aliases_of(table)) > 1:
        raise ValueError(
            f"{what} needs one semantic ID of each item, but each has {len(aliases_of(table))}, of which `llmrec sft` "
            "draws one for each sequence. Run `llmrec tokenize` with one alias or tree, and the stages after it again."
        )
