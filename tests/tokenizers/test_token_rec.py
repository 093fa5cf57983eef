"""TokenRec's masked quantisers: gradients, masks, codes by hand, use of the codebooks, files, seeds and new items."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.configs.options import out_of_bounds
from llmrec.tokenizers import load_tokenizer
from llmrec.tokenizers.token_rec import MaskedObjective, TokenRec
from tests.support.clustered import catalog_of, clusters, points, rebuilt_cosine, views_of


def token_rec(**options) -> TokenRec:
    small = {"codebook_size": 16, "encoder_layers": [24], "latent_dim": 12, "batch_size": 128, "max_epochs": 30}
    return TokenRec(**{**small, "device": "cpu", **options})


def fitted(tokenizer: TokenRec, vectors: torch.Tensor):
    catalog, views = catalog_of(len(vectors)), views_of(lightgcn=vectors)
    return tokenizer.fit(catalog, views), tokenizer.encode(catalog, views)


def objective_of(vectors: torch.Tensor, **options) -> MaskedObjective:
    tokenizer = token_rec(**options)
    learner = MaskedObjective(vectors, tokenizer.network(vectors.shape[1]), tokenizer.masking, seed=0)
    learner.start(torch.Generator().manual_seed(0))
    return learner


def test_every_encoder_has_the_gradient_of_the_reconstruction():
    """The released code gives it to none but the first."""
    learner = objective_of(clusters(200, 8, 16), masking=0.0)
    lost, _ = learner.network.losses(learner.points)
    lost.backward()
    for encoder in learner.network.encoders:
        assert encoder[0].weight.grad.abs().sum() > 0
    assert all(book.levels[0].grad is None or not book.levels[0].grad.any() for book in learner.network.quantizers)


def test_the_loss_of_the_books_has_both_terms():
    """|sg(z) - code|^2 + commitment |z - sg(code)|^2, each a mean over rows and numbers, summed over the books."""
    learner = objective_of(clusters(200, 8, 16), masking=0.0, commitment=0.5).requires_grad_(False)
    network = learner.network
    _, of_books = network.losses(learner.points)
    latents = network.encode(learner.points)
    distances = [(z - network.book(i)[torch.cdist(z, network.book(i)).argmin(1)]).square().mean()
                 for i, z in enumerate(latents)]  # fmt: skip
    assert float(of_books) == pytest.approx(1.5 * float(sum(distances)), rel=1e-4)


def test_encoders_hide_other_numbers_and_only_in_training(monkeypatch):
    learner, shown = objective_of(points(400, 10), masking=0.3), []
    original = learner.network.encode
    monkeypatch.setattr(learner.network, "encode", lambda x, mask=None: shown.append(mask) or original(x, mask))
    learner.loss(torch.arange(400))
    learner.validation_loss(torch.arange(400))
    masks, without = shown
    assert without is None and masks.shape == (3, 400, 10) and set(masks.unique().tolist()) == {0.0, 1.0}
    assert float(masks.mean()) == pytest.approx(0.7, abs=0.02)
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[0, 0], masks[0, 1])


def test_codes_are_the_nearest_of_each_book_and_the_decoder_reads_their_sum():
    vectors = clusters(300, 8, 20)
    tokenizer, encoded = fitted(token_rec(), vectors)
    network = tokenizer.coder.quantizer
    rows = np.array([0, 7, 299])
    latents = network.encode(encoded.vectors(rows))
    by_hand = [torch.cdist(z, network.book(level)).argmin(1) for level, z in enumerate(latents)]
    assert torch.stack(by_hand, 1).tolist() == encoded.codes[rows].tolist()
    total = sum(network.book(level)[codes] for level, codes in enumerate(by_hand))
    rebuilt = network.decoder(total) / network.scale + network.mean
    torch.testing.assert_close(encoded.reconstruction(rows), rebuilt)
    costs = encoded.last_level_cost(rows)
    torch.testing.assert_close(costs, torch.cdist(latents[-1], network.book(2)).square(), atol=1e-4, rtol=1e-4)


def test_codes_are_used_and_training_rebuilds_better_than_the_start():
    vectors = clusters(1500, 24, 40)
    start = rebuilt_cosine(fitted(token_rec(max_epochs=0), vectors)[1])
    _, encoded = fitted(token_rec(max_epochs=60, learning_rate=3e-3), vectors)
    assert min(len(np.unique(codes)) for codes in encoded.codes.T) >= 0.8 * 16
    assert rebuilt_cosine(encoded) > max(0.8, start)


def test_the_same_seed_gives_the_same_codes_and_files_give_them_again(tmp_path):
    vectors = clusters(300, 8, 20)
    tokenizer, encoded = fitted(token_rec(max_epochs=5), vectors)
    np.testing.assert_array_equal(fitted(token_rec(max_epochs=5), vectors)[1].codes, encoded.codes)
    assert (fitted(token_rec(max_epochs=5, seed=1), vectors)[1].codes != encoded.codes).any()
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path, "cpu")
    assert again.level_sizes == [16, 16, 16] and again.view_names == ["lightgcn"]
    catalog, views = catalog_of(300), views_of(lightgcn=vectors)
    np.testing.assert_array_equal(again.encode(catalog, views).codes, encoded.codes)


def test_a_new_item_has_the_codes_of_its_neighbour():
    vectors = clusters(300, 8, 20)
    tokenizer, encoded = fitted(token_rec(max_epochs=5), vectors)
    more = torch.cat([vectors, vectors[41:42]])
    codes = tokenizer.encode(catalog_of(301), views_of(lightgcn=more)).codes
    np.testing.assert_array_equal(codes[:300], encoded.codes)
    assert codes[300].tolist() == encoded.codes[41].tolist()


def test_other_layers_than_the_saved_ones_are_refused(tmp_path):
    tokenizer, _ = fitted(token_rec(max_epochs=1), clusters(100, 8, 20))
    tokenizer.latent_dim = 7
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no whole tokenizer: its network does not fit the options"):
        load_tokenizer(tmp_path, "cpu")


def test_hiding_everything_is_refused():
    with pytest.raises(ValueError, match="masking"):
        token_rec(masking=1.0)


def test_a_batch_of_one_item_is_refused():
    """Batch normalisation has no variance there."""
    field = TokenRec.__dataclass_fields__["batch_size"]
    assert out_of_bounds(field, 1) and not out_of_bounds(field, 2)
