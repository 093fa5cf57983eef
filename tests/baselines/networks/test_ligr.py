"""LiGR blocks at known weights, and SASRec made of them."""

from __future__ import annotations

import pytest
import torch

from llmrec.baselines.networks.ligr import LiGRBlock, SwiGLU
from llmrec.baselines.networks.sasrec import SASRecOptions
from tests.support.networks import network, quick, split

FUTURE = torch.nn.Transformer.generate_square_subsequent_mask(3)


def constant(layer: torch.nn.Linear, value: float) -> None:
    """Make a layer answer `value` whatever it reads."""
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.constant_(layer.bias, value)


def test_gates_at_known_weights():
    """One head of size 2, values and outputs the identity: attention averages the normed states so far."""
    block = LiGRBlock(2, 1, dropout=0.0)
    attention = block.attention
    for parameter in (attention.in_proj_weight, attention.in_proj_bias, attention.out_proj.bias):
        torch.nn.init.zeros_(parameter)  # equal logits: every visible place has the same weight
    with torch.no_grad():
        attention.in_proj_weight[4:] = torch.eye(2)
        attention.out_proj.weight.copy_(torch.eye(2))
        block.attention_gate.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        block.attention_gate.bias.copy_(torch.tensor([0.0, torch.tensor(3.0).log()]))  # sigmoid(log 3) = 3/4
    constant(block.feed_gate, -1e9)  # closed
    states = torch.tensor([[[1.0, 3.0], [5.0, 1.0], [2.0, 2.0]]])
    normed = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [0.0, 0.0]])
    attended = torch.stack([normed[0], normed[:2].mean(0), normed.mean(0)])
    gates = torch.stack([states[0, :, 0].sigmoid(), torch.full((3,), 0.75)], dim=1)
    expected = states + gates * attended
    with torch.no_grad():
        torch.testing.assert_close(block(states, FUTURE, is_causal=True), expected, rtol=1e-4, atol=1e-4)


def test_a_closed_gate_leaves_the_state_and_an_open_one_adds_all():
    block, states = LiGRBlock(4, 2, dropout=0.0), torch.randn(2, 3, 4)
    constant(block.attention_gate, -1e9)
    constant(block.feed_gate, -1e9)
    torch.testing.assert_close(block(states, FUTURE, is_causal=True), states)
    constant(block.feed_gate, 1e9)
    torch.testing.assert_close(block(states, FUTURE, is_causal=True), states + block.feed(block.feed_norm(states)))


def test_swiglu_by_hand():
    layer = SwiGLU(1, dropout=0.0)
    with torch.no_grad():
        layer.up.weight.copy_(torch.tensor([[1.0], [2.0], [0.0], [0.0], [3.0], [1.0], [1.0], [1.0]]))
        layer.up.bias.zero_()
        layer.down.weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 1.0]]))
        layer.down.bias.fill_(0.5)
    x = torch.tensor([[[2.0]]])  # gates 2, 4, 0, 0 and inner states 6, 2, 2, 2
    expected = 0.5 + 2 * torch.tensor(2.0).sigmoid() * 6 + 4 * torch.tensor(4.0).sigmoid() * 2
    torch.testing.assert_close(layer(x), expected.view(1, 1, 1))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_no_state_reads_what_is_later(mode):
    net = getattr(network("sasrec", block="ligr", layers=2, dropout=0.0), mode)()
    history, other = torch.tensor([[3, 1, 4, 1]]), torch.tensor([[3, 1, 9, 2]])
    with torch.set_grad_enabled(mode == "train"):
        one, two = (net(items, net.vectors()) for items in (history, other))
    torch.testing.assert_close(one[:, :2], two[:, :2])
    assert not torch.allclose(one[:, 2], two[:, 2])


def test_sasrec_learns_with_gated_blocks_and_sampled_negatives():
    walks = [[(start + step) % 12 for step in range(8)] for start in range(12)]
    catalog = split(walks * 16, walks, [])
    training = {"learning_rate": 3e-3, "max_epochs": 12, "patience": 12}
    options = {"block": "ligr", "loss": "sampled_softmax", "negatives": 4, "layers": 1}
    assert max(epoch.quality for epoch in quick("sasrec", catalog, training=training | options).log) > 0.9


def test_a_block_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"block is 'hstu'.*transformer"):
        SASRecOptions(block="hstu")
    with pytest.raises(ValueError, match="hidden is 6; 4 heads need a multiple of 4"):
        SASRecOptions(hidden=6, heads=4)
