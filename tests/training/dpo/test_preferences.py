"""The preference file, its examples and batches, and the figures of its hardness."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.sid.table import EMPTY
from llmrec.training.dpo.negative_difficulty import difficulty
from llmrec.training.dpo.preference_file import read_preferences, write_preferences
from llmrec.training.dpo.preferences import PreferenceCollator, Preferences
from llmrec.training.preference.policy import Prompts

ROWS = [
    {"history": ["item-0", "item-3"], "target": "item-7", "negatives": ["item-8", "item-1"]},
    {"history": ["item-9"], "target": "item-2", "negatives": ["item-0"]},
]


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def preferences() -> Preferences:
    histories = [np.array([0, 3]), np.array([9])]
    prompts = Prompts(["u", "v"], histories, np.array([7, 2]), histories)
    sources, ranks = [["beam", "random"], ["beam"]], [np.array([2, -1]), np.array([5])]
    return Preferences(prompts, [np.array([8, 1]), np.array([0])], sources, ranks)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_file_of_the_user(tmp_path, catalog, sid_table, suffix):
    rows = [{**row, "oracle": [0.9] * len(row["negatives"])} for row in ROWS]
    found = read_preferences(write(tmp_path / f"file.{suffix}", rows), catalog, sid_table)
    assert [h.tolist() for h in found.prompts.histories] == [[0, 3], [9]]
    assert found.prompts.targets.tolist() == [7, 2]
    assert [n.tolist() for n in found.negatives] == [[8, 1], [0]]
    assert found.sources == [["file", "file"], ["file"]] and found.prompts.user_ids == ["0", "1"]
    assert [o.tolist() for o in found.oracle] == [[0.9, 0.9], [0.9]]


def test_what_is_written_is_read(tmp_path, catalog, sid_table, preferences):
    write_preferences(preferences, tmp_path / "preferences.parquet", catalog.item_ids)
    found = read_preferences(tmp_path / "preferences.parquet", catalog, sid_table)
    assert found.examples().to_list() == preferences.examples().to_list()
    assert (found.sources, found.prompts.user_ids) == (preferences.sources, ["u", "v"])
    assert [r.tolist() for r in found.ranks] == [[2, -1], [5]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "item-99"}, "1 item ids are not in .*first: .'item-99'"),
        ({"negatives": ["item-8", "no-such"]}, "first: .'no-such'"),
        ({"history": ["nobody"]}, "first: .'nobody'"),
        ({"negatives": ["item-8", "item-7"]}, r"the target, .* among the negatives \(1, first: \[0\]\)"),
        ({"target": "item-4", "negatives": ["item-5"]}, "an item with its semantic ID, among the negatives"),
        ({"negatives": []}, "no negatives"),
        ({"history": []}, "no history"),
        ({"oracle": [0.5]}, "another number of oracle than of negatives"),
        ({"oracle": [0.5, 1.5]}, r"an oracle outside \[0, 1\]"),
        ({"sources": ["beam"]}, "another number of sources"),
        ({"sources": ["x", None]}, "another number of sources"),
    ],
)
def test_rows_that_cannot_be_trained_on(tmp_path, catalog, sid_table, change, message):
    fitting = {"oracle": 0.5, "sources": "x"}  # of the other row too, as a column has one type
    more = {name: value for name, value in fitting.items() if name in change}
    good = [{**row, **{name: [value] * len(row["negatives"]) for name, value in more.items()}} for row in ROWS]
    path = write(tmp_path / "file.parquet", [{**good[0], **change}, good[1]])
    with pytest.raises(ValueError, match=message):
        read_preferences(path, catalog, sid_table)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("oracle", 0.5, "oracle is of type double, but lists numbers, one per negative"),
        ("oracle", ["a", "b"], "oracle is of type list<.*: string>, but lists numbers"),
        ("beam_ranks", [0.5, 1.5], "beam_ranks is of type list<.*: double>, but lists whole numbers"),
        ("sources", "ab", "sources is of type string, but lists strings"),
    ],
)
def test_columns_of_other_types(tmp_path, catalog, sid_table, column, value, message):
    path = write(tmp_path / "file.jsonl", [{**ROWS[0], column: value}])
    with pytest.raises(ValueError, match=message):
        read_preferences(path, catalog, sid_table)


def test_lists_of_a_fixed_size(tmp_path, catalog, sid_table):
    """As numpy and polars write arrays."""
    negatives = pa.array([["item-8", "item-1"], ["item-0", "item-4"]], pa.list_(pa.string(), 2))
    table = pa.Table.from_pylist(ROWS).set_column(2, "negatives", negatives)
    pq.write_table(table, tmp_path / "file.parquet")
    found = read_preferences(tmp_path / "file.parquet", catalog, sid_table)
    assert [rows.tolist() for rows in found.negatives] == [[8, 1], [0, 4]]


def test_files_that_are_none(tmp_path, catalog, sid_table):
    lacking = '{"history": ["item-0"], "chosen": "item-1"}'
    misshapen = '{"history": "item-0", "target": "item-1", "negatives": ["item-2"]}'
    cases = {
        "absent.parquet": (None, "does not exist"),
        "text.parquet": ("hello", "is not a parquet file"),
        "text.jsonl": ("hello", "is not a file of JSON lines"),
        "lacks.jsonl": (lacking, r"lacks the columns \['target', 'negatives'\]"),
        "shape.jsonl": (misshapen, "lists of item_ids"),
    }
    for name, (text, message) in cases.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_preferences(tmp_path / name, catalog, sid_table)


def test_a_batch_by_hand(sid_table, vocabulary, preferences):
    """Prompt of two tokens, histories cut to their last item, completions of three codes, the target's first."""
    encoder = SidHistoryEncoder(sid_table, vocabulary)
    unsure = dataclasses.replace(preferences, oracle=[np.array([0.75, 0.75]), np.array([0.75])])
    batch = PreferenceCollator([4, 5], encoder, 1, 0)(unsure.examples().to_list())
    tokens = [encoder.encode_history([row]).tolist() for row in range(12)]
    assert batch["input_ids"].tolist() == [[4, 5, *tokens[3]], [4, 5, *tokens[9]]]
    assert batch["attention_mask"].all()
    assert batch["completions"].tolist() == [[tokens[7], tokens[8], tokens[1]], [tokens[2], tokens[0], [EMPTY] * 3]]
    assert batch["smoothing"].tolist() == [[0.25, 0.25], [0.25, 0.0]]
    longer = PreferenceCollator([4, 5], encoder, 9, 0)(preferences.examples().to_list())
    assert longer["attention_mask"].sum(dim=1).tolist() == [8, 5] and longer["input_ids"][1, 5:].tolist() == [0, 0, 0]


