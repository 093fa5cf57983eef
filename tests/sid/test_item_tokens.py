"""One token per item behind the blocks of the SIDs: law 3 for them, and how prompts and answers use them."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.model.prompts import most_prompt_tokens
from llmrec.sid.item_tokens import ItemTokens
from llmrec.sid.table import EMPTY, SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.dpo.preferences import PreferenceCollator
from llmrec.training.sft.examples import HistoryCollator
from llmrec.training.sft.losses import IGNORED
from tests.conftest import word_tokenizer
from tests.support.decoding import tables


@pytest.fixture
def with_items(tokenizer, sid_table) -> SidVocabulary:
    return SidVocabulary.add_to(tokenizer, sid_table.level_sizes, spare_codes=1, num_items=12)


def test_law_3_item_tokens_are_single_tokens_right_behind_the_blocks(tokenizer, sid_table):
    before = len(tokenizer)
    vocabulary = SidVocabulary.add_to(tokenizer, sid_table.level_sizes, spare_codes=1, num_items=12)
    assert vocabulary.token_range == range(before, before + 15)
    assert vocabulary.items == ItemTokens(before + 16, 12)
    assert vocabulary.items.stand_in == before + 15 == tokenizer.convert_tokens_to_ids("<|item|>")
    assert vocabulary.added_range == range(before, len(tokenizer))
    text = "red <|item_0|><|item_11|><|item_1|> apple"
    red, apple = tokenizer.convert_tokens_to_ids(["red", "apple"])
    first = before + 16
    assert tokenizer.encode(text, add_special_tokens=False) == [red, first, first + 11, first + 1, apple]
    assert "<|item_11|>" in tokenizer.decode([first + 11], skip_special_tokens=True)


def test_ordinary_text_does_not_yield_item_tokens(tokenizer, with_items):
    for text in (
        "item",
        "|item|",
        "< |item| >",
        "item_3",
        "|item_3|",
        "< |item_3| >",
        "<|item_12|>",
        "<|item_03|>",
        "<|ITEM_3|>",
    ):
        assert not set(tokenizer.encode(text, add_special_tokens=False)) & set(with_items.added_range), text


def test_a_dictionary_keeps_the_item_tokens_and_has_no_word_of_them_without(with_items):
    assert SidVocabulary.from_dict(json.loads(json.dumps(with_items.to_dict()))) == with_items
    vocabulary = SidVocabulary.add_to(word_tokenizer(), [4, 4])
    assert "items" not in vocabulary.to_dict() and SidVocabulary.from_dict(vocabulary.to_dict()).items is None


def test_what_does_not_belong_together_is_refused(tokenizer, sid_table, with_items):
    with_items.check(tokenizer)
    without = word_tokenizer()
    SidVocabulary.add_to(without, [5, 5, 5])
    with pytest.raises(ValueError, match=r"has 45 tokens, the SID and item tokens end at 58"):
        with_items.check(without)
    with pytest.raises(ValueError, match="has 1 items, and 12 items have a token of their own"):
        with_items.check_table(SidTable(["a"], [[0, 0, 0]]))
    with pytest.raises(ValueError, match="item tokens need at least one item"):
        ItemTokens(3, 0)


def test_prompts_and_answers_by_hand(sid_table, with_items):
    encoder = SidHistoryEncoder(sid_table, with_items)
    (a, b, c), item = with_items.starts, with_items.items.start  # item 3 is (0, 3, 2), item 6 is (1, 2, 3)
    assert encoder.encode_history([3, 6]).tolist() == [a, b + 3, c + 2, item + 3, a + 1, b + 2, c + 3, item + 6]
    assert encoder.encode_answer([3, 6]).tolist() == [a, b + 3, c + 2, a + 1, b + 2, c + 3]
    ids, mask = encoder.pad_prompts([4], [[3], []], 0)
    assert ids.tolist() == [[4, a, b + 3, c + 2, item + 3], [4, 0, 0, 0, 0]] and mask.sum(1).tolist() == [5, 1]


@settings(max_examples=25)
@given(tables(), st.data())
def test_an_item_is_its_sid_and_then_its_token(table, data):
    tokenizer = word_tokenizer()
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes, num_items=table.num_items)
    encoder = SidHistoryEncoder(table, vocabulary)
    history = data.draw(st.lists(st.integers(0, table.num_items - 1), max_size=6))
    expected = [token for row in history for token in [*encoder.encode_answer([row]), vocabulary.items.start + row]]
    assert encoder.encode_history(history).tolist() == expected
    assert len(expected) <= most_prompt_tokens([], len(history), vocabulary)
    sids = [token for token in expected if token in vocabulary.token_range]
    assert sids == encoder.encode_answer(history).tolist()


def test_labels_of_sft_are_sids_alone(sid_table, with_items):
    collator = HistoryCollator([4, 5], SidHistoryEncoder(sid_table, with_items), 0)
    (a, b, c), item = with_items.starts, with_items.items.start
    batch = collator([{"rows": [3, 6], "num_context": 1}])
    assert batch["input_ids"].tolist() == [[4, 5, a, b + 3, c + 2, item + 3, a + 1, b + 2, c + 3, item + 6]]
    assert batch["labels"].tolist() == [[IGNORED] * 6 + [a + 1, b + 2, c + 3, IGNORED]]


def test_completions_of_dpo_are_sids_alone(sid_table, with_items):
    collator = PreferenceCollator([4], SidHistoryEncoder(sid_table, with_items), 10, 0)
    batch = collator([{"history": [3], "items": [6, 0], "smoothing": [0.0]}])
    (a, b, c), item = with_items.starts, with_items.items.start
    assert batch["input_ids"].tolist() == [[4, a, b + 3, c + 2, item + 3]]
    assert batch["completions"].tolist() == [[[a + 1, b + 2, c + 3], [a, b, c]]]


def test_item_tokens_are_never_written(sid_table, with_items):
    """Neither as an answer nor in text, after a prompt that ends with one."""
    items = with_items.items
    size = with_items.added_range.stop
    prompt = torch.tensor([[4, *SidHistoryEncoder(sid_table, with_items).encode_history([6])]])
    for free_text in (False, True):
        processor = SidLogitsProcessor(SidTrie(sid_table), with_items, prompt.shape[1], free_text=free_text)
        masked = processor(prompt, torch.zeros(1, size))
        assert masked[0, items.block].isneginf().all() and masked[0, with_items.starts[0]] == 0
        assert (masked[0, 9] == 0) == free_text


def test_prompts_of_short_sids_have_the_item_token_behind_them(tokenizer):
    table = SidTable(["long", "short"], [[1, 0, 1], [0, 1, EMPTY]])
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes, num_items=2)
    (a, b, c), item = vocabulary.starts, vocabulary.items.start
    encoder = SidHistoryEncoder(table, vocabulary)
    assert encoder.encode_history([1, 0]).tolist() == [a, b + 1, item + 1, a + 1, b, c + 1, item]
    assert np.bincount(encoder.encode_prompts([], [1, 0], [2]).items).tolist() == [3, 4]
