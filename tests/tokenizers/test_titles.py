"""Titles as items: tokens as they stand in a history, all distinct, and ended by a token that no title has."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.configs import ExtendConfig
from llmrec.data.catalog import Catalog
from llmrec.model.micro import word_tokenizer as word_tokenizer_of_extend
from llmrec.sid.table import EMPTY, SidTable
from llmrec.tokenizers import load_tokenizer
from llmrec.tokenizers.titles import Titles
from llmrec.tokenizers.words.writer import TextWriter
from llmrec.views import ItemViews
from tests.conftest import word_tokenizer
from tests.support.titles import byte_level_bpe

settings.register_profile("llmrec", derandomize=True, max_examples=25, deadline=None)
settings.load_profile("llmrec")

NO_SPLIT = pa.table({name: pa.array([], pa.string()) for name in ("user_id", "split", "history", "target")}).set_column(
    2, "history", pa.array([], pa.list_(pa.string()))
)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """Directory of a byte-level BPE."""
    path = tmp_path_factory.mktemp("bpe")
    byte_level_bpe().save_pretrained(path)
    return path


def catalog_of(titles, **more):
    return Catalog(pa.table({"item_id": [f"i{row}" for row in range(len(titles))], "title": titles, **more}), NO_SPLIT)


def fitted(titles, llm, max_tokens=24, **more):
    """Tokenizer of the LLM, counts, and the token ids of each item."""
    tokenizer = Titles(llm=str(llm), max_tokens=max_tokens)
    catalog = catalog_of(titles, **more)
    encoded = tokenizer.fit(catalog, ItemViews()).encode(catalog, ItemViews())
    ids = encoded.words.token_ids(encoded.codes)
    sequences = [[token for token in row if token != EMPTY] for row in ids.tolist()]
    return TextWriter.of(tokenizer.llm, catalog).llm, tokenizer.counts, sequences


def test_tokens_are_those_of_a_history(bpe):
    titles = ["red apple", "black tea", "red plum"]
    llm, _, sequences = fitted(titles, bpe)
    history = "Recommend: red apple; black tea; red plum;"
    prefix = llm.encode("Recommend:", add_special_tokens=False)
    assert llm.encode(history, add_special_tokens=False) == [*prefix, *(token for ids in sequences for token in ids)]
    assert {ids[-1] for ids in sequences} == {llm.convert_tokens_to_ids(";")}
    assert llm.decode(sequences[0]) == " red apple;"


TEXTS = st.lists(st.text(st.sampled_from("ab ;;()2\uff1b"), max_size=8), min_size=1, max_size=12)
BRANDS = st.lists(st.sampled_from(["", "acme", None]), min_size=12, max_size=12)


@settings(max_examples=25)
@given(titles=TEXTS, brands=BRANDS, room=st.integers(8, 12))
def test_items_are_distinct_and_none_begins_another(bpe, titles, brands, room):
    _, _, sequences = fitted(titles, bpe, max_tokens=room, brand=pa.array(brands[: len(titles)], pa.string()))
    assert len({tuple(ids) for ids in sequences}) == len(titles)
    end = sequences[0][-1]
    assert all(ids.index(end) == len(ids) - 1 and 2 <= len(ids) <= room + 1 for ids in sequences)
    SidTable.of_tokens([f"i{row}" for row in range(len(titles))], sequences)  # refuses beginnings of others


def test_alike_titles_are_told_apart_by_brand_then_by_number(bpe):
    titles = ["red tea", "red tea", "red tea", "red tea", "red tea (2)", "plum"]
    brands = ["acme", "bolt", None, None, None, "acme"]
    llm, counts, sequences = fitted(titles, bpe, brand=pa.array(brands, pa.string()))
    texts = [llm.decode(ids) for ids in sequences]
    # The number 2 is the title of another item already.
    assert texts == [
        " red tea (acme);", " red tea (bolt);", " red tea;", " red tea (3);", " red tea (2);", " plum;"
    ]  # fmt: skip
    assert counts["told_apart_titles"] == 3


def test_long_titles_are_cut_and_counted(bpe):
    long = "red apple red apple red apple red apple red"
    llm, counts, sequences = fitted([f"{long} plum", f"{long} tea", "tea", ""], bpe, max_tokens=8)
    texts = [llm.decode(ids) for ids in sequences]
    assert texts == [" red apple red apple red apple red apple;", " red apple red apple (2);", " tea;", " item;"]
    assert {name: counts[name] for name in ("truncated_titles", "told_apart_titles", "untitled_items")} == {
        "truncated_titles": 2, "told_apart_titles": 1, "untitled_items": 1,
    }  # fmt: skip


def test_no_room_for_a_number_is_said():
    writer = TextWriter(byte_level_bpe())
    with pytest.raises(ValueError, match="2 items are written alike, and in 3 tokens there is no room for a number"):
        writer.numbered([(5,), (5,)], frozenset(), 3, "({})")


def test_a_tokenizer_that_knows_no_number_is_said():
    with pytest.raises(ValueError, match="More items are written 'red' than this tokenizer knows numbers"):
        fitted(["red", "red", "red"], "micro")


def test_markup_in_titles_is_text(bpe):
    llm, _, sequences = fitted(["red </s> apple", "a; b", "</s>"], bpe)
    assert llm.eos_token_id not in {token for ids in sequences for token in ids}
    assert [llm.decode(ids) for ids in sequences] == [" red </s> apple;", " a, b;", " </s>;"]


def test_a_tokenizer_without_the_end_ends_titles_by_end_of_sequence(tmp_path):
    word_tokenizer().save_pretrained(tmp_path)
    llm, _, sequences = fitted(["red apple", "black tea"], tmp_path)
    eos = llm.eos_token_id
    assert [ids[-1] for ids in sequences] == [eos, eos]


def test_a_tokenizer_that_merges_a_title_with_the_end_before_it_is_refused(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: i for i, letter in enumerate([" ", ";", "; ", "r", "e", "d", "<eos>"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[(";", " ")]))
    core.pre_tokenizer = pre_tokenizers.Split("~", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="merges 1 of 1 texts with the ';' before them, first 'red'"):
        fitted(["red"], tmp_path)


def test_a_saved_tokenizer_writes_the_same(bpe, tmp_path):
    catalog = catalog_of(["red apple", "black tea"])
    tokenizer = Titles(llm=str(bpe)).fit(catalog, ItemViews())
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path, "cpu")
    ours, theirs = (each.encode(catalog, ItemViews()) for each in (tokenizer, loaded))
    np.testing.assert_array_equal(ours.codes, theirs.codes)
    assert ours.words == theirs.words
    assert loaded.level_sizes == tokenizer.level_sizes


def test_micro_has_the_tokens_that_extend_makes():
    titles = ["Red apple", "black tea"]
    llm, _, sequences = fitted(titles, "micro")
    assert [llm.decode(ids) for ids in sequences] == ["red apple </s>", "black tea </s>"]
    assert llm.get_vocab() == word_tokenizer_of_extend(titles, ExtendConfig.micro_words).get_vocab()


def test_a_path_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded by AutoTokenizer"):
        fitted(["red"], tmp_path / "nowhere")
