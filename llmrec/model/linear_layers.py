"""Linear layers that are changed in place for speed: joined projections on a GPU, oneDNN's products on a CPU.

**Joined projections.** Query, key and value projections are too narrow to fill a GPU alone, as are the two inputs of a
gated MLP. Their weights become parts of one matrix, in place and without a copy. The first projection multiplies by all
of the matrix and hands the others their columns. Modules, parameters and state dict keep their names. Nothing is kept
between forward passes: a projection that gets another input than the one at hand computes its own product.

Only the option `compiled` of SidDecoder uses this. Measured on one H200 with the shape of Qwen3-0.6B, compiled: a
search for one prompt takes 7.3 ms instead of 8.4; at batch 256 there is no gain (1,742 and 1,755 users/s). On a CPU
there is none either.

**oneDNN's products.** PyTorch gives products in float32 on a CPU to MKL, which uses half of an AMD core. oneDNN, which
PyTorch has too and gives products in bfloat16, uses all of it. Both sum in float32, in another order: scores differ by
rounding. On one core of an AMD EPYC with all linear layers of SmolLM2-135M, 100 tokens take 106 ms instead of 226, and
50 tokens 64 ms instead of 128; one token takes the same, and 3,200 half as long. An Intel CPU was not measured.
Weights in oneDNN's own layout would save another tenth of a search, but take twice the memory, and would not see
weights that change in place.

Source: the fused QKV and gate-up projections of inference engines such as vLLM, for unchanged Hugging Face modules.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
Kind = TypeVar("Kind", bound=nn.Linear)


def join_projections(model: nn.Module) -> None:
    """Join the projections of every layer in place; those that are not plain `nn.Linear` stay as they are."""
    for parent in list(model.modules()):
        for names in GROUPS:
            members = [member for name in names if type(member := getattr(parent, name, None)) is nn.Linear]
            if len(members) == len(names) and _fit(members):
                _join(members)


def _fit(members: list[nn.Linear]) -> bool:
    kinds = {(m.in_features, m.bias is None, m.weight.dtype, m.weight.device) for m in members}
    return len(kinds) == 1


class _HandOver:
    """Columns of the product that is at hand, and its input."""

    def __init__(self) -> None:
        self.input: Tensor | None = None
        self.parts: tuple[Tensor, ...] = ()


class _First(nn.Linear):
    """Member of a group that computes for all."""

    joint_weight: Tensor
    joint_bias: Tensor | None
    sizes: list[int]
    hand_over: _HandOver

    def forward(self, input: Tensor) -> Tensor:
        parts = linear(input, self.joint_weight, self.joint_bias).split(self.sizes, dim=-1)
        self.hand_over.input, self.hand_over.parts = input, parts
        return parts[0]


class _Later(nn.Linear):
    """Member of a group that takes what the first computed."""

    hand_over: _HandOver
    place: int

    def forward(self, input: Tensor) -> Tensor:
        if self.hand_over.input is not input:
            return super().forward(input)
        part = self.hand_over.parts[self.place]
        if self.place == len(self.hand_over.parts) - 1:
            self.hand_over.input, self.hand_over.parts = None, ()
        return part


def _join(members: list[nn.Linear]) -> None:
    sizes, hand_over = [member.out_features for member in members], _HandOver()
    weight = torch.cat([member.weight.data for member in members])
    biases = [member.bias.data for member in members if member.bias is not None]
    bias = torch.cat(biases) if biases else None
    for member, own in zip(members, weight.split(sizes), strict=True):
        member.weight.data = own
    if bias is not None:
        for member, own in zip(members, bias.split(sizes), strict=True):
            member.bias.data = own
    first = _turned_into(_First, members[0])
    first.hand_over, first.sizes = hand_over, sizes
    first.register_buffer("joint_weight", weight, persistent=False)
    first.register_buffer("joint_bias", bias, persistent=False)
    for place, member in enumerate(members[1:], start=1):
        later = _turned_into(_Later, member)
        later.hand_over, later.place = hand_over, place


def _turned_into(kind: type[Kind], member: nn.Linear) -> Kind:
    """Change the class of a module, so that its name, its parameters and all references to it stay."""
    member.__class__ = kind
    return cast(Kind, member)  # a checker cannot follow an assignment of __class__


def use_onednn(model: nn.Module) -> None:
    """Let the linear layers of a model compute by oneDNN in float32 on a CPU, where it stands beside MKL.

    It changes the class of modules in place; parameters and state dict keep their names. Outside of
    `onednn_products`, with gradients, on a GPU, and in other types, the layers do what `nn.Linear` does.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear


class _Thread(threading.local):
    uses_onednn = False


_thread = _Thread()


@contextlib.contextmanager
def onednn_products() -> Iterator[None]:
    """Use oneDNN's products in this thread: training rounds as if its model had never been decoded with."""
    before, _thread.uses_onednn = _thread.uses_onednn, True
    try:
        yield
    finally:
        _thread.uses_onednn = before


class OneDnnLinear(nn.Linear):
    """Linear layer whose products in float32 on a CPU are oneDNN's where they are asked for, and no gradient is."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiply by the weight and add the bias; (…, in) -> (…, out)."""
        is_plain = input.is_cpu and input.dtype == self.weight.dtype == torch.float32
        is_asked = torch.compiler.is_compiling() or _thread.uses_onednn  # a decoder alone compiles layers on a CPU
        if not is_plain or not is_asked or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        return torch.ops.llmrec.onednn_linear(input, self.weight, self.bias)


def _product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


def _shape_of_product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return input.new_empty(*input.shape[:-1], weight.shape[0])


# An operator of our own, because the compiler takes oneDNN's only with weights that are frozen into the code.
_library = torch.library.Library("llmrec", "DEF")
_library.define("onednn_linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor")
_library.impl("onednn_linear", _product, "CPU")
torch.library.register_fake("llmrec::onednn_linear", _shape_of_product, lib=_library)