def test_smoothing_of_an_oracle(preferences):
    """1 - P, at most a half: a pair that is more likely the other way round teaches nothing."""
    oracle = [np.array([1.0, 0.8]), np.array([0.1])]
    smoothed = Preferences(preferences.prompts, preferences.negatives, preferences.sources, preferences.ranks, oracle)
    np.testing.assert_allclose(smoothed.examples()["smoothing"][0], [0.0, 0.2])
    assert smoothed.examples()["smoothing"][1] == [0.5]


def test_difficulty_by_hand(sid_table, preferences):
    """7 is (2, 0, 0), 8 is (2, 0, 3), 1 is (0, 0, 1); 2 is (0, 1, 0), 0 is (0, 0, 0)."""
    figures = difficulty(preferences, sid_table, [np.array([-0.5, 3.0]), np.array([1.0])])
    assert figures == {
        "beam": {"negatives": 2, "shared_prefix": 1.5, "beam_rank": 3.5, "gap": 0.25, "above_target": 0.5},
        "random": {"negatives": 1, "shared_prefix": 0.0, "gap": 3.0, "above_target": 0.0},
    }


def test_whole_batches(preferences):
    assert len(preferences.whole_batches(2, 0)) == 2
    firsts = {preferences.take([0, 1, 0]).whole_batches(2, seed).prompts.user_ids[0] for seed in range(20)}
    assert firsts == {"u", "v"}, "what is left out is drawn"
    with pytest.raises(ValueError, match="There are 2 prompts to train on, fewer than batch_size 3; lower it"):
        preferences.whole_batches(3, 0)
