"""Head `projection`: the paper's cosine loss by hand, exact rankings that tell colliding items apart, what trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_embedding_loss

from llmrec.model.backbone import run_backbone
from llmrec.model.heads.choice import make_head
from llmrec.model.heads.own_files import HEAD, saved_apart
from llmrec.model.heads.projection import ProjectedState, cosine_loss
from llmrec.model.heads.weights import grow_vectors, load_head
from llmrec.model.prompts import Prompt
from llmrec.training.weights import add_adapter
from tests.model.test_heads import CPU, ITEMS, UNKNOWN, ranker_of, scene, scores_by_hand
from tests.support.extended import sft_config


def test_the_cosine_loss_of_the_paper_by_hand():
    """Target (1, 0), state (.6, .8), other item (0, 1), margin 0: (1 - .6) + .8 = 1.2, of which the mean is .6."""
    cosines = torch.tensor([[0.6, 0.8]])
    assert float(cosine_loss(cosines, torch.tensor([0]), torch.tensor([1]))) == pytest.approx(0.6)
    assert float(cosine_loss(cosines, torch.tensor([-100]), torch.tensor([1]))) == 0
    assert float(cosine_loss(-cosines, torch.tensor([1]), torch.tensor([0]))) == pytest.approx(0.9), "no reward below 0"


@torch.no_grad()
def test_the_cosine_loss_is_that_of_pytorch_over_targets_and_others():
    one = scene("projection")
    targets, others = torch.tensor([5, 31, 0]), torch.tensor([7, 2, 9])
    asked = getattr(one.model, HEAD)(one.states)
    signs = torch.tensor([1.0, 1, 1, -1, -1, -1])
    theirs = cosine_embedding_loss(torch.cat([asked, asked]), one.vectors[torch.cat([targets, others])], signs)
    ours = cosine_loss(one.head.cosines(one.model, one.states), targets, others)
    assert float(ours) / 3 == pytest.approx(float(theirs), abs=1e-5)


@torch.no_grad()
def test_the_other_item_is_never_the_target(monkeypatch):
    one, seen = scene("projection"), []
    head = make_head(one.model, one.encoder, one.vocabulary, CPU, "cosine")
    monkeypatch.setattr("llmrec.model.heads.projection.cosine_loss", lambda *a: seen.append(a[1:]) or a[0].sum())
    states, targets = torch.randn(2000, 32), torch.arange(2000) % ITEMS
    head.loss(one.model, states, targets)
    assert (seen[0][0] != seen[0][1]).all() and set(seen[0][1].tolist()) == set(range(ITEMS))


@torch.no_grad()
def test_the_best_items_are_those_of_the_cosines_and_colliding_ones_are_apart():
    one, histories = scene("projection"), [np.array([3, 31, 5]), np.array([9])]
    ranking = ranker_of(one).rank(histories, k=ITEMS)
    for row, history in enumerate(histories):
        ids = [*Prompt("red apple").prefix(one.tokenizer), *one.encoder.encode_history(history)]
        assert len(ids) == len(Prompt("red apple").prefix(one.tokenizer)) + 4 * len(history), "semantic IDs are read"
        state = run_backbone(one.model, input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        expected = scores_by_hand(one, state)
        assert ranking.items[row].tolist() == expected.argsort(descending=True).tolist()
        np.testing.assert_allclose(ranking.scores[row], expected.sort(descending=True).values, atol=1e-4)
        assert ranking.items[row][-1] == UNKNOWN, "an item without a vector comes last"
        assert len(set(ranking.groups[row].tolist())) == ITEMS
    assert one.codes[7].tolist() == one.codes[31].tolist()


def test_under_lora_the_projection_trains_and_the_vectors_do_not():
    one = scene("projection", tied=False)
    adapted = add_adapter(one.model, sft_config("", "", ""), one.vocabulary)
    head = make_head(adapted, one.encoder, one.vocabulary, CPU)
    ids = torch.tensor([[1, *one.encoder.encode_history([3, 9])]])
    states = run_backbone(one.model, input_ids=ids).last_hidden_state[0]
    head.loss(one.model, states[-2:], torch.tensor([2, 3])).backward()
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    kinds = {next(kind for kind in ("lora", "trainable_tokens", HEAD) if kind in name) for name in trained}
    assert kinds == {"lora", "trainable_tokens", HEAD}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in trained.items() if HEAD in name)
    assert torch.equal(head.vectors_ND, one.vectors)


@torch.no_grad()
def test_a_file_keeps_the_head_and_an_appended_item_is_ranked_next_to_its_neighbour(tmp_path):
    one, other = scene("projection"), scene("vectors")
    grow_vectors(one.model, range(ITEMS), torch.cat([torch.ones(ITEMS, 6), one.vectors[3:4] * 1.001]))
    with saved_apart(one.model, tmp_path):
        assert not hasattr(one.model, HEAD)
    load_head(other.model, tmp_path)
    weights = getattr(other.model, HEAD)
    assert torch.equal(weights.vectors[:ITEMS], one.vectors), "the vectors that there were stay"
    head = ProjectedState(weights.vectors, 0.1)
    order = head.log_probs(other.model, one.states).argsort(dim=1, descending=True)
    places = [[row.tolist().index(item) for item in (3, ITEMS)] for row in order]
    assert all(abs(own - new) == 1 for own, new in places)
    assert torch.equal(head.cosines(other.model, one.states)[:, :ITEMS], one.head.cosines(one.model, one.states))


def test_vectors_of_other_items_are_refused():
    one = scene("projection")
    getattr(one.model, HEAD).vectors = one.vectors[:-1]
    with pytest.raises(ValueError, match=r"head\.safetensors has vectors of 39 items, the SID table has 40"):
        make_head(one.model, one.encoder, one.vocabulary, CPU)
