"""A trie as a file: the same after loading, mapped instead of read, and refused if it is damaged."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from safetensors import safe_open
from safetensors.torch import save_file

from llmrec.decoding.trie import file as trie_file
from llmrec.decoding.trie.trie import SidTrie
from llmrec.sid.table import SidTable
from tests.support.decoding import (
    assert_equals_dict_trie,
    owners,
    tables,
)


@given(tables())
def test_a_saved_trie_is_the_same(table):
    with TemporaryDirectory() as directory:
        path = Path(directory) / "trie.safetensors"
        SidTrie(table).save(path)
        trie = SidTrie.load(path)
        assert_equals_dict_trie(trie, owners(table))
        assert trie.num_items == table.num_items
        trie.check_table(table)
        written = path.read_bytes()
        trie.save(path)  # over the file that it is mapped from
        assert path.read_bytes() == written
        assert_equals_dict_trie(trie, owners(table))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_a_loaded_trie_is_mapped_not_read(sid_table, tmp_path):
    path = tmp_path / "trie.safetensors"
    SidTrie(sid_table).save(path)
    trie = SidTrie.load(path)
    mapped = [
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line
    ]
    arrays = [array for level in trie._levels for array in (level.first, level.codes)]
    for address in [array.data_ptr() for array in arrays] + [trie.leaf_items.ctypes.data]:
        assert any(int(begin, 16) <= address < int(end, 16) for begin, end in mapped)


def damage(path, change):
    """Rewrite a trie's file with other arrays or another header."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[trie_file.KEY])
        arrays = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(arrays, header)
    save_file(arrays, path, {trie_file.KEY: json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays, header: header.update(version=2), "version 2"),
        (lambda arrays, header: header.clear(), "format None"),
        (lambda arrays, header: header.pop("widths"), "damaged: 'widths'"),
        (lambda arrays, header: arrays.pop("codes_1"), "codes_1 is missing"),
        (lambda arrays, header: arrays.pop("first_0"), "first_0 is missing"),
        (lambda arrays, header: arrays.pop("leaf_items"), "leaf_items is missing"),
        (lambda arrays, header: arrays.update(leaf_items=arrays["leaf_items"][1:]), r"leaf_items is .*\(11,\)"),
        (lambda arrays, header: arrays.update(first_1=arrays["first_1"].double()), "first_1 is torch.float64"),
    ],
)
def test_a_damaged_file_is_refused(sid_table, tmp_path, change, message):
    path = tmp_path / "trie.safetensors"
    SidTrie(sid_table).save(path)
    damage(path, change)
    with pytest.raises(ValueError, match=message):
        SidTrie.load(path)


def test_a_file_that_is_no_trie_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist; SidTrie\.save writes it"):
        SidTrie.load(tmp_path / "absent")
    (tmp_path / "text").write_text("no trie")
    with pytest.raises(ValueError, match="is not a trie file"):
        SidTrie.load(tmp_path / "text")
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="has format None"):
        SidTrie.load(tmp_path / "model.safetensors")


def test_a_trie_knows_its_table(sid_table):
    trie, other = SidTrie(sid_table), SidTable(["a"], [[0, 1]])
    for part in (trie, trie.with_items([1, 2]), SidTrie(sid_table, [3]), trie.to("cpu")):
        part.check_table(sid_table)
        assert part.table_sha256 == sid_table.sha256
    with pytest.raises(ValueError, match="from another SidTable"):
        trie.check_table(other)
    appended = trie.append([[3, 3, 0]], [12])
    assert appended.table_sha256 is None
    with pytest.raises(ValueError, match="from bare codes"):
        appended.check_table(sid_table)
