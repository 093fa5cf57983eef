"""First rows of codes through a linear map from codewords to titles: known truth, least squares, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM

from llmrec.configs import ExtendConfig, TokenizeConfig
from llmrec.model import codeword_rows
from llmrec.model.checkpoint import SidConfig
from llmrec.model.codeword_rows import CodewordMeaning, codebooks_of, fit, title_rows
from llmrec.model.new_rows import ItemWords, add_rows
from llmrec.runtime.manifest import read_manifest
from llmrec.runtime.stage_directory import run_stage
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.stages import extend
from llmrec.tokenizers import RVQ, Random, RQKMeans
from tests.conftest import tiny_llm
from tests.support.clustered import catalog_of, clusters, points, views_of
from tests.support.extended import write_llm, write_toy_catalog

SIZES = (4, 4)


def every_sid(suffix: bool = False) -> SidTable:
    """All 16 pairs of codes, each once; with a suffix level where asked for."""
    codes = np.array([(a, b) for a in range(4) for b in range(4)])
    codes = np.concatenate([codes, np.arange(16)[:, None] % 3], 1) if suffix else codes
    return SidTable([f"i{row}" for row in range(16)], codes, level_sizes=[*SIZES, *([3] if suffix else [])])


def one_word_each() -> ItemWords:
    return ItemWords(torch.arange(16), torch.arange(16), torch.ones(16))


def additive(dim: int = 5, hidden: int = 7) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Codebooks, a map, and word rows that are the map of the sum of their item's codewords, and a constant."""
    books, mapped = [points(4, dim, seed) for seed in (0, 1)], points(dim, hidden, seed=2)
    sums = books[0].repeat_interleave(4, 0) + books[1].repeat(4, 1)
    return books, mapped, sums @ mapped + 3


@pytest.mark.parametrize("suffix", [False, True])
def test_where_titles_are_linear_in_codewords_rows_are_the_parts_of_the_codes(suffix, monkeypatch):
    monkeypatch.setattr(codeword_rows, "RIDGE", 1e-7)
    books, mapped, old = additive()
    meaning = CodewordMeaning(books, every_sid(suffix), one_word_each())
    found = meaning(old)
    assert [meant.codes.tolist() for meant in found] == [[0, 1, 2, 3]] * 2  # none for the suffix
    for book, meant in zip(books, found, strict=True):
        truth = book @ mapped
        torch.testing.assert_close(meant.rows - meant.rows.mean(0), truth - truth.mean(0), rtol=1e-2, atol=1e-2)
    assert meaning.explained == pytest.approx([1.0], abs=1e-4)


def test_the_map_is_ridge_regression_over_items_with_titles(monkeypatch):
    monkeypatch.setattr(codeword_rows, "ITEMS_AT_ONCE", 3)  # titles of one chunk and of several
    sums, old = points(10, 4), points(20, 6, seed=1)
    titles = [[1, 2], [3], [], [4, 4, 5], [6], [7, 8], [], [9, 10, 11, 12], [13], [14]]
    lengths = torch.tensor([len(title) for title in titles])
    words = ItemWords(
        torch.arange(10).repeat_interleave(lengths), torch.tensor([word for title in titles for word in title]),
        (1 / lengths.clamp(min=1)).repeat_interleave(lengths),
    )  # fmt: skip
    titled = lengths > 0
    y = torch.stack([old[title].mean(0) if title else torch.zeros(6) for title in titles])
    torch.testing.assert_close(torch.cat([rows for _, rows in title_rows(words, old, 10)]), y)
    x, y = (part[titled].double() - part[titled].double().mean(0) for part in (sums, y))
    penalty = codeword_rows.RIDGE * (x.T @ x).diagonal().mean()
    # As least squares: the ridge is four more rows that ask for a map of zero.
    stacked = torch.cat([x, penalty.sqrt() * torch.eye(4)]), torch.cat([y, torch.zeros(4, 6)])
    expected = torch.linalg.lstsq(*stacked).solution
    mapped, explained = fit(sums, words, old)
    torch.testing.assert_close(mapped, expected.float(), rtol=1e-4, atol=1e-5)
    assert explained == pytest.approx(1 - float((y - x @ expected).square().sum() / y.square().sum()), abs=1e-5)


def test_titles_that_codes_know_nothing_of_are_not_explained():
    meaning = CodewordMeaning([points(4, 2), points(4, 2, seed=1)], every_sid(), one_word_each())
    meaning(torch.ones(16, 3))
    assert meaning.explained == [0.0]


