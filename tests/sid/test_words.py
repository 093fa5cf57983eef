"""Identifiers written in words of an LLM: codes that number tokens, in a table, a vocabulary and a file."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmrec.sid.table import EMPTY, SidTable
from llmrec.sid.tokens.level_words import LevelWords
from llmrec.sid.vocabulary import SidVocabulary
from tests.conftest import word_tokenizer

END = 4
SEQUENCES = st.lists(st.lists(st.integers(5, 40), min_size=1, max_size=6).map(lambda s: [*s, END]), min_size=1)


@given(SEQUENCES)
def test_codes_lead_back_to_tokens(sequences):
    words, codes = LevelWords.of(sequences)
    assert [[token for token in row if token != EMPTY] for row in words.token_ids(codes).tolist()] == sequences
    for level in range(codes.shape[1]):
        held = codes[codes[:, level] >= 0, level]
        assert sorted(set(held.tolist())) == list(range(words.level_sizes[level]))  # no code without an item
        tokens = words.tokens_at(level, torch.from_numpy(held))
        assert words.codes_at(level, tokens).tolist() == held.tolist()
        absent = sorted(set(range(45)) - set(words.ids[level].tolist()))
        assert words.codes_at(level, torch.tensor(absent)).tolist() == [EMPTY] * len(absent)


@given(SEQUENCES, SEQUENCES)
def test_further_tokens_stand_behind_the_old_ones(old, new):
    words, _ = LevelWords.of(old)
    new = [sequence for sequence in new if len(sequence) <= len(words.ids)]
    if not new:
        return
    grown, codes = words.grown(new)
    assert grown.continues(words)
    assert words.continues(grown) == (grown == words)
    assert [[token for token in row if token != EMPTY] for row in grown.token_ids(codes).tolist()] == new


def test_words_need_not_ascend():
    words = LevelWords([[9, 5, 7]])
    assert words.codes_at(0, torch.tensor([[5, 6], [9, 7]])).tolist() == [[1, EMPTY], [0, 2]]


def test_a_table_keeps_its_words(tmp_path):
    tokenizer = word_tokenizer()
    red, apple, plum = tokenizer.convert_tokens_to_ids(["red", "apple", "plum"])
    table = SidTable.of_tokens(["a", "b"], [[red, apple, END], [red, plum, END]], tokenizer)
    table.save(tmp_path)
    loaded = SidTable.load(tmp_path)
    assert loaded.words == table.words
    assert loaded.words.texts == {red: "red", apple: "apple", plum: "plum", END: tokenizer.convert_ids_to_tokens(END)}
    assert loaded.sha256 == table.sha256
    renamed = SidTable(
        ["a", "b"], table.all_codes, words=LevelWords(table.words.ids, {**table.words.texts, red: "blue"})
    )
    others = SidTable.of_tokens(["a", "b"], [[red + 1, apple, END], [red + 1, plum, END]], tokenizer)
    plain = SidTable(["a", "b"], table.all_codes)
    assert len({each.sha256 for each in (table, renamed, others, plain)}) == 4


def test_the_vocabulary_of_a_table_of_words():
    table = SidTable.of_tokens(["a", "b"], [[7, 9, END], [7, END]])
    vocabulary = SidVocabulary.of_words(table.words, eos_token_id=3)
    vocabulary.check_table(table)
    assert (vocabulary.num_tokens, vocabulary.num_rows, vocabulary.tokens_per_item) == (0, 10, 3)
    assert list(vocabulary.token_range) == list(vocabulary.added_range) == []
    assert vocabulary.token_ids(table.codes([0, 1])).tolist() == [[7, 9, END], [7, END, EMPTY]]
    assert SidVocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())), table.words) == vocabulary
    with pytest.raises(ValueError, match="identifiers are words, but the SID table has none"):
        SidVocabulary.from_dict(vocabulary.to_dict())


def test_another_tokenizer_is_refused():
    tokenizer = word_tokenizer()
    red = tokenizer.convert_tokens_to_ids("red")
    table = SidTable.of_tokens(["a"], [[red, END]], tokenizer)
    vocabulary = SidVocabulary.of_words(table.words, tokenizer.eos_token_id)
    vocabulary.check(tokenizer)
    with pytest.raises(ValueError, match=rf"Token {red} is 'red' in the SID table.*and '\w+' in this tokenizer"):
        vocabulary.check(word_tokenizer(["some other words", "than those"]))
    beyond = LevelWords([[10**6]], {10**6: "far"})
    with pytest.raises(ValueError, match=r"Token 1000000 is 'far' in the SID table.*no token in this tokenizer"):
        beyond.check(tokenizer)


def test_text_shows_words_as_they_stand():
    words = LevelWords([[5, 6], [7]], {5: "\u0120Red", 7: "\u2581tea"})
    assert words.text(np.array([[0, 0], [1, EMPTY]])) == " Red tea<6>"
    assert LevelWords([[5], [7]], {5: "red", 7: "tea"}).text(np.array([[0, 0]])) == "red tea"


@pytest.mark.parametrize(
    ("ids", "message"),
    [([[5], []], "level 1 needs a list of token ids"), ([[5, 5]], "level 0 has a token twice"),
     ([[-1]], "each from 0 to 2\\^31 - 1")],
)  # fmt: skip
def test_lists_that_are_no_words_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        LevelWords(ids)


def test_items_that_begin_another_are_refused():
    with pytest.raises(ValueError, match="the beginning of another's; end all items with the same token"):
        SidTable.of_tokens(["a", "b"], [[5], [5, 6]])


def test_damaged_words_are_refused(tmp_path):
    SidTable.of_tokens(["a", "b"], [[5, END], [6, END]]).save(tmp_path)
    path = tmp_path / "sid_table.parquet"
    table = pq.read_table(path)
    for broken in ("[]", "{", '{"ids": [[5], [4]], "texts": {}}', '{"ids": 3, "texts": {}}', '{"ids": [["x"]]}'):
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"words": broken}), path)
        with pytest.raises(ValueError, match=r"holds no SIDs: .* Run `llmrec tokenize` again"):
            SidTable.load(path)
