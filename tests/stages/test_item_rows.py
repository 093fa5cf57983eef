"""`extend --item-rows` and what follows it, on the architectures that users bring, tied and untied."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList

from llmrec.cli import main
from llmrec.decoding.generate import sid_generation_config
from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.checkpoint import SidConfig
from llmrec.recommender import Recommender
from tests.support.extended import extended, fine_tune, same_weights, write_llm, write_sid

HISTORY = ["item-3", "item-6", "item-1"]


@pytest.fixture(params=["llama", "qwen2", "qwen3", "gemma3_text"])
def architecture(request) -> str:
    return request.param


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request) -> bool:
    return request.param


def embedding_of(directory) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(directory).get_input_embeddings().weight.detach()


def generated(directory) -> list[str]:
    """SIDs that plain transformers generates for HISTORY under the processor, best first."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    sid_config, table, _ = SidConfig.load(directory)
    prompt, mask = sid_config.encode(table.find_items({"history": HISTORY}), table, tokenizer)
    assert prompt[0, -1] == sid_config.vocabulary.items.start + 1
    processor = SidLogitsProcessor(SidTrie(table), sid_config.vocabulary, prompt.shape[1], sid_config.normalize_over)
    config = sid_generation_config(sid_config.vocabulary, num_beams=11, num_return_sequences=11)
    output = model.generate(
        prompt, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([processor])
    )
    texts = tokenizer.batch_decode(output.sequences[:, prompt.shape[1] :], skip_special_tokens=True)
    return ["".join(text.split()) for text in texts]


def recommended(directory) -> list[str]:
    """SIDs of the items that the Recommender returns for HISTORY, best first; once each."""
    recommender = Recommender.from_pretrained(directory, device="cpu")
    item_ids = recommender.recommend([HISTORY], k=12, exclude=None)[0][0]
    rows = recommender.table.find_items({"answer": item_ids})[0]
    text = recommender.sid_config.vocabulary.text
    return list(dict.fromkeys(text(recommender.table.codes([row])) for row in rows))


def test_rows_start_distinct_and_the_old_ones_stay(tmp_path, sid_table, architecture, tied):
    base = extended(tmp_path, sid_table, architecture, tied, item_rows=True)
    vocabulary = SidConfig.load(base)[0].vocabulary
    old, new = embedding_of(tmp_path / "llm"), embedding_of(base)
    assert torch.equal(new[: vocabulary.starts[0]], old[: vocabulary.starts[0]])
    rows = new[vocabulary.added_range.start : vocabulary.added_range.stop]
    assert len(rows) == 12 + 12
    cosine = cosine_similarity(rows[:, None], rows[None], dim=-1) - torch.eye(len(rows))
    assert cosine.max() < 0.9


@pytest.mark.parametrize("train", ["lora", "full"])
def test_what_sft_leaves_generates_and_recommends_the_same(tmp_path, toy, sid_table, architecture, tied, train):
    base, out = extended(tmp_path, sid_table, architecture, tied, item_rows=True), tmp_path / "sft"
    fine_tune(out, toy[0], base, train=train)
    vocabulary = SidConfig.load(out)[0].vocabulary
    assert vocabulary == SidConfig.load(base)[0].vocabulary
    before, after = embedding_of(base), embedding_of(out)
    is_equal = torch.isclose(before, after, atol=1e-7).all(dim=1)
    assert not is_equal[vocabulary.items.block].any(), "an item row that did not train"
    if train == "lora":
        assert is_equal[: vocabulary.starts[0]].all() and is_equal[vocabulary.added_range.stop :].all()
    sids = recommended(out)
    assert generated(out) == sids and len(sids) == 11  # two of the twelve items share one


def test_without_the_option_nothing_changes(tmp_path, sid_table, toy):
    """Law 13, down to the bytes of llmrec.json."""
    base = extended(tmp_path, sid_table, item_rows=False)
    assert same_weights(base, toy[1])
    assert (base / "llmrec.json").read_bytes() == (toy[1] / "llmrec.json").read_bytes()


def test_the_command_says_what_was_added(capsys, tmp_path, sid_table):
    sid, llm, out = write_sid(tmp_path / "sid", sid_table), write_llm(tmp_path / "llm"), tmp_path / "base"
    flags = ["--sid", str(sid), "--model", str(llm), "--out", str(out), "--item-rows"]
    assert main(["extend", *flags]) == 0
    assert "extend: 12 SID tokens, 12 item tokens" in capsys.readouterr().err
    items = json.loads((out / "llmrec.json").read_text())["vocabulary"]["items"]
    assert items == {"start": AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("<|item_0|>"), "num_items": 12,
                     "template": "<|item_{row}|>"}  # fmt: skip