def test_rows_lean_towards_the_map_and_keep_the_scale_of_old_rows():
    model = tiny_llm(40)
    words = model.get_input_embeddings().weight
    books, mapped, old = additive(hidden=words.shape[1])
    with torch.no_grad():
        words[:16] = 0.2 * old
    before = words.detach().clone()
    add_rows(model, SidVocabulary(SIZES, (32, 36), SIZES, 3), 0, CodewordMeaning(books, every_sid(), one_word_each()))
    rows = model.get_input_embeddings().weight.detach()
    assert torch.equal(rows[:32], before[:32])
    for start, book in zip((32, 36), books, strict=True):
        truth = (book - book.mean(0)) @ mapped
        away = rows[start : start + 4] - before[:32].mean(0)
        assert (cosine_similarity(away, truth, dim=1) > 0.8).all()
    assert rows[32:40].std(0).norm() / before[:32].std(0).norm() == pytest.approx(1, abs=0.5)


@pytest.fixture
def toy(tmp_path):
    """A catalogue of 12 items, semantic IDs of k-means on words' clusters, and an LLM."""
    catalog = write_toy_catalog(tmp_path / "catalog")
    given = catalog_of(12), views_of(text=clusters(12, 6, 4))
    tokenizer = RQKMeans(num_levels=2, codebook_size=3, device="cpu").fit(*given)
    codes = tokenizer.encode(*given).codes
    table = SidTable(catalog.item_ids, np.concatenate([codes, np.arange(12)[:, None]], 1), level_sizes=[3, 3, 12])

    def build(workdir):
        table.save(workdir)
        tokenizer.save_pretrained(workdir)

    run_stage("tokenize", TokenizeConfig(out=str(tmp_path / "sid"), catalog="", views=""), {}, build)
    return tmp_path, catalog.source, str(write_llm(tmp_path / "llm", tied=False))


def test_extend_says_how_much_of_the_titles_codewords_explain(toy, capsys):
    root, catalog, llm = toy
    options = {"sid": str(root / "sid"), "model": llm, "catalog": catalog}
    found = extend.main(ExtendConfig(out=str(root / "base"), rows="codewords", **options))
    extend.main(ExtendConfig(out=str(root / "noise"), **options))
    assert len(found["titles_explained"]) == 2 and all(0 < share <= 1 for share in found["titles_explained"])
    assert "of the variance of mean title rows" in capsys.readouterr().err
    assert read_manifest(root / "base")["counts"]["titles_explained"] == found["titles_explained"]
    vocabulary = SidConfig.load(root / "base")[0].vocabulary
    ours, noise = (AutoModelForCausalLM.from_pretrained(root / name) for name in ("base", "noise"))
    for one, other in zip((ours.get_input_embeddings(), ours.get_output_embeddings()),
                          (noise.get_input_embeddings(), noise.get_output_embeddings()), strict=True):  # fmt: skip
        for level in (0, 1, 2):
            block = vocabulary.block(level)
            assert torch.equal(one.weight[block], other.weight[block]) == (level == 2)  # the suffix means nothing


@pytest.mark.parametrize("tokenizer", [Random(codebook_size=4), RVQ(codebook_size=4, max_epochs=1, device="cpu")])
def test_methods_whose_vectors_do_not_add_up_are_refused_before_any_work(toy, tokenizer):
    root = toy[0]
    tokenizer.fit(catalog_of(40), views_of(text=clusters(40, 6, 4))).save_pretrained(root / "sid")
    with pytest.raises(ValueError, match=f"needs codes whose vectors add up to an item; '{tokenizer.method}'"):
        codebooks_of(root / "sid")


def test_codewords_need_titles_and_a_tokenizer(toy):
    root, catalog, llm = toy
    options = {"sid": str(root / "sid"), "model": llm, "rows": "codewords"}
    with pytest.raises(ValueError, match="rows 'codewords' needs the titles; set catalog"):
        extend.main(ExtendConfig(out=str(root / "base"), **options))
    (root / "sid" / "item_tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"item_tokenizer\.json is missing since `llmrec tokenize` wrote it"):
        extend.main(ExtendConfig(out=str(root / "base"), catalog=catalog, **options))
    with pytest.raises(ValueError, match=r"has no item_tokenizer\.json"):  # of SIDs that were adopted
        codebooks_of(root / "sid")
    assert not (root / "base").exists()
