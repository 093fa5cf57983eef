"""The directory that FlashRec serves: read by FlashRec's own parsers, and what it cannot read refused."""

from __future__ import annotations

import json

import pytest
from transformers import AddedToken, AutoTokenizer

from llmrec.cli import run
from llmrec.model.checkpoint import SidConfig, save_model
from llmrec.model.prompts import Prompt
from llmrec.serve.exchange.flashrec import CATALOG
from llmrec.sid.item_layout import BEGIN, END
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from tests.conftest import tiny_llm, word_tokenizer
from tests.support.extended import extended, fine_tune, write_toy_catalog


def save(directory, table, template="<s_{letter}_{code}>", architecture="qwen3", markers=(BEGIN, END)):
    """A checkpoint whose tokens are named by a template."""
    directory.mkdir(parents=True)
    tokenizer = word_tokenizer()
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes, template=template)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in markers])
    save_model(tiny_llm(len(tokenizer), architecture), tokenizer, directory)
    SidConfig(vocabulary, Prompt(), 10, "level").save(directory, table, tokenizer=tokenizer)
    return directory, vocabulary


@pytest.fixture
def exported(tmp_path, sid_table):
    checkpoint, vocabulary = save(tmp_path / "checkpoint", sid_table)
    run(["export", "--model", str(checkpoint), "--to", "flashrec", "--out", str(tmp_path / "out")])
    return tmp_path / "out", vocabulary


def test_catalogue_and_config_are_as_the_engine_reads_them(exported, item_ids):
    out, _ = exported
    catalog = json.loads((out / CATALOG).read_text())
    assert catalog["1,0,0"] == ["item-4", "item-5"] and catalog["3,3,3"] == ["item-11"]
    assert sorted(item for items in catalog.values() for item in items) == sorted(item_ids)
    config = json.loads((out / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert json.loads((out / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_parsers_of_flashrec_read_it(exported, sid_table):
    parsers = pytest.importorskip("flashrec.catalog", reason="pip install --no-deps flashrec==0.1.2")
    from flashrec.sid_layout import infer_sid_layout

    out, vocabulary = exported
    catalog = json.loads((out / CATALOG).read_text())
    codes = {parsers.parse_sid_codes(key) for key in catalog}
    assert codes == {tuple(row) for row in sid_table.all_codes.tolist()}
    assert parsers.iter_unique_sids(catalog)[2:] == (0, False)  # no bad key, and no packed one
    layout = infer_sid_layout(str(out), str(out / CATALOG))
    tokens = vocabulary.token_range
    assert layout.token_range == f"{tokens.start}:{tokens.stop - 1}"
    assert layout.codebook_sizes == "4,4,4" and layout.boundary_tokens == f"{tokens.stop},{tokens.stop + 1}"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"template": "<{letter}_{code}>"}, "have to be named <s_a_0>, <s_a_1> and so on; the first is <a_0>"),
        ({"architecture": "llama"}, "it reads Qwen3 models, not llama"),
        ({"markers": (END, BEGIN)}, "right behind the tokens of the codes"),
        ({"markers": ()}, "right behind the tokens of the codes"),
    ],
)
def test_what_it_cannot_serve_is_refused(tmp_path, sid_table, options, reason):
    checkpoint, _ = save(tmp_path / "checkpoint", sid_table, **options)
    with pytest.raises(ValueError, match=reason):
        run(["export", "--model", str(checkpoint), "--to", "flashrec", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_semantic_ids_of_several_lengths_are_refused(tmp_path):
    checkpoint, _ = save(tmp_path / "checkpoint", SidTable(["a", "b"], [[0, -1], [1, 0]]))
    with pytest.raises(ValueError, match="all of one length of at least 2"):
        run(["export", "--model", str(checkpoint), "--to", "flashrec", "--out", str(tmp_path / "out")])


def test_extend_makes_and_sft_trains_what_flashrec_serves(tmp_path, sid_table):
    base = extended(tmp_path, sid_table, layout="openonerec")
    catalog = write_toy_catalog(tmp_path / "catalog")
    fine_tune(tmp_path / "sft", catalog.source, base, train="lora", max_steps=2)
    run(["export", "--model", str(tmp_path / "sft"), "--to", "flashrec", "--out", str(tmp_path / "out")])
    sid_config, table, _ = SidConfig.load(tmp_path / "sft")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt, _ = sid_config.encode([[0, 11]], table, tokenizer)
    items = "<|sid_begin|><s_a_0><s_b_0><s_c_0><|sid_end|><|sid_begin|><s_a_3><s_b_3><s_c_3><|sid_end|>"
    # A request's text gives the tokens that the model was trained on, and FlashRec adds the last one.
    request = tokenizer.apply_chat_template(
        [{"role": "user", "content": sid_config.prompt.instruction + items}], tokenize=True, return_dict=False
    )
    assert [*request, tokenizer.convert_tokens_to_ids(BEGIN)] == prompt[0].tolist()
