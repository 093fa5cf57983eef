"""JointVectors: what tokenizers are fitted to, block by block and as a sample."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from llmrec.tokenizers.shared import vectors as module
from llmrec.tokenizers.shared.vectors import JointVectors
from llmrec.views import ItemViews, View


@pytest.fixture
def views():
    rng = np.random.default_rng(0)
    made = {}
    for name, dim in (("text", 5), ("image", 3)):
        vectors, missing = rng.normal(size=(50, dim)).astype(np.float32), rng.random(50) < 0.3
        vectors[missing] = 0
        made[name] = View(vectors, missing)
    return ItemViews(made)


def joint(views):
    return JointVectors(SimpleNamespace(num_items=50, item_ids=[], source="here"), views, [1.0, 0.5])


def test_blocks_do_not_change_the_vectors(views, monkeypatch):
    parts = [
        normalize(torch.from_numpy(view.vectors)) * weight
        for view, weight in zip(views.values(), (1, 0.5), strict=True)
    ]
    whole = torch.cat(parts, dim=1)
    monkeypatch.setattr(module, "CHUNK", 7)
    known = np.flatnonzero(views.known)
    assert joint(views).to_fit(2).equal(whole[known])
    assert joint(views).of(np.array([31, 2, 49])).equal(whole[[31, 2, 49]])


def test_many_items_are_sampled_unless_everyone_is_needed(views, monkeypatch, capsys):
    known = joint(views).of(np.flatnonzero(views.known))
    monkeypatch.setattr(module, "MOST_FITTED", 20)
    sample = joint(views).to_fit(2)
    assert len(sample) == 20 and sample.equal(joint(views).to_fit(2))
    places = [int((known == point).all(1).nonzero()[0]) for point in sample]
    assert places == sorted(set(places))
    assert f"codes are learned from 20 of {len(known)} items" in capsys.readouterr().err
    assert joint(views).to_fit(2, all_items=True).equal(known)
