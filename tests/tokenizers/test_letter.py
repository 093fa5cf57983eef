"""LETTER: alignment and diversity by hand, clusters of codes, the collaborative view, files, seeds and bad input."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.tokenizers.letter import Letter, alignment_loss, clusters_of, diversity_loss, draw_partners
from llmrec.tokenizers.shared.vectors import JointVectors
from tests.support.clustered import books_of, catalog_of, clusters, points, views_of

BOOK = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])


def letter(**options) -> Letter:
    small = {"num_levels": 2, "codebook_size": 16, "encoder_layers": [32], "batch_size": 128, "sinkhorn_epsilon": 0.0}
    return Letter(**{**small, "device": "cpu", "max_epochs": 30, **options})


def views(num_items: int = 300, dim: int = 4):
    """Text in clusters, and collaborative vectors in the same clusters; item 3 was consumed by nobody."""
    collaborative = 2 * clusters(num_items, dim, 20, spread=0.05)
    collaborative[3] = 0
    return views_of(sasrec=collaborative, text=clusters(num_items, 10, 20))


def objective_of(tokenizer: Letter, num_items: int = 300):
    given_views = views(num_items)
    vectors = JointVectors(catalog_of(num_items), given_views, without=tokenizer.unquantised_view)
    targets = tokenizer.targets(given_views, vectors.known)
    return tokenizer.objective(vectors.of(np.arange(num_items)), targets, torch.Generator().manual_seed(0))


def test_alignment_by_hand():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = alignment_loss(vectors, targets, torch.tensor([True, True]))
    # Dot products: row 0 has 1 and 0, row 1 has 0 and 2.
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 2)
    loss.backward()
    # d/dv_0: half of the other's chance times (other - own).
    q = 1 / (1 + math.e)
    torch.testing.assert_close(vectors.grad[0], torch.tensor([-q / 2, q / 2]))


def test_items_without_a_collaborative_vector_take_no_part_in_the_alignment():
    vectors = torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.0, 2.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    known = torch.tensor([True, False, True])
    loss = alignment_loss(vectors, targets, known)
    assert loss.item() == pytest.approx(alignment_loss(vectors[known], targets[known], known[known]).item())
    loss.backward()
    assert vectors.grad[1].tolist() == [0, 0] and vectors.grad[0].any()
    nobody = alignment_loss(vectors, targets, torch.zeros(3, dtype=torch.bool))
    nobody.backward()
    assert nobody == 0 and vectors.grad.isfinite().all()


def test_diversity_by_hand():
    book = BOOK.clone().requires_grad_()
    loss = diversity_loss(book, torch.tensor([0]), torch.tensor([1]))
    # Code 0 with 1 and 2: products 1 and 0; itself does not count.
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))
    loss.backward()
    q = 1 / (1 + math.e)  # chance of the wrong one, code 2
    # d/de_0 = q (e_2 - e_1), d/de_1 = -q e_0, d/de_2 = q e_0.
    torch.testing.assert_close(book.grad, q * torch.tensor([[-1.0, 1.0], [-1.0, 0.0], [1.0, 0.0]]))


def test_diversity_averages_over_items_and_skips_codes_alone_in_their_cluster():
    codes = torch.tensor([0, 2, 0, 2])
    alone = draw_partners(codes, clusters_of(torch.tensor([0, 0, 1])), torch.Generator().manual_seed(0))
    assert alone.tolist() == [1, 2, 1, 2]
    assert diversity_loss(BOOK, codes, alone).item() == pytest.approx(math.log(1 + math.exp(-1)) / 2)
    everyone = draw_partners(torch.arange(3), clusters_of(torch.arange(3)), torch.Generator().manual_seed(0))
    assert everyone.tolist() == [0, 1, 2] and diversity_loss(BOOK, torch.arange(3), everyone) == 0


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(0, 100))
def test_partners_are_others_of_the_same_cluster(cluster, seed):
    cluster_K = torch.tensor(cluster).unique(return_inverse=True)[1]  # cluster numbers without gaps
    codes = torch.arange(len(cluster)).repeat(40)
    partners = draw_partners(codes, clusters_of(cluster_K), torch.Generator().manual_seed(seed))
    assert torch.equal(cluster_K[partners], cluster_K[codes])
    sizes = torch.bincount(cluster_K)[cluster_K[codes]]
    assert torch.equal(partners == codes, sizes == 1)


def test_every_other_member_is_drawn():
    partners = draw_partners(torch.zeros(200, dtype=torch.int64), clusters_of(torch.tensor([0, 1, 0, 0])),
                             torch.Generator().manual_seed(0))  # fmt: skip
    assert torch.bincount(partners, minlength=4)[[2, 3]].min() > 60


@pytest.mark.parametrize(("codes", "sizes"), [(2, [2]), (3, [3]), (16, [2] * 8), (64, [6] * 6 + [7] * 4)])
def test_clusters_are_of_one_size_and_nobody_is_alone(codes, sizes):
    objective = objective_of(letter(codebook_size=codes))
    objective.before_epoch(1)
    assert [sorted(torch.bincount(clusters.cluster).tolist()) for clusters in objective.clusters] == [sizes] * 2


def test_clusters_are_renewed_once_per_hundred_steps():
    objective = objective_of(letter())
    objective.before_epoch(1)
    first = objective.clusters
    objective.before_epoch(100)
    assert objective.clusters is first
    objective.before_epoch(101)
    assert objective.clusters is not first


def test_the_loss_has_each_part_at_its_weight():
    rows = torch.arange(100)

    def loss(**options):
        objective = objective_of(letter(**options))
        objective.before_epoch(1)
        return objective.loss(rows).item()

    plain, aligned, spread = loss(alpha=0, beta=0), loss(alpha=0.5, beta=0), loss(alpha=0, beta=8)
    objective = objective_of(letter())
    objective.before_epoch(1)
    quantized = objective.quantizer(objective.network.encode(objective.points[rows]))
    alignment = alignment_loss(quantized.vector, objective.targets.vectors[rows], objective.targets.known[rows]).item()
    assert not objective.targets.known[3] and objective.targets.known.sum() == 299
    assert aligned - plain == pytest.approx(0.5 * alignment, rel=1e-4)
    diversity = [
        diversity_loss(book, codes, draw_partners(codes, clusters, objective.generator)).item()
        for book, codes, clusters in zip(objective.quantizer.levels, quantized.codes.T, objective.clusters, strict=True)
    ]
    assert spread - plain == pytest.approx(8 / 2 * sum(diversity), rel=1e-4)  # beta / L per level


def test_every_weight_gets_a_gradient_and_the_collaborative_vectors_none():
    objective = objective_of(letter(codebook_size=2))
    objective.before_epoch(1)
    before = objective.targets.vectors.clone()
    objective.loss(torch.arange(300)).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in objective.parameters())
    assert not objective.targets.vectors.requires_grad and torch.equal(objective.targets.vectors, before)


def test_alignment_brings_codes_to_the_collaborative_vectors():
    catalog, given_views = catalog_of(300), views()
    targets = torch.from_numpy(given_views["sasrec"].vectors)
    losses = []
    for alpha in (0.0, 0.5):
        tokenizer = letter(alpha=alpha, learning_rate=1e-2, max_epochs=30).fit(catalog, given_views)
        codes = torch.from_numpy(tokenizer.encode(catalog, given_views).codes)
        vectors = sum(book[column] for book, column in zip(books_of(tokenizer), codes.T, strict=True))
        losses.append(alignment_loss(vectors[:20], targets[:20], targets[:20].any(1)).item())
    assert losses[1] < 0.5 * losses[0]


def test_the_collaborative_view_is_not_quantised_unless_asked_and_encode_needs_none():
    catalog, given_views = catalog_of(300), views()
    tokenizer = letter(max_epochs=2, view_weights=[9, 0.5]).fit(catalog, given_views)
    encoded = tokenizer.encode(catalog, given_views)
    assert tokenizer.coder.view_dims == {"text": 10} and books_of(tokenizer)[0].shape == (16, 4)
    assert encoded.vectors(np.arange(5)).norm(dim=1).tolist() == pytest.approx([0.5] * 5)
    plain = letter(max_epochs=2).fit(catalog, given_views)
    without = plain.encode(catalog, views_of(text=given_views["text"].vectors))
    np.testing.assert_array_equal(without.codes, plain.encode(catalog, given_views).codes)
    both = letter(max_epochs=2, quantize_collaborative=True).fit(catalog, given_views)
    assert both.coder.view_dims == {"sasrec": 4, "text": 10}


def test_save_load_and_law_12(tmp_path):
    catalog, given_views = catalog_of(300), views()
    options = {"max_epochs": 3, "sinkhorn_epsilon": 0.003, "latent_dim": 4}
    first, second, other = (letter(seed=seed, **options).fit(catalog, given_views) for seed in (0, 0, 1))
    codes = first.encode(catalog, given_views).codes
    np.testing.assert_array_equal(codes, second.encode(catalog, given_views).codes)
    assert not torch.equal(books_of(first)[0], books_of(other)[0])
    first.save_pretrained(tmp_path)
    loaded = Letter.from_pretrained(tmp_path, device="cpu")
    np.testing.assert_array_equal(loaded.encode(catalog, given_views).codes, codes)


def test_a_directory_of_an_earlier_version_is_read(tmp_path):
    """It has options that are gone or have another name."""
    catalog, given_views = catalog_of(300), views()
    tokenizer = letter(max_epochs=2, num_clusters=3).fit(catalog, given_views)
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "item_tokenizer.json").read_text())
    settings["options"] |= {"num_groups": settings["options"].pop("num_clusters"), "ste": "per_level"}
    (tmp_path / "item_tokenizer.json").write_text(json.dumps(settings))
    again = Letter.from_pretrained(tmp_path, device="cpu")
    assert again == tokenizer and again.num_clusters == 3
    codes = tokenizer.encode(catalog, given_views).codes
    np.testing.assert_array_equal(again.encode(catalog, given_views).codes, codes)
    settings["options"]["num_grups"] = 3
    (tmp_path / "item_tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"holds no whole tokenizer: .*num_grups"):
        Letter.from_pretrained(tmp_path, device="cpu")


def test_twelve_items():
    given_views = views_of(text=points(12, 5), sasrec=points(12, 3, seed=1))
    tokenizer = letter(codebook_size=12, max_epochs=20).fit(catalog_of(12), given_views)
    assert tokenizer.encode(catalog_of(12), given_views).codes.shape == (12, 2)


@pytest.mark.parametrize(
    ("given_views", "options", "message"),
    [
        ({"text": 5}, {}, r"with the view 'sasrec', and the views are \['text'\].*llmrec embed --views text sasrec"),
        ({"sasrec": 5}, {}, r"the views are \['sasrec'\]. Give both"),
        ({"text": 5, "collaborative": 4}, {}, r"with the view 'sasrec', and the views are \['text', 'collaborative'\]"),
        ({"text": 5, "sasrec": 4}, {"latent_dim": 8}, "latent_dim is 8 but the view "
         "'sasrec' has dimension 4.*leave latent_dim out"),
    ],
)  # fmt: skip
def test_views_that_do_not_do_are_refused(given_views, options, message):
    blocks = views_of(**{name: points(40, dim) for name, dim in given_views.items()})
    with pytest.raises(ValueError, match=message):
        letter(**options).fit(catalog_of(40), blocks)


def test_a_collaborative_view_of_another_catalogue_is_refused():
    with pytest.raises(ValueError, match="view 'sasrec' has 41 rows but the catalogue has 40 items"):
        letter().fit(catalog_of(40), views_of(text=points(40, 4), sasrec=points(41, 4)))
