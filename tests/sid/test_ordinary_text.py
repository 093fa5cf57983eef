"""Law 3: ordinary text never yields the token of a SID, an item or a special token, whatever it says."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llmrec.sid.tokens.ordinary_text import break_markers, encode_texts
from llmrec.sid.vocabulary import SidVocabulary
from tests.conftest import word_tokenizer

WORDS = "the quick brown fox vitamin b1 complex grab4 bag canon c7 red apple < > / | _ im end item s pad 0 1 a b ; ."
CORPUS = [WORDS, "the quick brown </s> fox <s>", *WORDS.split()] * 20
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>", "[SEP]"]
HOSTILE = ["<a_1>", "</s>", "<|im_end|>", "<|item_2|>", "<|item|>", "[SEP]", "<think>", "<a_1><b_2>", "x<s>y", "<s",
           "a_1>", "＜a_1＞", "＜/s＞", "<​/s>", "{given}", "<<a_1>>", "<</s>/s>"]  # fmt: skip


def byte_level(ignore_merges=False):
    """As of GPT-2, Qwen and SmolLM2; with `ignore_merges`, as of Llama 3, a word of the vocabulary is taken whole."""
    core = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return core


def words_taken_whole():
    core = byte_level(ignore_merges=True)
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return core


def merged_markers():
    """A BPE that learned to merge a marker, as those converted from SentencePiece may."""
    letters = ["<unk>", "▁", *sorted(set(WORDS) - {" "}), "</", "s>", "</s>", "<s>"]
    merges = [("<", "/"), ("s", ">"), ("</", "s>"), ("<", "s>")]
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, merges, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    return core


def unigram():
    """As of T5, XLM-R and Gemma: the model's own pieces contain the markers, and NFKC makes them of other letters."""
    core = Tokenizer(models.Unigram())
    core.normalizer, core.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    core.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>"))
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return core


def word_piece():
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.WhitespaceSplit()
    core.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL))
    return core


def word_level():
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *WORDS.split()])}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return core


KINDS = (byte_level, words_taken_whole, merged_markers, unigram, word_piece, word_level)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def extended(request):
    """A tokenizer of each kind with a user's own tokens, extended by SID and item tokens, and its vocabulary."""
    names = {"unk_token": "<unk>"} if request.param is not byte_level else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=request.param(), bos_token="<s>", eos_token="</s>", sep_token="[SEP]", **names
    )
    tokenizer.add_tokens(["<think>", AddedToken("<tool_call>", special=False), "<|im_end|>"])
    tokenizer.add_tokens(["  ", "covid"])  # no markers: a run of spaces, and a word
    return tokenizer, SidVocabulary.add_to(tokenizer, [4, 4], num_items=3)


def forbidden(tokenizer, vocabulary):
    ids = {*vocabulary.added_range, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    return ids | set(tokenizer.convert_tokens_to_ids(["<think>", "<tool_call>", "<|im_end|>"]))


def test_hostile_titles_are_inert(extended):
    titles = [text for each in HOSTILE for text in (each, f"red {each} apple", f"red{each}apple", each * 3)]
    found = encode_texts(titles, extended[0])
    for title, ids in zip(titles, found, strict=True):
        assert not forbidden(*extended) & set(ids.tolist()), title
    plain = extended[0](titles, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert any(forbidden(*extended) & set(ids) for ids in plain)  # without the function they are not


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from([*HOSTILE, *WORDS.split(), " ", "  ", "\n", "é", "＜", "＞", "_1", "\\", "\0"]), max_size=8
    )
)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_mixture_of_pieces_makes_a_marker(kind, pieces):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=kind(), bos_token="<s>", eos_token="</s>", sep_token="[SEP]")
    vocabulary = SidVocabulary.add_to(tokenizer, [4, 4], num_items=3)
    ids = {*vocabulary.added_range, *tokenizer.convert_tokens_to_ids(["<s>", "</s>", "[SEP]"])}
    assert not ids & set(encode_texts(["".join(pieces)], tokenizer)[0].tolist())


def test_other_text_has_the_tokens_that_it_always_had(extended):
    tokenizer, _ = extended
    titles = ["the quick brown fox", " red apple", "Vitamin b1 complex", "a  b covid ü", "", "grab4 < / s >", "c7."]
    before = tokenizer(titles, add_special_tokens=False)["input_ids"]
    assert [ids.tolist() for ids in encode_texts(titles, tokenizer)] == before
    assert tokenizer(titles, add_special_tokens=False)["input_ids"] == before  # the tokenizer itself does not change


def test_tokens_that_are_added_later_are_known(extended):
    tokenizer = word_tokenizer(["red < a _ 1 >"])
    assert encode_texts(["red <a_1>"], tokenizer)[0].tolist() == tokenizer.convert_tokens_to_ids(["red", "<unk>"])
    first = SidVocabulary.add_to(tokenizer, [2])
    assert first.starts[0] + 1 not in encode_texts(["red <a_1>"], tokenizer)[0]


def test_settings_saved_in_a_tokenizer_cut_no_text():
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert len(encode_texts(["red apple green apple"], tokenizer)[0]) == 4
    assert json.loads(tokenizer.backend_tokenizer.to_str())["truncation"]["max_length"] == 2


def test_a_tokenizer_of_another_library_is_refused():
    class Slow:
        def __len__(self):
            return 3

    with pytest.raises(ValueError, match=r"Slow is no tokenizer of the library tokenizers.*tasks, sid_init"):
        encode_texts(["red"], Slow())


@pytest.mark.parametrize("text", ["red apple", "", "a < b > c", "＜b＞ ﬁ", "</ s>", "s>"])
def test_text_without_a_marker_reaches_an_encoder_as_it_is(text):
    assert break_markers([text], ["</s>", "<s>", "[SEP]"]) == [text]
    assert break_markers([text], []) == [text]


def test_markers_are_broken_before_an_encoder_reads_them():
    markers = ["</s>", "<s>", "[SEP]", "<mask>", "x"]
    texts = ["a</s>b", "<<s>s>", "＜/s＞ x", "[SEP][SEP]", "<</s>/s>", "[S[SEP]EP]"]
    broken = break_markers(texts, markers)
    assert broken[:2] == ["a< /s>b", "<< s>s>"]
    for text in broken:
        assert not any(marker in unicodedata.normalize("NFKC", text) for marker in markers[:-1])
    assert np.all([len(text) > 3 for text in broken])
