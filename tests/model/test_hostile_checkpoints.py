"""Checkpoints that were made to harm, or were changed after they were saved: one line, before anything is built."""

from __future__ import annotations

import json
import shutil
import struct
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llmrec.model.bind import bind
from llmrec.model.checkpoint import FILE, SidConfig
from llmrec.recommender import Recommender
from llmrec.runtime.manifest import MANIFEST
from llmrec.sid.table import FILE as TABLE
from llmrec.sid.table import SidTable

SECONDS = 3.0  # of CPU time, far more than a refusal takes


@pytest.fixture(scope="module")
def saved(tuned, tmp_path_factory):
    """What `save_pretrained` writes: a checkpoint without a manifest."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoint"
    Recommender.from_pretrained(tuned, device="cpu").save_pretrained(directory)
    assert not (directory / MANIFEST).exists()
    return directory


@pytest.fixture
def checkpoint(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoint")


@pytest.fixture
def unbound(checkpoint):
    """As an earlier version wrote it, whose llmrec.json binds nothing."""
    return edit(checkpoint / FILE, lambda values: values.pop("binding")).parent


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return path


def refusal(directory) -> str:
    """The one line with which a directory is refused, in a short time."""
    started = time.process_time()
    with pytest.raises(ValueError) as error:
        Recommender.from_pretrained(directory, device="cpu")
    assert time.process_time() - started < SECONDS and type(error.value).__module__ in ("builtins", "llmrec.views")
    message = str(error.value)
    assert "\n" not in message and len(message) < 1500
    return message


# Fault 27: changed after it was saved


def drop(name):
    return lambda directory: (directory / name).unlink()


def flip(name, place):
    def change(directory):
        content = bytearray((directory / name).read_bytes())
        content[place] ^= 1
        (directory / name).write_bytes(content)

    return change


def other_weights(directory):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].flip(0).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


def other_config(directory):
    edit(directory / "config.json", lambda values: values.update(rms_norm_eps=0.1))


def another_bos(directory):
    edit(directory / "tokenizer_config.json", lambda values: values.update(add_bos_token=True))


def longer_history(directory):
    edit(directory / FILE, lambda values: values.update(max_history=3))


CHANGES = {
    "no tokenizer_config.json": (drop("tokenizer_config.json"), "tokenizer_config.json is missing"),
    "no generation_config.json": (drop("generation_config.json"), "generation_config.json is missing"),
    "other weights of the same shape": (other_weights, "model.safetensors was changed"),
    "one flipped bit of the weights": (flip("model.safetensors", -1), "model.safetensors was changed"),
    "another config of the same shape": (other_config, "config.json was changed"),
    "other tokenizer options": (another_bos, "tokenizer_config.json was changed"),
    "an adapter beside the weights": (
        lambda directory: (directory / "adapter_config.json").write_text("{}"), "adapter_config.json was added",
    ),
    "a shard beside the weights": (
        lambda directory: shutil.copy(directory / "model.safetensors", directory / "model-2.safetensors"),
        "model-2.safetensors was added",
    ),
    "another history": (longer_history, "llmrec.json was changed"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_checkpoint_without_a_manifest_is_refused(checkpoint, name):
    change, problem = CHANGES[name]
    Recommender.from_pretrained(checkpoint, device="cpu")
    change(checkpoint)
    message = refusal(checkpoint)
    assert message.startswith(f"'{checkpoint}' is not as it was saved: {problem}. Restore the files, or,")
    assert f"bind('{checkpoint}')" in message


def test_a_model_trained_further_by_plain_transformers_goes_on_after_bind(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with np.errstate(all="ignore"):
        model.get_input_embeddings().weight.data *= 1.01
    model.save_pretrained(checkpoint)
    assert "model.safetensors was changed" in refusal(checkpoint)
    bind(checkpoint)
    items, _ = Recommender.from_pretrained(checkpoint, device="cpu").recommend([["item-1"]], k=3)
    assert len(items[0]) == 3


def test_bind_is_what_saving_does(checkpoint, unbound, saved):
    bind(unbound)
    assert json.loads((unbound / FILE).read_text()) == json.loads((saved / FILE).read_text())


def test_a_checkpoint_of_an_earlier_version_is_read(unbound):
    assert len(Recommender.from_pretrained(unbound, device="cpu").recommend([["item-1"]], k=3)[0][0]) == 3


def test_a_library_that_encodes_the_instruction_otherwise_is_noticed(checkpoint, monkeypatch):
    from llmrec.model.prompts import Prompt

    right = Prompt.prefix
    monkeypatch.setattr(Prompt, "prefix", lambda self, tokenizer: [2, *right(self, tokenizer)])
    assert "encodes the instruction as [2, " in refusal(checkpoint)


# Fault 34: made to harm


def vocabulary(**changes):
    return lambda directory: edit(directory / FILE, lambda values: values["vocabulary"].update(changes))


def many_items(directory):
    vocabulary(items={"start": 43, "num_items": 10**9, "template": "<|item_{row}|>"})(directory)
    edit(directory / FILE, lambda values: values.update(mixture_weight=0.5))


def nested(name):
    return lambda directory: (directory / name).write_text("[" * 200_000 + "]" * 200_000)


def config(**changes):
    return lambda directory: edit(directory / "config.json", lambda values: values.update(changes))


def table_of(**columns):
    def change(directory):
        data = {"item_id": [f"item-{row}" for row in range(12)], "code_0": list(range(12)), **columns}
        pq.write_table(pa.table(data), directory / TABLE)

    return change


def parquet_bomb(directory):
    """40 GiB of cells in a few kilobytes."""
    ids = pa.array(["item"]).dictionary_encode().take(pa.array(np.zeros(2**20, np.int32)))
    part = pa.table({"item_id": ids, "code_0": np.zeros(2**20, np.int64)})
    with pq.ParquetWriter(directory / TABLE, part.schema, compression="zstd") as writer:
        for _ in range(200):
            writer.write_table(part)


def header_of(size):
    def change(directory):
        (directory / "model.safetensors").write_bytes(struct.pack("<Q", size) + b'{"a":1}')

    return change


HOSTILE = {
    "blocks of 10^7 tokens": (vocabulary(block_sizes=[10**7] * 3, starts=[30, 30 + 10**7, 30 + 2 * 10**7]), "tokens"),
    "blocks of 10^30 tokens": (vocabulary(block_sizes=[10**30] * 3), "integers from 0 to"),
    "blocks that overlap": (vocabulary(starts=[30, 31, 32]), "next to one another"),
    "a negative block": (vocabulary(block_sizes=[4, -4, 4]), "integers from 0 to"),
    "a level without a code": (vocabulary(level_sizes=[4, 0, 4]), "each level needs a code"),
    "a thousand levels": (vocabulary(level_sizes=[1] * 1000, starts=list(range(30, 1030)), block_sizes=[1] * 1000),
                          "of 1 to 64 levels"),
    "numbers that are texts": (vocabulary(level_sizes=["4", "4", "4"]), "cannot be read"),
    "an attribute in the template": (vocabulary(template="<{letter}_{code.__class__}>"), "nothing else in braces"),
    "an index in the template": (vocabulary(template="<{letter}_{code[0]}>"), "nothing else in braces"),
    "a width in the template": (vocabulary(template="<{letter}_{code:>1000000000}>"), "nothing else in braces"),
    "a template that is no text": (vocabulary(template=7), "no text"),
    "an attribute in the template of items": (
        vocabulary(items={"start": 43, "num_items": 12, "template": "{row.__init__.__globals__}"}), "name {row} once",
    ),
    "10^9 items": (many_items, "has 12 items"),
    "nested llmrec.json": (nested(FILE), "nested too deeply"),
    "nested config.json": (nested("config.json"), "nested too deeply"),
    "nested tokenizer_config.json": (nested("tokenizer_config.json"), "cannot be loaded by AutoTokenizer"),
    "nested tokenizer.json": (nested("tokenizer.json"), "cannot be loaded by AutoTokenizer"),
    "tokenizer.json of another form": (
        lambda directory: (directory / "tokenizer.json").write_text('{"model": 7}'),
        "cannot be loaded by AutoTokenizer",
    ),
    "a wide model": (config(hidden_size=2**24), "bytes of weights are too few"),
    "a deep model": (config(num_hidden_layers=10**9), "bytes of weights are too few"),
    "a large vocabulary": (config(vocab_size=10**12), "bytes of weights are too few"),
    "a code of 2^62": (table_of(code_0=[2**62, *range(11)]), f"has the code {2**62}"),
    "a null id": (table_of(item_id=[None, *(f"item-{row}" for row in range(11))]), "no text, or empty"),
    "ids that are numbers": (table_of(item_id=list(range(12))), "no text, or empty"),
    "a parquet bomb": (parquet_bomb, "would take"),
    "a header of 2^62 bytes": (header_of(2**62), "cannot be loaded by AutoModelForCausalLM"),
    "a header of 90 MB": (header_of(90 * 2**20), "cannot be loaded by AutoModelForCausalLM"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint_is_refused_before_anything_is_built(unbound, name):
    change, message = HOSTILE[name]
    change(unbound)
    assert message in refusal(unbound)


def test_ids_with_line_breaks_do_not_share_a_hash():
    tables = [["a\nb", "c"], ["a", "b\nc"], ["a\n", "bc"], ['["a\\nb", "c"]', "x"], ["a", "b"]]
    hashes = [SidTable(ids, [[0], [1]]).sha256 for ids in tables]
    assert len(set(hashes)) == len(hashes)


def test_the_hash_of_other_tables_is_what_it_was():
    table = SidTable(["red", "grün", ""], [[0, 1], [1, 0], [0, 2]])
    assert table.sha256 == "295e5c9537e61d70db03bd050a83443cd5102cb341ce7bab2f2a546ceb946441"


def test_a_level_that_no_sid_uses_is_none():
    table = SidTable(["red", "green"], [[0, 1, -1, -1], [1, 0, -1, -1]])
    assert table.level_sizes == [2, 2] and table.all_codes.tolist() == [[0, 1], [1, 0]]
    assert table.sha256 == SidTable(["red", "green"], [[0, 1], [1, 0]]).sha256
    assert SidTable(["red", "green"], [[0, -1, -1], [0, 1, -1]]).level_sizes == [1, 3]  # with its terminal code


def test_a_saved_config_without_weights_binds_nothing(saved, tmp_path):
    sid_config, table, _ = SidConfig.load(saved)
    sid_config.save(tmp_path, table)
    assert "binding" not in json.loads((tmp_path / FILE).read_text())
