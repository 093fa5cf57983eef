"""The micro model: its word tokenizer and its random weights."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from llmrec.model.micro import micro_model
from llmrec.model.prompts import DEFAULT_INSTRUCTION, Prompt
from llmrec.sid.tokens.llm_tokenizer import SPECIAL_TOKENS, word_tokenizer
from tests.conftest import TITLES


def test_words_are_the_most_frequent_ones_and_the_instruction_is_known():
    tokenizer = word_tokenizer(TITLES, max_words=22)
    assert len(tokenizer) == 22
    # "plum" and "apple" occur three times; the rest of the room goes to the first pairs in the alphabet.
    always = 4 + len(
        {"recommend", "the", "next", "item", "for", "a", "user", "with", "this", "history", ",", "oldest", "first", ":"}
    )
    assert tokenizer.convert_ids_to_tokens(list(range(always, 22))) == ["apple", "plum", "black", "coffee"]
    assert tokenizer.unk_token_id not in Prompt().prefix(tokenizer)
    assert tokenizer.tokenize("Apple ZEBRA") == ["apple", "<unk>"]


def test_every_word_fits_where_the_cap_allows():
    tokenizer = word_tokenizer(TITLES, max_words=8000)
    assert len(tokenizer) < 60
    assert tokenizer.unk_token_id not in tokenizer(" ".join(TITLES)).input_ids
    assert [getattr(tokenizer, name) for name in SPECIAL_TOKENS] == list(SPECIAL_TOKENS.values())


def test_a_saved_tokenizer_reads_the_same(tmp_path):
    tokenizer = word_tokenizer([*TITLES, "Ça ira (1936)", "２００１"], max_words=8000)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = f"{DEFAULT_INSTRUCTION} ÇA IRA (1936), 2001"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.unk_token_id not in again(text).input_ids
    assert (again.eos_token_id, again.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_the_order_of_titles_does_not_matter():
    assert word_tokenizer(TITLES, 24).get_vocab() == word_tokenizer(TITLES[::-1], 24).get_vocab()


def test_too_few_words_for_the_instruction_are_refused():
    with pytest.raises(ValueError, match="micro_words is 10; at least 18 are needed"):
        word_tokenizer(TITLES, max_words=10)


def test_the_seed_decides_the_weights():
    tokenizer = word_tokenizer(TITLES, 40)
    one, again, other = (micro_model(tokenizer, 2, 32, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_shape_of_the_model():
    model = micro_model(word_tokenizer(TITLES, 40), layers=1, hidden_size=64, seed=0)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.config.num_attention_heads == 2
    with pytest.raises(ValueError, match="micro_hidden is 48; it must be a positive multiple of 32"):
        micro_model(word_tokenizer(TITLES, 40), 1, 48, 0)
