"""The array trie against a dict trie built item by item, and filters against a loop over leaves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.sid import EMPTY, SidTable
from llmrec.trie import ROOT, LeafFilter, SidTrie

settings.register_profile("llmrec", derandomize=True, max_examples=25, deadline=None)
settings.load_profile("llmrec")


@st.composite
def tables(draw, max_items=14):
    """Tables of every shape: skewed, full, chains, one item, shared SIDs, SIDs of different lengths, aliases."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    sid = st.tuples(*(st.integers(0, size - 1) for size in sizes), st.integers(1, len(sizes)))
    drawn = draw(st.lists(sid, min_size=1, max_size=max_items))
    fixed_length = draw(st.booleans())
    codes = np.array([row[:-1] for row in drawn])
    if not fixed_length:
        codes = np.where(np.arange(len(sizes)) < np.array([row[-1] for row in drawn])[:, None], codes, EMPTY)
    num_items = draw(st.integers(1, len(drawn)))  # SIDs beyond the first of each item are aliases
    rows = np.concatenate([np.arange(num_items), draw(_rows(len(drawn) - num_items, num_items))])
    return SidTable([f"item-{i}" for i in range(num_items)], codes, rows, level_sizes=sizes)


def _rows(count, num_items):
    return st.lists(st.integers(0, num_items - 1), min_size=count, max_size=count).map(lambda r: np.array(r, np.int64))


def owners(table, rows=None):
    """Complete SID -> item rows, from the table's definition."""
    found = {}
    for codes, row in zip(table.all_codes.tolist(), table.item_rows.tolist(), strict=True):
        if rows is None or row in rows:
            found.setdefault(tuple(c for c in codes if c != EMPTY), []).append(row)
    return found


def walk(trie, prefix):
    """Node that a prefix leads to."""
    node = torch.tensor([ROOT])
    for level, code in enumerate(prefix):
        node = trie.children(node, level)[:, code]
    return node


def assert_equals_dict_trie(trie, sids):
    assert [tuple(c for c in row if c != EMPTY) for row in trie.codes_UL.tolist()] == sorted(sids)
    for rank, sid in enumerate(sorted(sids)):
        assert trie.items(rank).tolist() == sids[sid]
    prefixes = {sid[:depth] for sid in sids for depth in range(len(sid) + 1)}
    for prefix in prefixes:
        depth, node = len(prefix), walk(trie, prefix)
        below = [rank for rank, sid in enumerate(sorted(sids)) if sid[:depth] == prefix]
        assert [int(x) for x in trie.leaf_range(node, depth)] == [below[0], below[-1] + 1]
        assert bool(trie.is_leaf(node, depth)) == (prefix in sids)
        if depth < trie.num_levels:
            expected = [(*prefix, code) in prefixes for code in range(trie.level_sizes[depth])]
            assert trie.allowed(node, depth).tolist() == [expected]


@given(tables())
def test_equals_a_dict_trie(table):
    assert_equals_dict_trie(SidTrie(table), owners(table))


@given(tables(), st.data())
def test_a_subset_equals_a_dict_trie_of_the_subset(table, data):
    rows = data.draw(st.sets(st.integers(0, table.num_items - 1), min_size=1))
    assert_equals_dict_trie(SidTrie(table, sorted(rows)), owners(table, rows))


def test_children_of_the_shared_catalogue(sid_table):
    trie = SidTrie(sid_table)
    # Root has the codes 0 1 2 3; below 0 are 0 1 3, below 2 only 0.
    assert trie.children(torch.tensor([ROOT]), 0).tolist() == [[0, 1, 2, 3]]
    assert trie.children(torch.tensor([0, 2]), 1).tolist() == [[0, 1, -1, 2], [5, -1, -1, -1]]
    assert trie.num_leaves == 11  # 12 items, of which 4 and 5 share a SID
    assert trie.items(4).tolist() == [4, 5]


def test_outside_the_catalogue_nothing_is_allowed(sid_table):
    trie, outside = SidTrie(sid_table), torch.tensor([[-1], [-1]])
    for level in range(3):
        assert not trie.allowed(outside, level).any()
        assert not trie.is_leaf(outside, level).any()
        assert [x.tolist() for x in trie.leaf_range(outside, level)] == [[[0], [0]], [[0], [0]]]


def test_levels_below_the_longest_sid_are_empty():
    table = SidTable(["short", "long"], [[0, EMPTY, EMPTY], [1, 0, 1]], level_sizes=[2, 2, 2])
    trie = SidTrie(table, rows=[0])
    leaf = trie.children(torch.tensor([ROOT]), 0)[:, 0]
    assert trie.is_leaf(leaf, 1).all()
    assert trie.children(leaf, 1).tolist() == [[-1, -1]]
    assert trie.children(torch.tensor([-1]), 2).tolist() == [[-1, -1]]
    assert not trie.is_leaf(torch.tensor([-1]), 3).any()


def test_a_level_that_does_not_exist_is_refused(sid_table):
    with pytest.raises(ValueError, match=r"level 3 is not in \[0, 3\)"):
        SidTrie(sid_table).children(torch.tensor([ROOT]), 3)


def test_a_trie_without_items_is_refused(sid_table):
    with pytest.raises(ValueError, match="at least one item"):
        SidTrie(sid_table, rows=[])


def test_a_shared_sid_is_left_out_only_with_all_its_items(sid_table):
    trie = SidTrie(sid_table)  # leaf 4 belongs to the items 4 and 5
    assert trie.leaves_of(np.array([4])).tolist() == []
    assert trie.leaves_of(np.array([4, 5, 0])).tolist() == [0, 4]
    assert trie.leaves_with(np.array([5])).tolist() == [4]


def test_items_outside_a_subset_are_ignored_by_filters(sid_table):
    trie = SidTrie(sid_table, rows=[4, 6])
    assert trie.leaves_of(np.array([4, 11])).tolist() == [0]  # item 5 is not in the trie, so 4 owns the leaf alone
    assert trie.leaves_with(np.array([5, 6])).tolist() == [1]


@given(tables(), st.data())
def test_a_filter_permits_what_a_loop_over_leaves_permits(table, data):
    trie, num_items = SidTrie(table), table.num_items
    some = st.sets(st.integers(0, num_items - 1)).map(lambda rows: np.array(sorted(rows), np.int64))
    exclude = data.draw(st.none() | st.lists(some, min_size=3, max_size=3))
    allow = data.draw(st.lists(st.none() | some, min_size=3, max_size=3))
    ranges = [(a, b) for a in range(trie.num_leaves + 1) for b in range(a, trie.num_leaves + 1)]
    first, end = (torch.tensor(side).expand(3, -1) for side in zip(*ranges, strict=True))
    permitted = LeafFilter(trie, exclude, allow).permits(first, end)
    for row in range(3):
        barred = set() if exclude is None else set(exclude[row].tolist())
        wanted = set(range(num_items)) if allow[row] is None else set(allow[row].tolist())
        legal = [bool(set(trie.items(rank).tolist()) & (wanted - barred)) for rank in range(trie.num_leaves)]
        assert permitted[row].tolist() == [any(legal[a:b]) for a, b in ranges]


def test_filters_of_no_or_different_batches_are_refused(sid_table):
    trie = SidTrie(sid_table)
    with pytest.raises(ValueError, match="needs exclude or allow"):
        LeafFilter(trie)
    with pytest.raises(ValueError, match="exclude has 1 rows, allow has 2"):
        LeafFilter(trie, [np.array([0])], [None, None])
