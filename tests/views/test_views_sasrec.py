"""SASRec vectors: tastes apart, nothing of held-out rows in them, no vector for what was never trained."""

from __future__ import annotations

import numpy as np
import pytest

from llmrec.views.sasrec import sasrec_view
from tests.views.test_views_hold_out import catalog_of, without_held_out

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"learning_rate": 3e-3, "max_epochs": 12}
SHORT = {"max_epochs": 1}


@pytest.fixture(scope="module")
def sequences():
    """120 users of two tastes, items 0 to 4 and 5 to 9; item 10 alone in a sequence, item 11 in none."""
    rng = np.random.default_rng(0)
    return [*((rng.permutation(5)[:4] + 5 * (user % 2)).tolist() for user in range(120)), [10]]


def test_tastes_are_apart_and_what_was_never_trained_is_missing(sequences):
    view = sasrec_view(catalog_of(sequences), 16, 0, "cpu", **QUICK)
    assert view.vectors.shape == (12, 16) and view.missing.nonzero()[0].tolist() == [10, 11]
    assert not view.vectors[10:].any()
    unit = view.vectors[:10] / np.linalg.norm(view.vectors[:10], axis=1, keepdims=True)
    similarity = unit @ unit.T
    within = similarity[np.kron(np.eye(2), np.ones((5, 5))) - np.eye(10) > 0]
    assert within.mean() > similarity[:5, 5:].mean() + 0.5


def test_law_1_and_the_same_seed(sequences):
    one = sasrec_view(catalog_of(sequences, valid=[[0, 7]], test=[[3, 11]]), 8, 3, "cpu", **SHORT)
    other = sasrec_view(catalog_of(sequences, valid=[[3, 10, 9]], test=[[0, 2]]), 8, 3, "cpu", **SHORT)
    assert one.vectors.tobytes() == other.vectors.tobytes() and (one.missing == other.missing).all()
    assert one.provenance == other.provenance
    blind = sasrec_view(without_held_out(sequences), 8, 3, "cpu", **SHORT)
    assert one.vectors.tobytes() == blind.vectors.tobytes()
    assert not np.allclose(one.vectors, sasrec_view(catalog_of(sequences), 8, 4, "cpu", **SHORT).vectors)


def test_provenance_says_how_to_build_it_again(sequences):
    facts = sasrec_view(catalog_of(sequences), 8, 3, "cpu", **SHORT).provenance
    expected = {"encoder": "sasrec", "hidden": "8", "layers": "2", "heads": "2", "dropout": "0.5", "seed": "3",
                "epoch": "1", "judges": "60", "max_history": "3", "learning_rate": "0.001"}  # fmt: skip
    assert expected.items() <= facts.items()
