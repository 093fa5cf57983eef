"""Joint projections: what reads the same input as one matrix product instead of several.

Query, key and value projections are too narrow to fill a GPU alone, as are the two inputs of a gated MLP. Their weights
become parts of one matrix, in place and without a copy; the first of them multiplies by all of it and hands the others
their columns. Modules, parameters and state dict keep their names. The hand-over is stateless across calls: who is
asked for another input than the one at hand computes its own product.

Source: the fused QKV and gate-up projections of inference engines such as vLLM, for unchanged Hugging Face modules.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def join_projections(model: nn.Module) -> None:
    """Join the projections of every layer in place; those that are not plain `nn.Linear` stay as they are."""
    for parent in list(model.modules()):
        for names in GROUPS:
            members = [getattr(parent, name, None) for name in names]
            if all(type(member) is nn.Linear for member in members) and _fit(members):
                _join(members)


def _fit(members: list[nn.Linear]) -> bool:
    kinds = {(m.in_features, m.bias is None, m.weight.dtype, m.weight.device) for m in members}
    return len(kinds) == 1


class _HandOver:
    """Columns of the product that is at hand, and its input."""

    def __init__(self):
        self.input: Tensor | None = None
        self.parts: tuple[Tensor, ...] = ()


class _First(nn.Linear):
    """Member of a group that computes for all."""

    def forward(self, input: Tensor) -> Tensor:
        parts = linear(input, self.joint_weight, self.joint_bias).split(self.sizes, dim=-1)
        self.hand_over.input, self.hand_over.parts = input, parts
        return parts[0]


class _Later(nn.Linear):
    """Member of a group that takes what the first computed."""

    def forward(self, input: Tensor) -> Tensor:
        if self.hand_over.input is not input:
            return super().forward(input)
        part = self.hand_over.parts[self.place]
        if self.place == len(self.hand_over.parts) - 1:
            self.hand_over.input, self.hand_over.parts = None, ()
        return part


def _join(members: list[nn.Linear]) -> None:
    first, sizes = members[0], [member.out_features for member in members]
    weight = torch.cat([member.weight.data for member in members])
    bias = None if first.bias is None else torch.cat([member.bias.data for member in members])
    hand_over = _HandOver()
    for place, (member, own) in enumerate(zip(members, weight.split(sizes), strict=True)):
        member.weight.data = own
        if bias is not None:
            member.bias.data = bias.split(sizes)[place]
        member.__class__ = _Later if place else _First
        member.hand_over, member.place = hand_over, place
    first.sizes = sizes
    first.register_buffer("joint_weight", weight, persistent=False)
    first.register_buffer("joint_bias", bias, persistent=False)
