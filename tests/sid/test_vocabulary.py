"""Law 3: every (level, code) is one token, never split, kept by decode, in one block per level."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers
from transformers import AutoTokenizer

from llmrec.decoding.trie.trie import SidTrie
from llmrec.sid.table import EMPTY, SidTable
from llmrec.sid.tokens.template import DEFAULT_TEMPLATE
from llmrec.sid.vocabulary import SidVocabulary
from tests.conftest import word_tokenizer

settings.register_profile("llmrec", derandomize=True, max_examples=25, deadline=None)
settings.load_profile("llmrec")

LEVEL_SIZES = st.lists(st.integers(1, 15), min_size=1, max_size=5)
TEMPLATES = st.sampled_from([DEFAULT_TEMPLATE, "<|sid_{level}_{code}|>", "[{letter}{code}]", "<{letter}·{code}>"])


@given(LEVEL_SIZES, st.integers(0, 5), TEMPLATES, st.data())
def test_codes_are_single_tokens_wherever_they_stand(sizes, spare, template, data):
    tokenizer = word_tokenizer()
    before = len(tokenizer)
    vocabulary = SidVocabulary.add_to(tokenizer, sizes, spare, template)
    assert len(tokenizer) == before + sum(sizes) + spare * len(sizes) == vocabulary.token_range.stop
    ids = data.draw(st.lists(st.sampled_from(vocabulary.token_range), min_size=1, max_size=12))
    texts = [vocabulary.tokens()[i - before] for i in ids]
    assert tokenizer.encode("".join(texts), add_special_tokens=False) == ids
    assert tokenizer.encode(" ".join(texts), add_special_tokens=False) == ids
    assert "".join(tokenizer.decode(ids, skip_special_tokens=True).split()) == "".join(texts)


def test_sid_tokens_stand_between_words(tokenizer, vocabulary):
    red, apple = tokenizer.convert_tokens_to_ids(["red", "apple"])
    first = vocabulary.starts[0]
    assert tokenizer.encode("red<a_0><a_1> apple", add_special_tokens=False) == [red, first, first + 1, apple]


def test_levels_are_contiguous_blocks_with_spare_rows():
    tokenizer = word_tokenizer()
    start = len(tokenizer)
    vocabulary = SidVocabulary.add_to(tokenizer, [4, 2, 3], spare_codes=2)
    # Level a: 4 codes and 2 spare rows; level b: 2 and 2; level c: 3 and 2.
    assert vocabulary.starts == (start, start + 6, start + 10)
    assert vocabulary.block_sizes == (6, 4, 5)
    assert [vocabulary.block(level) for level in range(3)] == [
        slice(start, start + 4), slice(start + 6, start + 8), slice(start + 10, start + 13)
    ]  # fmt: skip
    assert tokenizer.convert_tokens_to_ids(["<a_5>", "<b_0>", "<c_4>"]) == [start + 5, start + 6, start + 14]


def test_token_ids_of_codes():
    vocabulary = SidVocabulary((4, 4, 4), (100, 104, 108), (4, 4, 4), eos_token_id=3)
    codes = np.array([[0, 1, 2], [3, 0, EMPTY]])
    assert vocabulary.token_ids(codes).tolist() == [[100, 105, 110], [103, 104, -1]]
    assert vocabulary.token_ids(codes[:, :2]).tolist() == [[100, 105], [103, 104]]


def test_a_saved_tokenizer_keeps_ids_and_a_dictionary_keeps_the_vocabulary(tokenizer, vocabulary, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    same = SidVocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    assert same == vocabulary
    same.check(reloaded)
    text = "".join(vocabulary.tokens())
    assert reloaded.encode(text, add_special_tokens=False) == list(vocabulary.token_range)
    assert "<b_2>" in reloaded.decode(reloaded.encode("red <b_2>"), skip_special_tokens=True)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("<{code}>", "the level is part of the token"),
        ("<{letter}>", "must contain {code}"),
        ("<{letter}_{code}_{item}>", "nothing else in braces"),
        ("<{letter}_{}>", "nothing else in braces"),
        ("<{letter:.0}_{code}>", "nothing else in braces"),
        ("<{letter}_{code!r}>", "nothing else in braces"),
        ("<{letter}_{code>", "unbalanced braces"),
    ],
)
def test_templates_without_level_or_code_are_refused(tokenizer, template, message):
    with pytest.raises(ValueError, match=message):
        SidVocabulary.add_to(tokenizer, [2, 2], template=template)


def test_a_template_that_names_two_codes_alike_is_refused(tokenizer):
    # Level 1, code 11 and level 11, code 1 are both "<111>".
    with pytest.raises(ValueError, match="gives two codes the same token"):
        SidVocabulary.add_to(tokenizer, [12] * 12, template="<{level}{code}>")


def test_a_template_whose_tokens_run_together_is_refused(tokenizer):
    tokenizer.add_tokens([AddedToken("<a_1><b_0>", normalized=False)])  # the longest token wins
    with pytest.raises(ValueError, match="splits or merges neighbouring tokens"):
        SidVocabulary.add_to(tokenizer, [2, 2])


@pytest.mark.parametrize(
    ("template", "token"),
    [
        ("{letter}{code}", "a0"),  # in 'Vitamin a0'
        ("{level}{code}", "00"),
        ("sid_{letter}_{code}", "sid_a_0"),
        ("-{letter}{code}-", "-a0-"),
        ("({letter}{code})", "(a0)"),
        ("#{letter}{code}", "#a0"),
        ("<{letter}{code}", "<a0"),
        ("{letter}{code}>", "a0>"),
        (" <{letter}_{code}>", " <a_0>"),
        ("<{letter} {code}>", "<a 0>"),
        ("<{letter}_{code}\u200b>", "<a_0\u200b>"),
        ("<{letter}_{code}\n>", "<a_0\n>"),
    ],
)
def test_templates_whose_tokens_occur_in_ordinary_text_are_refused(tokenizer, template, token):
    before = len(tokenizer)
    with pytest.raises(ValueError, match=r"which ordinary text may contain.*has to stand in") as error:
        SidVocabulary.add_to(tokenizer, [2, 2], template=template)
    assert f"tokens such as '{token}'" in str(error.value) and len(tokenizer) == before


def test_letters_name_26_levels_and_numbers_more(tokenizer):
    with pytest.raises(ValueError, match=r"27 levels need \{level\} in the template"):
        SidVocabulary.add_to(tokenizer, [1] * 27, template=DEFAULT_TEMPLATE)
    assert SidVocabulary.add_to(tokenizer, [1] * 27).tokens()[-1] == "<26_0>"


def test_a_tokenizer_is_extended_once(tokenizer, vocabulary):
    with pytest.raises(ValueError, match=r"already has the token '<a_0>'.*instead of an extended one"):
        SidVocabulary.add_to(tokenizer, [4, 4, 4])


def test_a_tokenizer_without_end_of_sequence_is_refused(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        SidVocabulary.add_to(tokenizer, [2])


def test_a_foreign_tokenizer_is_refused(vocabulary):
    with pytest.raises(ValueError, match=r"has 30 tokens, .* end at 42: it does not belong to this checkpoint"):
        vocabulary.check(word_tokenizer())
    other = word_tokenizer(("one", "more", "word"))
    SidVocabulary.add_to(other, vocabulary.level_sizes)
    with pytest.raises(ValueError, match="does not belong to this checkpoint"):
        vocabulary.check(other)


def test_tables_that_need_other_tokens_are_refused(sid_table, vocabulary):
    vocabulary.check_table(sid_table)
    vocabulary.check_table(SidTrie(sid_table))
    vocabulary.check_table(SidTable(["a"], [[0, 0, 0]]))  # fewer codes are fine
    for codes in ([[0, 0, 4]], [[0, 0]], [[0, 0, 0, 0]]):
        with pytest.raises(ValueError, match="Run `llmrec extend` on the new table"):
            vocabulary.check_table(SidTable(["a"], codes))


def test_law_3_tokens_are_neither_special_nor_normalised(tokenizer):
    """A normaliser that changes text must not make words of a title look like a code."""
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("_", " ")
    vocabulary = SidVocabulary.add_to(tokenizer, [2, 2])
    added = [tokenizer.added_tokens_decoder[token_id] for token_id in vocabulary.token_range]
    assert not any(token.special or token.normalized for token in added)
    assert tokenizer.encode("<a_1>", add_special_tokens=False) == [vocabulary.starts[0] + 1]
    assert not set(tokenizer.encode("<a 1>", add_special_tokens=False)) & set(vocabulary.token_range)


def test_spare_rows_are_no_codes_until_a_table_grows(tokenizer):
    vocabulary = SidVocabulary.add_to(tokenizer, [2, 2], spare_codes=1)
    grown = SidTable(["a", "b"], [[0, 0], [0, 2]])
    with pytest.raises(ValueError, match="Run `llmrec extend`"):
        vocabulary.check_table(SidTable(["a"], [[2, 0]]))
    with pytest.raises(ValueError, match="Run `llmrec extend`"):
        vocabulary.check_table(grown)
    dataclasses.replace(vocabulary, level_sizes=(2, 3)).check_table(grown)  # the rows are there: no new tokens
