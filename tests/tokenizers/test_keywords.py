"""Keywords as items: the words that set a text apart, further words until no other item has them, and then a number."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.sid.table import EMPTY, SidTable
from llmrec.tokenizers import load_tokenizer
from llmrec.tokenizers.keywords import MOST_WORDS, Keywords, ranked_words
from llmrec.tokenizers.words.writer import TextWriter
from llmrec.views import ItemViews
from tests.support.titles import byte_level_bpe
from tests.tokenizers.test_titles import catalog_of

settings.register_profile("llmrec", derandomize=True, max_examples=25, deadline=None)
settings.load_profile("llmrec")


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """Directory of a byte-level BPE."""
    path = tmp_path_factory.mktemp("bpe")
    byte_level_bpe().save_pretrained(path)
    return str(path)


def written(texts, llm, **options):
    """Identifiers as text and as tokens, and what is counted."""
    catalog = catalog_of(["" for _ in texts], text=pa.array(texts, pa.string()))
    tokenizer = Keywords(llm=llm, **options)
    encoded = tokenizer.fit(catalog, ItemViews()).encode(catalog, ItemViews())
    ids = encoded.words.token_ids(encoded.codes)
    sequences = [[token for token in row if token != EMPTY] for row in ids.tolist()]
    llm_tokenizer = TextWriter.of(llm, catalog).llm
    return [llm_tokenizer.decode(row) for row in sequences], sequences, tokenizer.counts


def test_words_are_ranked_by_weight_and_those_of_one_item_and_numbers_come_last(bpe):
    # The inverse frequencies fall from red (2 items) to tea (3); twice tea weighs more than once red.
    texts = ["tea red", "tea tea red", "tea plum 7 s", "red 7 s"]
    catalog = catalog_of(texts)
    writer = TextWriter.of(bpe, catalog)
    assert ranked_words(catalog, writer) == [
        ["red", "tea"], ["tea", "red"], ["tea", "plum", "7", "s"], ["red", "7", "s"]
    ]  # fmt: skip


def test_an_item_takes_further_words_until_no_other_has_them_and_then_a_number(bpe):
    texts = ["red tea cup", "red tea cup big", "red tea cup big", "red tea cup", "red tea cup", "big"]
    names, _, counts = written(texts, bpe, min_words=2)
    # Both words of two letters or more that all but one have weigh alike, so they stand in alphabetical order.
    assert names == [" cup red;", " big cup;", " big cup red;", " cup red tea;", " cup red tea 2;", " big;"]
    assert (counts["items_with_further_words"], counts["items_with_a_number"]) == (2, 1)


def test_a_number_that_is_a_word_of_another_item_is_left_out(bpe):
    names, _, _ = written(["red 2", "red", "red", "red"], bpe)
    assert names == [" red 2;", " red;", " red 3;", " red 4;"]


TEXTS = st.lists(st.text(st.sampled_from("abc 2;\u4e2d"), max_size=30), min_size=1, max_size=14)


@settings(max_examples=25)
@given(texts=TEXTS, min_words=st.integers(1, MOST_WORDS), room=st.integers(8, 12))
def test_items_are_distinct_and_none_begins_another(bpe, texts, min_words, room):
    texts[0] += " a"  # a catalogue needs a word
    names, sequences, counts = written(texts, bpe, min_words=min_words, max_tokens=room)
    assert len(set(names)) == len({tuple(ids) for ids in sequences}) == len(texts)
    end = sequences[0][-1]
    assert all(ids.index(end) == len(ids) - 1 and 2 <= len(ids) <= room + 1 for ids in sequences)
    assert max(len(name.split()) for name in names) <= MOST_WORDS + 1  # ten words and a number
    SidTable.of_tokens([f"i{row}" for row in range(len(texts))], sequences)  # refuses beginnings of others
    assert counts["items_without_a_word"] == sum(not "".join(filter(str.isalnum, text)) for text in texts)


def test_the_same_catalogue_has_the_same_keywords(bpe):
    texts = ["red apple tea", "green apple", "black tea", None]
    assert written(texts, bpe)[1] == written(texts, bpe)[1]


def test_tokens_are_those_of_a_history(bpe):
    names, sequences, _ = written(["red apple", "black tea", "red plum"], bpe)
    llm = byte_level_bpe()
    prefix = llm.encode("Recommend:", add_special_tokens=False)
    history = llm.encode(f"Recommend:{''.join(names)}", add_special_tokens=False)
    assert history == [*prefix, *(token for ids in sequences for token in ids)]


def test_long_words_are_cut_and_items_without_words_are_numbered(bpe):
    long = "qzqzqzqzqzqzqzqzqzqz"
    names, _, counts = written([f"{long}a", f"{long}b", "tea", "", "!"], bpe, max_tokens=8)
    assert names == [" qzqzqzq;", " qzqzq 2;", " tea;", " item;", " item 2;"]
    assert (counts["truncated_items"], counts["items_without_a_word"], counts["items_with_a_number"]) == (2, 2, 2)


def test_words_that_micro_does_not_know_are_left_out():
    catalog = catalog_of(["red apple", "black tea"], text=["red apple from Ghent", "black tea from Ghent"])
    assert ranked_words(catalog, TextWriter.of("micro", catalog)) == [["apple", "red"], ["black", "tea"]]


def test_a_title_stands_in_for_a_text(bpe):
    catalog = catalog_of(["red apple", "black tea"], text=[None, "cold coffee"])
    assert ranked_words(catalog, TextWriter.of(bpe, catalog)) == [["apple", "red"], ["coffee", "cold"]]


def test_a_saved_tokenizer_writes_the_same(bpe, tmp_path):
    catalog = catalog_of(["red apple", "black tea", "red apple"])
    tokenizer = Keywords(llm=bpe, min_words=1).fit(catalog, ItemViews())
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path, "cpu")
    ours, theirs = (each.encode(catalog, ItemViews()) for each in (tokenizer, loaded))
    np.testing.assert_array_equal(ours.codes, theirs.codes)
    assert ours.words == theirs.words
    assert loaded.level_sizes == tokenizer.level_sizes == list(ours.words.level_sizes)


@pytest.mark.parametrize("texts", [["", None], ["!", "?"]])
def test_a_catalogue_without_words_is_refused(bpe, texts):
    with pytest.raises(ValueError, match=r"No item of .* has a word in its text or title, so there are no keywords"):
        written(texts, bpe)


def test_micro_without_titles_is_refused():
    with pytest.raises(ValueError, match="The tokenizer knows none of the 2 words of the texts, first 'apple'"):
        written(["red apple"], "micro")


def test_a_path_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded by AutoTokenizer"):
        written(["red"], str(tmp_path / "nowhere"))
