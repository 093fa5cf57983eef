"""Joined LoRA: the projections that read one input, with their LoRA, as one matrix product.

PEFT multiplies the input of query, key and value projections by nine matrices, one after another, and differentiates
each apart. Here the input x, beside its inner products x A, is multiplied once by the frozen weights of all projections
beside their outer matrices: [x, x A'] [W, B]'. So a sum of two wide products is never written, and the input, its
gradient, and the gradient of the output pass through memory once for each group; likewise for the two inputs of a gated
MLP. The first projection computes for all and hands the others their columns. Modules, parameters and state dict keep
their names. Without gradients PEFT's own products stay: they read the weights once, where joining writes them twice,
which for the few tokens of a step of decoding takes longer than the products.

Measured on one H200 (scripts/benchmarks/sft_steps.py): tokens per second of a captured and compiled step grow from
135,900 to 145,500 with the shape of Qwen3-0.6B and from 362,400 to 376,400 with SmolLM2-135M's. With two products, of x
by W and of x A' by B', the former reaches 137,300.

Sums are PEFT's but for rounding; tests/training/test_joined_lora.py holds values and gradients against PEFT 0.21, whose
`lora.Linear` is extended here.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from llmrec.model.linear_layers import GROUPS, OneDnnLinear
from llmrec.model.trained_rows import matrix_of


class _Group:
    """Projections that read one input, and the parts of the product that is at hand.

    Args:
        members: LoRA layers, in the order in which the model calls them.
    """

    def __init__(self, members: list[Linear]):
        self.members = members
        self.input: Tensor | None = None
        self.parts: tuple[Tensor, ...] = ()

    def is_active(self) -> bool:
        """Tell whether gradients are asked for and every projection has one LoRA, neither merged nor switched off."""
        is_plain = any(m.disable_adapters or m.merged or len(m.active_adapters) != 1 for m in self.members)
        return torch.is_grad_enabled() and not is_plain

    def product(self, input: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs of all projections."""
        name, members = self.members[0].active_adapters[0], self.members
        base = [cast(nn.Linear, member.base_layer) for member in members]
        biases = [cast(Tensor, each.bias) for each in base if each.bias is not None]
        weights = [each.weight for each in base]
        inner = torch.cat([matrix_of(member.lora_A[name]) for member in members])
        outer = torch.block_diag(*(matrix_of(member.lora_B[name]) * member.scaling[name] for member in members))
        # The frozen weights have the type of all products, so what trains is cast as autocast would.
        rows, inner, outer = (each.to(weights[0].dtype) for each in (input.flatten(0, -2), inner, outer))
        output = cast(Tensor, _Product.apply(rows, inner, outer, *weights))
        if biases:
            output = output + torch.cat(biases)
        return output.view(*input.shape[:-1], -1).split([each.out_features for each in base], dim=-1)


class _Product(torch.autograd.Function):
    """x W' + (x A') B' for frozen W in several parts, as one product of (P, in + r) by (out, in + r).

    What is kept for the gradient are the parts themselves: the joined matrix would be a copy of the frozen weights.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, inner: Tensor, outer: Tensor, *weights: Tensor) -> Tensor:  # ctx takes anything
        low = rows @ inner.T
        ctx.save_for_backward(rows, low, inner, outer, *weights)
        return torch.cat([rows, low], dim=1) @ torch.cat([torch.cat(weights), outer], dim=1).T

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, inner, outer, *weights = ctx.saved_tensors
        grad_low = grad_output @ outer
        grad_rows = grad_output @ torch.cat(weights) + grad_low @ inner
        return grad_rows, grad_low.T @ rows, grad_output.T @ low, *[None] * len(weights)


class _First(Linear):
    """Member of a group that computes for all."""

    group: _Group

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if not self.group.is_active():
            return super().forward(x, *args, **kwargs)
        self.group.input, self.group.parts = x, self.group.product(x)
        return self.group.parts[0]


class _Later(Linear):
    """Member of a group that takes what the first computed.

    Attributes:
        place: Its place in the group.
    """

    group: _Group
    place: int

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if self.group.input is not x:
            return super().forward(x, *args, **kwargs)
        part = self.group.parts[self.place]
        if self.place == len(self.group.parts) - 1:
            self.group.input, self.group.parts = None, ()
        return part


def join_lora(model: nn.Module) -> None:
    """Join the LoRA layers of every group in place; those over other weights than of `nn.Linear` stay as they are."""
    for parent in list(model.modules()):
        for names in GROUPS:
            members = [member for name in names if type(member := getattr(parent, name, None)) is Linear]
            if len(members) == len(names) and _fit(members):
                _join(members)


def _fit(members: list[Linear]) -> bool:
    base = [member.base_layer for member in members]
    # With gradients the layers of a model that a CPU has decoded with are those of `nn.Linear`.
    are_linear = all(type(each) in (nn.Linear, OneDnnLinear) for each in base)
    return are_linear and len({each.bias is None for each in base}) == 1


def _join(members: list[Linear]) -> None:
    group = _Group(members)
    for place, member in enumerate(members):
        member.__class__ = _Later if place else _First  # name, parameters and all references to it stay
        joined = cast(_Later, member)  # a checker cannot follow an assignment of __class__
        joined.group, joined.place = group, place
