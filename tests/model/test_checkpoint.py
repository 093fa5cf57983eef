"""Law 11: a checkpoint is refused where its parts do not belong together, and nothing in it is executed."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llmrec.model.checkpoint import FILE, SidConfig, load_model, load_tokenizer, resolve
from llmrec.model.prompts import Prompt
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary


@pytest.fixture
def sid_config(vocabulary):
    return SidConfig(vocabulary, Prompt("What next?", chat_template=True), max_history=7, normalize_over="level")


@pytest.fixture
def checkpoint(llm, tokenizer, sid_config, sid_table, tmp_path):
    llm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    sid_config.save(tmp_path, sid_table, {"base_model": "micro"})
    return tmp_path


def change(directory, **values):
    path = directory / FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_saved_sid_config_is_loaded(checkpoint, sid_config, sid_table, llm):
    loaded, table, details = SidConfig.load(checkpoint)
    assert loaded == sid_config
    assert table.sha256 == sid_table.sha256
    assert table.item_ids == sid_table.item_ids
    assert details == {"base_model": "micro"}
    sid_config.vocabulary.check(load_tokenizer(checkpoint))
    model, ids = load_model(checkpoint), torch.tensor([[5, 6, 40]])
    with torch.no_grad():
        assert model(ids).logits.equal(llm(ids).logits)


def test_an_altered_table_is_refused(checkpoint, sid_table):
    codes = sid_table.all_codes.copy()
    codes[0], codes[1] = sid_table.all_codes[1], sid_table.all_codes[0]
    SidTable(sid_table.item_ids, codes, level_sizes=[4, 4, 4]).save(checkpoint)
    with pytest.raises(ValueError, match=r"is not the table this checkpoint was trained on .*run `llmrec extend`"):
        SidConfig.load(checkpoint)


def test_a_table_with_more_codes_than_the_vocabulary_is_refused(checkpoint, sid_config, item_ids):
    larger = SidTable(item_ids, np.stack([np.arange(12)] * 3, axis=1))
    sid_config.save(checkpoint, larger)
    with pytest.raises(ValueError, match=r"level sizes \[12, 12, 12\], the vocabulary \[4, 4, 4\]"):
        SidConfig.load(checkpoint)


def test_a_directory_without_llmrec_json_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no llmrec.json: .* `llmrec extend` makes one"):
        SidConfig.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe", b'{"schema_version": 1}'], ids=str)
def test_an_unreadable_llmrec_json_is_refused(checkpoint, content):
    (checkpoint / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"llmrec.json cannot be read .*; run the stage that wrote it again"):
        SidConfig.load(checkpoint)


@pytest.mark.parametrize(
    "values",
    [{"schema_version": 2}, {"prompt": {"text": "?"}}, {"vocabulary": {"level_sizes": [4]}}, {"vocabulary": [1]}],
    ids=str,
)
def test_an_llmrec_json_with_other_values_is_refused(checkpoint, values):
    change(checkpoint, **values)
    with pytest.raises(ValueError, match=r"llmrec.json cannot be read .*; run the stage that wrote it again"):
        SidConfig.load(checkpoint)


def test_a_missing_table_is_refused(checkpoint):
    (checkpoint / "sid_table.parquet").unlink()
    with pytest.raises(ValueError, match=r"sid_table.parquet' does not exist"):
        SidConfig.load(checkpoint)


def test_weights_that_could_carry_code_are_refused(checkpoint):
    weights = checkpoint / "model.safetensors"
    torch.save(load_file(weights), checkpoint / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match=r"cannot be loaded by AutoModelForCausalLM .*saved as safetensors"):
        load_model(checkpoint)


def test_code_in_a_checkpoint_is_not_run(checkpoint):
    marker = checkpoint / "was_run"
    (checkpoint / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    for name, auto in (("config.json", "AutoModelForCausalLM"), ("tokenizer_config.json", "AutoTokenizer")):
        values = json.loads((checkpoint / name).read_text())
        entry = "evil.Evil" if auto != "AutoTokenizer" else ["evil.Evil", "evil.Evil"]
        values |= {"auto_map": {auto: entry, "AutoConfig": "evil.Evil"}}
        (checkpoint / name).write_text(json.dumps(values))
    load_model(checkpoint)
    load_tokenizer(checkpoint)
    values = json.loads((checkpoint / "config.json").read_text()) | {"model_type": "evil", "architectures": ["Evil"]}
    (checkpoint / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(checkpoint)
    assert not marker.exists()


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None], ids=["empty", "text", "cut"])
def test_damaged_weights_are_refused(checkpoint, damage):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(ValueError, match="cannot be loaded by AutoModelForCausalLM"):
        load_model(checkpoint)


def test_a_checkpoint_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither a checkpoint directory nor a model that could be fetched"):
        resolve(tmp_path / "absent")
    with pytest.raises(ValueError, match="cannot be loaded by AutoModelForCausalLM"):
        load_model("llmrec-tests/no-such-model")


def test_an_unfinished_directory_is_refused(tmp_path):
    (tmp_path / "model.partial").mkdir()
    with pytest.raises(ValueError, match="is unfinished"):
        resolve(tmp_path / "model")


def test_a_tokenizer_without_padding_pads_with_end_of_sequence(tokenizer, tmp_path):
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == "<eos>"


def test_a_tokenizer_of_another_catalogue_is_refused(sid_config):
    from tests.conftest import word_tokenizer

    other = word_tokenizer(("only", "words"))
    SidVocabulary.add_to(other, [4, 4, 4])
    with pytest.raises(ValueError, match="does not belong to this checkpoint"):
        sid_config.vocabulary.check(other)
