"""The fusion of views: attention by hand, missing views, standardisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmrec.tokenizers.simcit.fusion import Fusion
from tests.support.clustered import points


def fusion(dims=(3, 4)) -> Fusion:
    return Fusion(dims, [8], 6, torch.Generator().manual_seed(0))


def test_attention_by_hand():
    network, vectors = fusion(), points(5, 7)
    fused = network(vectors)
    inner, _, outer = network.attention
    views = [network.encoders[0](vectors[:, :3]), network.encoders[1](vectors[:, 3:])]
    scores = torch.stack([torch.tanh(h @ inner.weight.T + inner.bias) @ outer.weight[0] for h in views])
    shares = scores.exp() / scores.exp().sum(0)
    torch.testing.assert_close(fused.shares, shares.T)
    torch.testing.assert_close(fused.latent, shares[0, :, None] * views[0] + shares[1, :, None] * views[1])


def test_a_missing_view_has_weight_zero_and_an_item_without_any_the_zero_vector():
    vectors = points(5, 7)
    vectors[0, :3] = 0
    vectors[1] = 0
    fused = fusion()(vectors)
    assert fused.shares[0].tolist() == [0, 1] and fused.shares[1].tolist() == [0, 0]
    assert torch.equal(fused.latent[0], fused.views[0, 1]) and not fused.latent[1].any()
    assert fused.known.tolist() == [[False, True], [False, False]] + [[True, True]] * 3


def test_views_are_standardised_over_the_items_they_know():
    vectors = torch.cat([3 + 2 * points(400, 3), 0.01 * points(400, 4)], 1)
    vectors[:100, :3] = 0
    network = fusion()
    network.standardize(vectors)
    first, second = network.encoders
    torch.testing.assert_close(first.mean, vectors[100:, :3].mean(0))
    assert 1 / first.scale.item() == pytest.approx(2, rel=0.1) and 1 / second.scale.item() == pytest.approx(
        0.01, rel=0.1
    )
    assert not any(isinstance(part, nn.Linear) and part.bias is not None for part in first.layers)
