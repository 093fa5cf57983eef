"""The array trie against a dict trie built item by item, in every layout and however it came about."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmrec.decoding.trie import build as trie_build
from llmrec.decoding.trie.lookups import ROOT
from llmrec.decoding.trie.trie import SidTrie
from llmrec.sid.table import EMPTY, SidTable
from tests.support.decoding import assert_equals_dict_trie, owners, tables


@given(tables())
def test_equals_a_dict_trie(table):
    assert_equals_dict_trie(SidTrie(table), owners(table))


@given(tables(), st.data())
def test_a_subset_equals_a_dict_trie_of_the_subset(table, data):
    rows = data.draw(st.sets(st.integers(0, table.num_items - 1), min_size=1))
    others = sorted(set(range(table.num_items)) - rows)
    for trie in (SidTrie(table, sorted(rows)), SidTrie(table).with_items(sorted(rows)), SidTrie(table).remove(others)):
        assert_equals_dict_trie(trie, owners(table, rows))


@pytest.mark.parametrize("word_bits", [3, 6])
@given(table=tables(), data=st.data())
def test_codes_that_fill_several_words_equal_a_dict_trie(word_bits, table, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trie_build, "WORD_BITS", word_bits)  # one and two levels of these tables
        assert_equals_dict_trie(SidTrie(table), owners(table))
        check_append(table, data)


def test_codes_wider_than_63_bits_are_sorted():
    sizes = [2**30, 2**30, 2**30, 7]
    codes = random_codes(sizes, 50)
    codes[::2, :2] = codes[0, :2]
    trie = SidTrie.from_codes(codes, sizes)
    assert trie.codes_of(torch.arange(50)).tolist() == sorted(codes.tolist())
    assert trie.leaf_items.tolist() == np.lexsort(codes.T[::-1]).tolist()


@given(tables(), st.data())
def test_appended_items_equal_a_dict_trie_of_all(table, data):
    check_append(table, data)


def check_append(table, data):
    """Build with some of the SIDs, append the others."""
    is_new = np.array(data.draw(st.lists(st.booleans(), min_size=len(table.all_codes), max_size=len(table.all_codes))))
    codes, rows, sizes = table.all_codes, table.item_rows, table.level_sizes
    is_new[0] = False
    trie = SidTrie.from_codes(codes[~is_new], sizes, rows[~is_new])
    if is_new.any():
        trie = trie.append(codes[is_new], rows[is_new])
    assert_equals_dict_trie(trie, owners(table))


def random_codes(sizes, num_items, seed=0):
    return np.random.default_rng(seed).integers(0, sizes, (num_items, len(sizes)))


# level sizes, SIDs, dimensions of each level's codes (1 list, 2 bitmap), type of the last level's
# A bitmap takes fewer bytes than a list where nodes are full.
LAYOUTS = {
    "full levels": ([16, 16], np.array(list(product(range(16), repeat=2))), [2, 2], torch.uint8),
    "sparse levels": ([200, 256], random_codes([200, 256], 20), [1, 1], torch.uint8),
    "256 codes and an end": ([30, 256], [[0, EMPTY], [1, 0], [1, 255], [2, 7]], [1, 1], torch.int16),
    "two-byte codes": ([300, 32768], random_codes([300, 32768], 40), [2, 1], torch.int16),
    "four-byte codes": ([5, 32769], random_codes([5, 32769], 40), [2, 1], torch.int32),
    "a bitmap with an end": ([3, 9], [[0, EMPTY], *([1, code] for code in range(9)), [2, 0]], [2, 2], torch.uint8),
}


def as_table(codes, sizes):
    return SidTable([f"item-{row}" for row in range(len(codes))], np.asarray(codes), level_sizes=sizes)


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


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_equals_a_dict_trie(name):
    sizes, codes, dims, dtype = LAYOUTS[name]
    codes = np.asarray(codes)
    trie = SidTrie.from_codes(codes, sizes)
    assert [level.codes.dim() for level in trie._levels] == dims and trie._levels[-1].codes.dtype == dtype
    assert_equals_dict_trie(trie, owners(as_table(codes, sizes)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, torch.uint8, torch.int32])
def test_codes_of_any_integer_type_build_the_same_trie(dtype, sid_table):
    codes = sid_table.all_codes[::-1].copy()
    codes = torch.from_numpy(codes).to(dtype) if isinstance(dtype, torch.dtype) else codes.astype(dtype)
    assert_equals_dict_trie(SidTrie.from_codes(codes, [4, 4, 4], np.arange(12)[::-1].copy()), owners(sid_table))


def test_nodes_of_any_shape_are_looked_up(sid_table):
    trie = SidTrie(sid_table)
    nodes = torch.tensor([[0, -1, 1], [2, 3, -1]])
    for look_up in (trie.children, trie.allowed):
        assert torch.equal(look_up(nodes, 1), torch.stack([look_up(row, 1) for row in nodes]))
    assert torch.equal(trie.codes_of(nodes), torch.stack([trie.codes_of(row) for row in nodes]))
    assert [side.shape for side in trie.expand(nodes, 1)] == [(2, 3, trie.width(1))] * 2


def test_bytes_are_those_of_the_layout():
    # Level 0: 3 + 1 offsets of 4 bytes, bitmaps of 2 x 32 bytes. Level 1: 256 + 3 offsets, one code each and a last 0.
    codes = np.stack([np.arange(256), np.arange(256)], axis=1)
    trie = SidTrie.from_codes(codes, [256, 256])
    assert trie.num_bytes == (4 * 4 + 64) + (259 * 4 + 257)
    assert trie.owners.num_bytes == 256 * 4 and trie.leaf_starts is None


@pytest.mark.parametrize(
    ("codes", "rows", "message"),
    [
        (np.empty((0, 2), int), None, "at least one item"),
        ([[0, 1], [2, 0]], None, "row 1 has code 2 at level 0, which has 2 codes"),
        ([[0, 1], [0, -2]], None, "row 1 has code -2 at level 1"),
        ([[0, 1], [-1, -1]], None, "row 1 has code -1 at level 0"),
        ([[0, 1], [1, -1], [1, 1]], None, r"The SID \[1\] is also the beginning of another one"),
        ([[0, 1, 1]], None, "2 codes wide"),
        ([[0.0, 1.0]], None, "codes are float64"),
        ([[0, 1]], [0, 1], "1 SIDs were given for item rows of the shape"),
        ([[0, 1]], [-1], "must not be negative"),
        ([[0, 1]], [7], "item_rows go up to 7, but there are 5 items"),
    ],
)
def test_codes_that_make_no_trie_are_refused(codes, rows, message):
    with pytest.raises(ValueError, match=message):
        SidTrie.from_codes(np.asarray(codes), [2, 2], rows, num_items=5)


def test_a_code_after_the_end_of_a_sid_is_refused():
    with pytest.raises(ValueError, match="row 1 has a code at level 2 after its SID ended"):
        SidTrie.from_codes(np.array([[0, 0, 0], [1, -1, 1]]), [2, 2, 2])


def test_a_sid_that_begins_another_cannot_be_appended(sid_table):
    with pytest.raises(ValueError, match=r"The SID \[2, 0\] is also the beginning of another one"):
        SidTrie(sid_table).append([[2, 0, EMPTY]], [12])
    with pytest.raises(ValueError, match=r"The SID \[0\] is also the beginning of another one"):
        SidTrie.from_codes(np.array([[0, EMPTY]]), [2, 2]).append([[0, 1]], [1])


def test_an_appended_sid_that_exists_is_shared_in_item_order(sid_table):
    trie = SidTrie.from_codes(sid_table.all_codes[1:], [4, 4, 4], np.arange(1, 12)).append(np.array([[1, 0, 0]]), [0])
    assert trie.items(3).tolist() == [0, 4, 5]


def test_nothing_is_left_of_a_trie_without_items(sid_table):
    trie = SidTrie(sid_table)
    with pytest.raises(ValueError, match="at least one item"):
        trie.remove(np.arange(12))
    with pytest.raises(ValueError, match=r"item rows must lie in \[0, 12\); found 3 … 12"):
        trie.with_items([3, 12])


@pytest.mark.gpu
def test_on_a_gpu_the_trie_is_the_same_and_its_look_ups_can_be_captured():
    sizes, codes = [16, 16, 300], random_codes([16, 16, 300], 2000)
    codes[::5, 2] = EMPTY
    codes[::5, 1] = 15
    codes = codes[(codes[:, 1] < 15) | (codes[:, 2] == EMPTY)]
    trie, on_gpu = SidTrie.from_codes(codes, sizes), SidTrie.from_codes(torch.from_numpy(codes).cuda(), sizes)
    assert on_gpu.leaf_items.tolist() == trie.leaf_items.tolist()
    for depth in range(3):
        nodes = torch.arange(-1, trie._levels[depth].num_nodes)
        inputs, graph = nodes.cuda(), torch.cuda.CUDAGraph()

        def look_up(trie, nodes, depth=depth):
            found = [look(nodes, depth) for look in (trie.children, trie.allowed, trie.is_leaf)]
            return [*found, *trie.expand(nodes, depth), *trie.leaf_range(nodes, depth)]

        look_up(on_gpu, inputs)
        with torch.cuda.graph(graph):
            found = look_up(on_gpu, inputs)
        graph.replay()
        for one, other in zip(found, look_up(trie, nodes), strict=True):
            assert torch.equal(one.cpu(), other)
