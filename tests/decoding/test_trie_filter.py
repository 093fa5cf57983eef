"""Filters against a loop over leaves, in both forms of an allow-list, and as inputs of a graph."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmrec.decoding.trie import filter as leaf_filter_module
from llmrec.decoding.trie.allow_list import AllowList, resolve_allow_lists
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.leaf_mask import SHORT, UNRESTRICTED, LeafMask
from llmrec.decoding.trie.trie import SidTrie
from tests.support.decoding import tables


def assert_permits(trie: SidTrie, mask: LeafMask, exclude, allow):
    """Every range of leaves is permitted where a loop over its leaves finds an item that is wanted and not barred."""
    batch_size = len(exclude or allow)
    ranges = [(a, b) for a in range(trie.num_leaves + 1) for b in range(a, trie.num_leaves + 1)]
    first, end = (torch.tensor(side).expand(batch_size, -1) for side in zip(*ranges, strict=True))
    permitted = mask.permits(first, end)
    for row in range(batch_size):
        barred = set(exclude[row]) if exclude else set()
        wanted = set(range(trie.num_items)) if allow is None or allow[row] is None else set(allow[row])
        legal = [bool(set(trie.items(rank).tolist()) & (wanted - barred)) for rank in range(trie.num_leaves)]
        assert permitted[row].tolist() == [any(legal[a:b]) for a, b in ranges]
    shaped = [side.reshape(batch_size, -1, 1) for side in (first, end)]
    assert torch.equal(mask.permits(*shaped).flatten(1), permitted)


@pytest.mark.parametrize("counted_from", [0, 2, 100])
@given(table=tables(), data=st.data())
def test_a_filter_permits_what_a_loop_over_leaves_permits(counted_from, table, data):
    trie = SidTrie(table)
    some = st.lists(st.integers(0, table.num_items - 1)).map(lambda rows: np.array(rows, np.int64))
    exclude = data.draw(st.none() | st.lists(some, min_size=4, max_size=4))
    shared = data.draw(some)
    allow = data.draw(st.lists(st.none() | st.just(shared) | some, min_size=4, max_size=4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaf_filter_module, "COUNTED_FROM", counted_from)  # all lists counted, some of them, none
        mask = LeafFilter(trie, exclude, allow).mask
    assert_permits(trie, mask, exclude, allow)
    rows = [3, 0, 1, 1, 2]
    rounded = mask.rounded(torch.tensor(rows))
    assert rounded.barred.shape == (5, 16) and rounded.tensors().keys() == mask.tensors().keys()
    again = mask.with_tensors(list(rounded.tensors().values()))
    for other in (rounded, again):
        assert_permits(trie, other, *(lists and [lists[row] for row in rows] for lists in (exclude, allow)))


def test_an_exclusion_counts_only_against_what_is_wanted(sid_table):
    # Items 4 and 5 share leaf 4. Excluding 4 leaves 5, unless 4 alone is wanted.
    trie = SidTrie(sid_table)
    leaf_filter = LeafFilter(trie, exclude=[[4]] * 3, allow=[[4], [4, 5], None])
    first = torch.full((3, 1), 4)
    assert leaf_filter.permits(first, first + 1).tolist() == [[False], [True], [True]]


def test_a_list_shared_by_rows_is_counted_once(sid_table, monkeypatch):
    monkeypatch.setattr(leaf_filter_module, "COUNTED_FROM", 3)
    stock, category = np.array([0, 4, 5, 6]), np.array([1, 2])
    leaf_filter = LeafFilter(SidTrie(sid_table), allow=[stock, category, None, stock])
    # Leaves of the stock: 0, 4 (both of its items) and 5.
    mask = leaf_filter.mask
    assert mask.counts.tolist() == [[0, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3, 3]]
    assert mask.list_of_row.tolist() == [0, SHORT, UNRESTRICTED, 0]
    assert mask.allowed.tolist() == [[11, 11], [1, 2], [11, 11], [11, 11]]
    assert mask.barred.shape == (4, 0)


def test_an_allow_list_is_resolved_once_for_its_rows_and_kept_for_other_batches(sid_table, monkeypatch):
    trie, made = SidTrie(sid_table), []
    monkeypatch.setattr(
        AllowList, "__init__", lambda self, *given, init=AllowList.__init__: made.append(init(self, *given))
    )
    stock = np.array([0, 4, 5, 6])
    lists = resolve_allow_lists(trie, [stock, None, stock])
    assert len(made) == 1 and lists[0] is lists[2] and lists[1] is None
    assert_permits(trie, LeafFilter(trie, None, lists).mask, None, [stock, None, stock])
    assert resolve_allow_lists(trie, [None, lists[0]]) == [None, lists[0]] and len(made) == 1
    assert [item in lists[0] for item in range(8)] == [True, False, False, False, True, True, True, False]


def test_items_outside_the_trie_are_ignored(sid_table):
    trie = SidTrie(sid_table, rows=[4, 6])  # leaf 0 is item 4's, without item 5
    assert LeafFilter(trie, [[4, 11], [5]]).mask.barred.tolist() == [[0], [2]]
    assert LeafFilter(trie, allow=[[5, 6]]).mask.allowed.tolist() == [[1]]


def test_tensors_may_be_put_in_place_of_others(sid_table):
    trie = SidTrie(sid_table)
    one, other = LeafFilter(trie, [[0], [1]], [[1, 2], None]).mask, LeafFilter(trie, [[3], [0]], [None, [0, 4]]).mask
    assert {name: tensor.shape for name, tensor in one.tensors().items()} == {
        "barred": (2, 1), "allowed": (2, 2), "list_of_row": (2,)
    }  # fmt: skip
    tensors = [tensor.clone() for tensor in one.tensors().values()]
    static = one.with_tensors(tensors)
    for own, new in zip(tensors, other.tensors().values(), strict=True):
        own.copy_(new)
    assert_permits(trie, static, [[3], [0]], [None, [0, 4]])
    assert_permits(trie, one, [[0], [1]], [[1, 2], None])
    with pytest.raises(ValueError, match="shorter"):
        one.with_tensors(tensors[:2])


def test_filters_of_no_or_different_batches_are_refused(sid_table):
    trie = SidTrie(sid_table)
    with pytest.raises(ValueError, match="needs exclude or allow"):
        LeafFilter(trie)
    with pytest.raises(ValueError, match="exclude has 1 lists, allow has 2"):
        LeafFilter(trie, [np.array([0])], [None, None])


def test_a_filter_of_another_trie_or_batch_is_refused(sid_table):
    trie = SidTrie(sid_table)
    leaf_filter = LeafFilter(trie, [[0], [1]])
    leaf_filter.check(trie, 2)
    with pytest.raises(ValueError, match="of another trie"):
        leaf_filter.check(SidTrie(sid_table), 2)
    with pytest.raises(ValueError, match="for 2 prompts, but there are 3"):
        leaf_filter.check(trie, 3)


def test_rows_that_do_not_exist_or_fit_are_refused(sid_table):
    trie = SidTrie(sid_table)
    with pytest.raises(ValueError, match=r"must lie in \[0, 12\); found -1 … 3"):
        LeafFilter(trie, [[3], [-1]])
