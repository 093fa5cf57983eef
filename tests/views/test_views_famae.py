"""FAMAE: what is hidden is not read, what is missing is not predicted, and items that share fields are near."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from llmrec.cli import main
from llmrec.data.catalog import Catalog
from llmrec.views import ItemViews, View
from llmrec.views.famae import (
    TRAINING,
    WINDOW,
    Quality,
    Windows,
    best_epoch,
    famae_view,
    hidden_fields,
    item_fields,
    quality,
    train,
    vectors_of,
    windows_of,
)
from llmrec.views.famae_network import FAMAE, PADDING, Field, last_state
from tests.support.prepared import run_json, write_catalog
from tests.views.test_views import split_table

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = dataclasses.replace(TRAINING, max_epochs=9)
SHORT = dataclasses.replace(TRAINING, max_epochs=1)
COLD, UNKNOWN = 60, 61  # item rows of `planted`


def catalog_of(train: list[list[int]], fields: dict[str, list], **held_out: list[list[int]]) -> Catalog:
    ids = [f"item-{row}" for row in range(len(next(iter(fields.values()))))]
    named = {name: [[ids[row] for row in s] for s in rows] for name, rows in {"train": train, **held_out}.items()}
    return Catalog(pa.table({"item_id": ids, "title": ids, **fields}), split_table(**named))


@pytest.fixture(scope="module")
def fields() -> dict[str, list]:
    """60 items of 3 genres and 10 stores, two of each pair; one that nobody took, one without fields either."""
    genres = [[f"g{row % 3}"] if row % 7 else None for row in range(60)]
    return {"genres": [*genres, ["g1"], None], "store": [*(f"s{row // 3 % 10}" for row in range(60)), "s4", None]}


@pytest.fixture(scope="module")
def sequences() -> list[list[int]]:
    """300 users who keep to a genre."""
    rng = np.random.default_rng(0)
    return [(3 * rng.permutation(20)[:6] + rng.integers(3)).tolist() for _ in range(300)]


@pytest.fixture(scope="module")
def view(sequences, fields) -> View:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = famae_view(catalog_of(sequences, fields), 16, 0, "cpu", training=QUICK)
    torch.set_num_threads(threads)
    return found


@pytest.fixture
def small() -> tuple[list[Field], FAMAE]:
    """Five items; item 2 alone has genre 2, item 3 has two genres, item 4 none."""
    genres = Field("genres", np.array([[0, 4], [1, 4], [2, 4], [0, 1], [3, 4]]), 3)
    store = Field("store", np.array([[0], [1], [2], [0], [1]]), 3)
    found = [Field("item_id", np.arange(5)[:, None], 5), genres, store]
    torch.manual_seed(0)
    return found, FAMAE(found, 8).eval()


def rows_with_gradient(weight: torch.nn.Parameter) -> list[int]:
    return [] if weight.grad is None else weight.grad.abs().sum(1).nonzero().flatten().tolist()


def test_fields_are_tables_with_a_value_for_none():
    genres = [["a", "b"], None, ["b", "b"], [], ["a"]]
    own, side = item_fields(catalog_of([[0, 1]], {"genres": genres, "one": ["x"] * 5}))
    assert (own.name, own.values.tolist(), own.num_values) == ("item_id", [[0], [1], [2], [3], [4]], 5)
    assert (side.name, side.num_values) == ("genres", 2)
    assert side.values.tolist() == [[0, 1], [2, 3], [1, 3], [2, 3], [0, 3]]


def test_windows_by_hand():
    found = windows_of([np.array([1, 2, 3]), np.array([4]), np.array([5, 6])])
    assert found.batch(np.arange(3)).tolist() == [[-1, 1, 2], [1, 2, 3], [-1, 5, 6]]
    assert found.batch(np.array([2])).tolist() == [[5, 6]]
    ends = windows_of([np.array([1, 2, 3]), np.array([5, 6])], every=False)
    assert ends.batch(np.arange(2)).tolist() == [[1, 2, 3], [-1, 5, 6]]
    long = windows_of([np.arange(40)])
    assert long.batch(np.array([38])).tolist() == [list(range(40 - WINDOW, 40))] and len(long.ends) == 39


def test_the_last_state_alone_is_that_of_the_whole_block():
    torch.manual_seed(0)
    block, inputs = torch.nn.TransformerEncoderLayer(8, 4, 16, 0.1, batch_first=True).eval(), torch.randn(3, 5, 8)
    padding = torch.arange(5) < torch.tensor([[0], [2], [4]])
    torch.testing.assert_close(last_state(block, inputs, padding), block(inputs, src_key_padding_mask=padding)[:, -1])


def test_the_number_of_hidden_fields_is_uniform_and_then_which():
    hidden = hidden_fields(6000, 3, np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(hidden.sum(1), minlength=4) / 6000, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.02)
    np.testing.assert_allclose(hidden[hidden.sum(1) == 2].mean(0), 2 / 3, atol=0.03)
    np.testing.assert_allclose(hidden[hidden.sum(1) == 1].mean(0), 1 / 3, atol=0.03)


@pytest.mark.parametrize("hidden", [h for h in itertools.product((False, True), repeat=3) if any(h)])
def test_gradient_reaches_what_is_read_and_the_mask_vectors_of_what_is_not(small, hidden):
    _, network = small
    state = network(torch.tensor([[PADDING, 4, 1, 2]]), torch.tensor([hidden]))
    (state * torch.arange(1.0, 9)).sum().backward()
    assert rows_with_gradient(network.masks) == [i for i in range(3) if hidden[i]]
    history = [[1, 4], [1, 3], [1]]  # values of items 4 and 1, where 3 is that item 4 has no genre
    for bag, own, rest in zip(network.embeddings, hidden, history, strict=True):
        assert rows_with_gradient(bag.weight) == sorted({*rest} if own else {*rest, 2})


def test_a_hidden_value_enters_as_a_class_alone(small):
    _, network = small
    items, hidden = np.array([[0, 1, 2]]), np.array([[False, True, False]])
    weight = network.embeddings[1].weight
    whole = torch.autograd.grad(network.loss(items, hidden, np.random.default_rng(0)), weight)[0]
    state = network(torch.from_numpy(items), torch.from_numpy(hidden)).detach()
    as_class = torch.autograd.grad(network.field_loss(state, 1, torch.tensor([2])).sum(), weight)[0]
    torch.testing.assert_close(whole[2], as_class[2])
    assert whole[2].any() and not torch.allclose(whole[0], as_class[0])  # genre 0 is read, too


def test_loss_of_a_set_and_of_samples_by_hand(small):
    """Cosines 1, 0 and -1 with three genres, times sqrt(2)."""
    network = FAMAE(small[0], 4)
    network.embeddings[1].weight.data[:3] = torch.tensor([[2.0, 0, 0, 0], [0, 3, 0, 0], [-0.5, 0, 0, 0]])
    state, high = torch.tensor([[5.0, 0, 0, 0]]), 2.0  # sqrt(4)
    torch.testing.assert_close(network.scores(state, 1, slice(3)), torch.tensor([[high, 0, -high]]))
    total = math.log(math.exp(high) + 1 + math.exp(-high))
    one, both, none = (network.field_loss(state, 1, torch.tensor([item])).item() for item in (0, 3, 4))
    assert one == pytest.approx(total - high) and both == pytest.approx(total - high / 2) and none == 0
    every = torch.arange(3)
    sampled = [network.field_loss(state, 1, torch.tensor([item]), every).item() for item in (0, 3, 4)]
    pair = [math.log(math.exp(own) + math.exp(-high)) - own for own in (high, 0)]  # its other genre is no negative
    assert sampled == pytest.approx([one, sum(pair) / 2, 0])


def test_missing_values_are_never_predicted(small):
    _, network = small
    items, only_genre = np.array([[0, 1, 4]]), np.array([[False, True, False]])
    assert network.loss(items, only_genre, np.random.default_rng(0)).item() == 0
    state = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    network.field_loss(state, 1, torch.arange(5)).sum().backward()
    assert rows_with_gradient(network.embeddings[1].weight) == [0, 1, 2]


def test_quality_counts_the_item_among_ten_and_ties_against_it():
    """Twelve items that no vector tells apart."""
    own, side = Field("item_id", np.arange(12)[:, None], 12), Field("genre", np.arange(12)[:, None] % 2, 2)
    network = FAMAE([own, side], 4).eval()
    network.embeddings[0].weight.data[:] = 1.0
    windows = Windows(np.array([0, 1, 2, 3]), np.array([0, 2]), np.array([1, 3]))
    assert quality(network, windows) == (0, 0)
    network.embeddings[0].weight.data[[1, 3]] = torch.randn(2, 4)
    scores = network.scores(network(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[True, True]] * 2)), 0, slice(12))
    ranks = [(scores[i] >= scores[i, item]).sum().item() for i, item in enumerate((1, 3))]
    assert quality(network, windows).all_hidden == sum(rank <= 10 for rank in ranks) / 2


def test_the_best_epoch_is_that_of_the_largest_product():
    log = [Quality(0.0, 0.2), Quality(0.1, 0.5), Quality(0.2, 0.3), Quality(0.2, 0.3), Quality(0.3, 0.1)]
    assert best_epoch(log) == 2
    assert best_epoch([Quality(0.0, 0.0), Quality(0.0, 0.2), Quality(0.0, 0.1)]) == 1


def test_training_stops_when_neither_metric_rises_and_keeps_the_best_weights(monkeypatch, small):
    said = [(0.1, 0.1), (0.1, 0.5), (0.2, 0.3), (0.1, 0.4), (0.1, 0.5)]  # the best of each: epochs 2 and 1
    kept, network, windows = [], small[1], windows_of([np.array([0, 1, 2])])

    def measure(network: FAMAE, held_out: Windows) -> Quality:
        kept.append(network.masks.detach().clone())
        return Quality(*said[len(kept) - 1])

    monkeypatch.setattr("llmrec.views.famae.quality", measure)
    log = train(network, windows, windows, dataclasses.replace(TRAINING, patience=2), 0)
    assert log == said and torch.equal(network.masks, kept[2]) and not torch.equal(kept[2], kept[4])


def test_items_that_share_fields_are_near_and_the_metrics_are_in_order(view):
    assert view.vectors.shape == (62, 48)
    np.testing.assert_allclose(np.linalg.norm(view.vectors[:60].reshape(60, 3, 16), axis=2), 1, rtol=1e-5)
    rows = np.array([row for row in range(60) if row % 7])  # those with a genre
    cosine = view.vectors[rows] @ view.vectors[rows].T / 3
    shared = (rows[:, None] % 3 == rows % 3) * 1 + (rows[:, None] // 3 % 10 == rows // 3 % 10)
    apart = ~np.eye(len(rows), dtype=bool)
    none, one, two = (cosine[(shared == count) & apart].mean() for count in range(3))
    assert none < one < two
    all_hidden, item_hidden = (float(view.provenance[name]) for name in ("all_hidden", "item_hidden"))
    assert 0.35 < all_hidden < 0.65  # what can be known is the genre, of 20 items
    assert item_hidden > 0.9  # a genre and a store have two


def test_items_that_training_has_not_seen_have_their_fields_alone(view):
    own, genre, store = view.vectors[COLD].reshape(3, 16)
    assert not own.any()
    np.testing.assert_array_equal(genre, view.vectors[1, 16:32])  # g1
    np.testing.assert_array_equal(store, view.vectors[12, 32:])  # s4
    np.testing.assert_array_equal(view.vectors[7, 16:32], view.vectors[0, 16:32])  # no genre, which is learned
    assert view.missing.nonzero()[0].tolist() == [UNKNOWN]


def test_values_of_untrained_items_alone_are_zero(small):
    vectors, known = vectors_of(small[1], np.array([0, 1]))
    assert vectors.reshape(5, 3, 8).any(axis=2).tolist() == [
        [True, True, True],
        [True, True, True],
        [False, False, False],  # genre 2 and store 2 are its own
        [False, True, True],  # genres 0 and 1, store 0
        [False, False, True],  # no trained item lacks a genre
    ]
    assert known.tolist() == [True, True, False, True, True]
    own = torch.nn.functional.normalize(small[1].embeddings[1].weight[:2].sum(0), dim=0)
    np.testing.assert_allclose(vectors[3, 8:16], own.detach().numpy(), rtol=1e-5)


def test_the_rate_falls_along_a_cosine_to_nothing_at_the_last_epoch(monkeypatch, small):
    """Two epochs of three steps: halfway down at the end of the first, nothing left at the end of the second."""
    windows, rates = windows_of([np.array([0, 1]), np.array([1, 2]), np.array([2, 3])]), []

    def measure(network: FAMAE, held_out: Windows) -> Quality:
        rates.append(optimizers[0].param_groups[0]["lr"])
        return Quality(0.0, 0.0)

    made, optimizers = torch.optim.AdamW, []

    def remembered(*args, **options) -> torch.optim.Optimizer:
        optimizers.append(made(*args, **options))
        return optimizers[0]

    monkeypatch.setattr("torch.optim.AdamW", remembered)
    monkeypatch.setattr("llmrec.views.famae.quality", measure)
    train(small[1], windows, windows, dataclasses.replace(TRAINING, max_epochs=2), 0)
    assert rates == pytest.approx([TRAINING.learning_rate / 2, 0], abs=1e-9)


def test_law_1_and_the_same_seed(sequences, fields):
    short = sequences[:60]
    blind = catalog_of(short, fields, valid=[[0, 1]], test=[[0, 1]])
    examples = blind.examples

    def guarded(split: str):
        assert split == "train", f"law 1: {split} examples were read"
        return examples(split)

    blind.examples = guarded
    first = famae_view(blind, 8, 3, "cpu", training=SHORT)
    second = famae_view(catalog_of(short, fields, valid=[[3, 60]], test=[[2, 5]]), 8, 3, "cpu", training=SHORT)
    assert first.vectors.tobytes() == second.vectors.tobytes() and first.provenance == second.provenance
    assert not np.allclose(first.vectors, famae_view(blind, 8, 4, "cpu", training=SHORT).vectors)


def test_a_field_with_many_values_is_learned_from_samples(monkeypatch, sequences, fields):
    monkeypatch.setattr("llmrec.views.famae_network.MOST_CLASSES", 20)
    monkeypatch.setattr("llmrec.views.famae_network.NEGATIVES", 16)
    found = famae_view(catalog_of(sequences, fields), 16, 0, "cpu", training=dataclasses.replace(QUICK, max_epochs=18))
    assert float(found.provenance["item_hidden"]) > 0.8  # a genre alone gives .5


def test_one_value_is_left_out_with_a_word_and_no_field_is_an_error(capfd, sequences, fields):
    given = {**fields, "shop": ["x"] * 62}
    found = famae_view(catalog_of(sequences[:60], given), 8, 0, "cpu", training=SHORT)
    assert found.provenance["fields"] == "['item_id', 'genres', 'store']"
    assert "famae leaves out ['shop']" in " ".join(capfd.readouterr().err.split())
    with pytest.raises(ValueError, match=r"of the columns \['item_id', 'title', 'shop'\].*none is one"):
        item_fields(catalog_of(sequences, {"shop": ["x"] * 62}))


def test_the_stage_builds_it_and_refuses_before_any_work(capsys, tmp_path, sequences, fields):
    made = catalog_of(sequences[:40], fields, valid=[[0, 1]], test=[[0, 1]])
    prepared = write_catalog(tmp_path / "catalog", made.items, made._split)
    argv = ["embed", "--catalog", prepared.source, "--views", "famae", "--out", tmp_path / "views"]
    assert main([*map(str, argv), "--famae-dim", "6"]) == 2
    assert "famae_dim is 6; the heads of 'famae' need a multiple of 4" in capsys.readouterr().err
    result = run_json(capsys, *argv, "--famae-dim", 8)
    assert result["views"]["famae"]["dim"] == 24
    assert ItemViews.load(tmp_path / "views", prepared)["famae"].vectors.dtype == np.float32
    assert result["seconds"].keys() == {"famae"} and result["seconds"]["famae"] > 0
    plain = write_catalog(tmp_path / "plain", made.items.select(["item_id", "title"]), made._split)
    assert main(["embed", "--catalog", str(plain.source), "--views", "famae", "--out", str(tmp_path / "no")]) == 2
    assert "view 'famae' needs a side field" in capsys.readouterr().err
    assert not list(tmp_path.glob("no*"))
