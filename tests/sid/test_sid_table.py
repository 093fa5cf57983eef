"""SidTable: items and SIDs map both ways, no SID is a prefix of another, and the hash follows the content."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.sid.table import EMPTY, SidTable

PROPERTY = settings(derandomize=True, max_examples=25, deadline=None)


@st.composite
def ragged_codes(draw) -> np.ndarray:
    """SIDs of one to three codes out of three, filled with -1."""
    sids = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=12))
    return np.array([sid + [EMPTY] * (3 - len(sid)) for sid in sids])


def ids(count: int) -> list[str]:
    return [f"i{row}" for row in range(count)]


def test_codes_and_rows_of_a_table_with_a_collision(sid_table):
    assert sid_table.codes([4, 0]).tolist() == [[1, 0, 0], [0, 0, 0]]
    assert sid_table.rows((1, 0, 0)).tolist() == [4, 5]
    assert sid_table.rows((3, 0, 0)).tolist() == []
    assert sid_table.bucket_sizes.tolist() == [1, 1, 1, 1, 2, 2, 1, 1, 1, 1, 1, 1]


@PROPERTY
@given(codes=ragged_codes())
def test_no_sid_is_a_proper_prefix_and_none_is_lost(codes):
    table = SidTable(ids(len(codes)), codes, level_sizes=[3, 3, 3])
    sids = [tuple(row[:length]) for row, length in zip(table.all_codes.tolist(), table.lengths, strict=True)]
    assert not any(a != b and b[: len(a)] == a for a in sids for b in sids)
    assert (table.all_codes < table.level_sizes).all()
    for row, (sid, given_codes) in enumerate(zip(sids, codes.tolist(), strict=True)):
        assert row in table.rows(sid)
        assert list(sid)[: given_codes.index(EMPTY) if EMPTY in given_codes else 3] == [
            c for c in given_codes if c >= 0
        ]
    shared_before = len(np.unique(codes, axis=0))
    assert len(set(sids)) == shared_before


def test_terminal_code_goes_to_the_shorter_sid_only():
    table = SidTable(ids(3), np.array([[0, EMPTY], [0, 1], [1, EMPTY]]), level_sizes=[2, 2])
    assert table.all_codes.tolist() == [[0, 2], [0, 1], [1, EMPTY]]
    assert table.level_sizes == [2, 3]


@PROPERTY
@given(codes=ragged_codes())
def test_save_and_load_keep_everything(tmp_path_factory, codes):
    directory = tmp_path_factory.mktemp("sid")
    table = SidTable(ids(len(codes)), codes, level_sizes=[3, 4, 5])
    table.save(directory)
    loaded = SidTable.load(directory)
    assert loaded.item_ids == table.item_ids and loaded.level_sizes == table.level_sizes
    np.testing.assert_array_equal(loaded.all_codes, table.all_codes)
    assert loaded.sha256 == table.sha256


def test_several_sids_of_an_item(tmp_path):
    table = SidTable(["a", "b"], np.array([[2, 2], [0, 0], [1, 1]]), item_rows=np.array([1, 0, 1]))
    assert table.codes([0, 1]).tolist() == [[0, 0], [2, 2]]  # the first given
    assert table.rows((1, 1)).tolist() == [1] and table.rows((2, 2)).tolist() == [1]
    table.save(tmp_path)
    assert pq.read_table(tmp_path / "sid_table.parquet")["alias"].to_pylist() == [0, 0, 1]
    assert SidTable.load(tmp_path).sha256 == table.sha256


def test_hash_changes_with_items_codes_and_sizes():
    codes = np.array([[0, 0], [0, 1]])
    tables = [
        SidTable(["a", "b"], codes, level_sizes=[2, 2]),
        SidTable(["b", "a"], codes, level_sizes=[2, 2]),
        SidTable(["a", "b"], codes[::-1], level_sizes=[2, 2]),
        SidTable(["a", "b"], codes, level_sizes=[2, 3]),
    ]
    assert len({table.sha256 for table in tables}) == 4
    assert SidTable(["a", "b"], codes.astype(np.int32), level_sizes=[2, 2]).sha256 == tables[0].sha256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"codes": [[0], [1], [2]]}, "3 SIDs were given for 2 item rows|item rows must lie"),
        ({"codes": [[0], [4]], "level_sizes": [4]}, "item 'i1' has code 4 at level 0, which has 4 codes"),
        ({"codes": [[0, 1], [-1, 1]]}, "item 'i1' has the codes .* -1 may only end a SID"),
        ({"codes": [[0, -2], [0, 1]]}, "item 'i0' has the codes .* -1 may only end a SID"),
        ({"codes": [[0], [1]], "item_rows": [0, 0]}, "1 items have no SID; first: 'i1'"),
        ({"codes": [[0], [1], [2]], "item_rows": [0, 1, 2]}, r"item rows must lie in \[0, 2\)"),
    ],
)
def test_wrong_tables_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SidTable(ids(2), **{key: np.array(value) for key, value in arguments.items()})


def test_repeated_item_ids_are_refused():
    with pytest.raises(ValueError, match="must be unique"):
        SidTable(["a", "a"], np.array([[0], [1]]))


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`llmrec tokenize` writes it"):
        SidTable.load(tmp_path)
    (tmp_path / "sid_table.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="is not a parquet file"):
        SidTable.load(tmp_path)
    pq.write_table(pa.table({"item_id": ["a"]}), tmp_path / "sid_table.parquet")
    with pytest.raises(ValueError, match="needs the columns item_id and code_0"):
        SidTable.load(tmp_path)


def test_items_are_found_by_their_ids(sid_table):
    found = sid_table.find_items({"history": ["item-3", "item-0", "item-3"], "allow": []})
    assert [rows.tolist() for rows in found] == [[3, 0, 3], []] and found[1].dtype == np.int64


def test_every_list_that_names_no_items_is_refused_at_once(sid_table):
    with pytest.raises(ValueError) as caught:
        sid_table.find_items({"one": ["item-1", "x", "y"], "two": ["item-2"], "three": "item-3", "four": None})
    assert str(caught.value) == (
        "one names items that this checkpoint does not know: ['x', 'y']; three is 'item-3'; a list of item_ids is "
        "needed; four is None; a list of item_ids is needed. Its catalogue has 12 items, such as 'item-0'."
    )
    with pytest.raises(ValueError, match=r"user 9 names .*; 2 more such lists\. Its"):
        sid_table.find_items({f"user {user}": ["x"] for user in range(12)})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": ["a"], "code_0": [0], "code_2": [0]}, "needs the columns item_id and code_0 …, once"),
        ({"item_id": [5], "code_0": [0]}, "item_ids that are no text"),
        ({"item_id": pa.array([None], pa.string()), "code_0": [0]}, "item_ids that are no text, or empty"),
    ],
)
def test_a_table_with_other_columns_is_refused(columns, message, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "sid_table.parquet")
    with pytest.raises(ValueError, match=message):
        SidTable.load(tmp_path)
