"""LMIndexer: a planted catalogue is recovered, finished levels stay, prefixes are told apart; files and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from llmrec.tokenizers import load_tokenizer
from llmrec.views import ItemViews, View
from tests.tokenizers.lm_indexer.planted import (
    SUBTOPIC,
    SUBTOPICS,
    TOPIC,
    catalog_of,
    lm_indexer,
    text_view,
    texts,
    write_encoder,
)

SHORT = {"warm_up_epochs": 1, "max_epochs": 1}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Catalogue, its text view, and the directory of the encoder; only read."""
    root = tmp_path_factory.mktemp("planted")
    catalog, encoder = catalog_of(texts()), write_encoder(root / "encoder", texts())
    return catalog, text_view(catalog, encoder, root / "scratch"), encoder


@pytest.fixture(scope="module")
def fitted(planted):
    """Tokenizer of two levels, and the codes of the planted catalogue; only read."""
    catalog, views, _ = planted
    tokenizer = lm_indexer(contrast=0.1).fit(catalog, views)
    return tokenizer, tokenizer.encode(catalog, views)


def conditional_entropy(codes: np.ndarray) -> float:
    """H(c_2 | c_1) in nats."""

    def entropy(counts: np.ndarray) -> float:
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log(shares)).sum())

    pairs = np.bincount(codes[:, 0] * 8 + codes[:, 1], minlength=64)
    return entropy(pairs) - entropy(pairs.reshape(8, 8).sum(axis=1))


def test_planted_topics_and_subtopics_are_recovered_and_codes_are_used(fitted):
    codes = fitted[1].codes
    assert normalized_mutual_info_score(TOPIC, codes[:, 0]) >= 0.8
    assert normalized_mutual_info_score(TOPIC * SUBTOPICS + SUBTOPIC, codes[:, 0] * 8 + codes[:, 1]) >= 0.8
    assert min(len(np.unique(level)) for level in codes.T) >= 0.8 * 8


@pytest.fixture(scope="module")
def codes_of(planted):
    """Codes by a short training of one level, and of two without and with the contrast; half of a text is in sight."""
    catalog, views, _ = planted
    options = {"masking": 0.5, "warm_up_epochs": 10, "max_epochs": 5}
    chosen = {"one": {"num_levels": 1}, "without": {"contrast": 0.0}, "with": {"contrast": 1.0}}
    tokenizers = {name: lm_indexer(**options, **own).fit(catalog, views) for name, own in chosen.items()}
    return {name: tokenizer.encode(catalog, views).codes for name, tokenizer in tokenizers.items()}


def test_finished_levels_stay_while_the_next_one_trains(codes_of):
    """A level alone has the codes that it has below another one, whatever that learns."""
    for name in ("without", "with"):
        np.testing.assert_array_equal(codes_of["one"][:, 0], codes_of[name][:, 0])


def test_the_contrast_within_prefixes_makes_the_second_code_say_more(codes_of):
    """Reconstruction alone repeats the topic at the second level."""
    assert conditional_entropy(codes_of["with"]) > conditional_entropy(codes_of["without"]) + 1


def test_files_give_the_codes_again_and_a_new_item_gets_those_of_its_text(tmp_path, planted, fitted):
    _, _, encoder = planted
    tokenizer, encoded = fitted
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path, "cpu")
    assert again.level_sizes == [8, 8] and again.view_names == ["text"]
    more = catalog_of([*texts(), texts()[17], ""])
    codes = again.encode(more, text_view(more, encoder, tmp_path / "scratch")).codes
    np.testing.assert_array_equal(codes[:-2], encoded.codes)
    assert codes[-2].tolist() == encoded.codes[17].tolist(), "equal texts, equal codes"
    assert codes[-1].min() >= 0, "an item without text has codes, too"


def test_codes_are_the_nearest_to_the_states_and_vectors_are_both_side_by_side(fitted):
    tokenizer, encoded = fitted
    rows = np.array([3, 200])
    states, codes = encoded.vectors(rows), encoded.reconstruction(rows)
    assert states.shape == codes.shape == (2, 2 * 32)
    for level in range(2):
        part = slice(32 * level, 32 * (level + 1))
        book = tokenizer.coder.levels[level].book.codes
        squares = (states[:, None, part] - book).square().sum(2)
        assert squares.argmin(1).tolist() == encoded.codes[rows, level].tolist()
        assert (codes[:, part] == book[encoded.codes[rows, level]]).all()
    np.testing.assert_allclose(encoded.last_level_cost(rows), squares, rtol=1e-4, atol=1e-4)


def test_views_that_have_no_token_states_are_refused(planted):
    catalog, views, _ = planted
    with pytest.raises(ValueError, match=r"view 'text' is of encoder 'tfidf'\. Run `llmrec embed --views text"):
        of_words = View(views["text"].vectors, views["text"].missing, {"encoder": "tfidf", "template": "{text}"})
        lm_indexer().fit(catalog, ItemViews(text=of_words))
    with pytest.raises(ValueError, match=r"one text view and was given \['text', 'other'\]; set view_names to text"):
        lm_indexer().fit(catalog, ItemViews(text=views["text"], other=views["text"]))
    with pytest.raises(ValueError, match=r"latent_dim is 6; its 4 heads need a multiple of 4"):
        lm_indexer(latent_dim=6)


def test_another_encoder_than_that_of_fit_is_refused(planted, fitted):
    catalog, views, _ = planted
    view = views["text"]
    other = View(view.vectors, view.missing, {**view.provenance, "template": "{title}"})
    with pytest.raises(ValueError, match="was fitted on TextSource"):
        fitted[0].encode(catalog, ItemViews(text=other))


def test_more_codes_than_texts_are_refused(planted):
    encoder = planted[2]
    few = catalog_of(["t0w0 s0w0"] * 40)
    with pytest.raises(ValueError, match="all of the 40 item vectors are equal"):
        lm_indexer(**SHORT).fit(few, text_view(few, encoder, encoder.parent / "few"))


def test_other_sizes_than_the_saved_ones_are_refused(tmp_path, fitted):
    tokenizer = lm_indexer(latent_dim=16)
    tokenizer.coder = fitted[0].coder
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no whole tokenizer: level 0 does not fit the options"):
        load_tokenizer(tmp_path, "cpu")
