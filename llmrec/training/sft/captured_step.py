"""Forward and backward pass of a training step as one CUDA graph.

A pass through a small LLM with LoRA is thousands of kernels of some microseconds each, and the host takes longer to
launch them than the GPU to run them (SmolLM2-135M, 12,500 tokens: 51 ms of kernels in a step of 139). A graph launches
all of them at once. It contains the backward pass too, so the loss comes with its gradients, which autograd gets when
it asks for them. Hooks, accumulation, clipping and the optimiser stay outside and see ordinary gradients.

Training and capture share one stream of their own, because autograd's nodes of the parameters belong to the stream that
they were made on, and DistributedDataParallel keeps them.

Batches are rounded up to a few sizes by empty rows, and each size is captured once. Random numbers continue through
replays as they would without graphs.

Source: whole-network capture of PyTorch's CUDA graphs, as `torch.cuda.make_graphed_callables`, which would let
accumulated gradients share the memory that the next replay writes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from llmrec.configs import SftConfig
from llmrec.model.backbone import causal_lm
from llmrec.runtime import processes
from llmrec.runtime.cuda_graphs import CudaGraphs
from llmrec.training.distil.batch import NO_QUERY, TaughtCodes
from llmrec.training.sft.item_loss import ItemTargets

LEAST_STEP = 4
MOST_TRAINED = 200_000_000  # parameters: gradients exist three times here, and kernels of larger models hide launches


class CapturedLoss:
    """Replays the loss of packed batches together with its gradients.

    Args:
        model: Model that trains, all of one type and on one GPU.
        shortest_sid: Number of tokens of an item for each that is of one level: those of the shortest SID; 1 where an
            item is read as one, and where all levels have the same tokens.
        fills: Values of empty rows of `input_ids`, `position_ids` and `labels`.
    """

    @classmethod
    def of(
        cls,
        config: SftConfig,
        model: nn.Module,
        shortest_sid: int,
        fills: tuple[int, int, int],
        device: torch.device,
    ) -> CapturedLoss | None:
        """Capture steps if they have few shapes and the host need not wait for the device; else return None.

        Args:
            config: Options of the stage.
            model: Model that trains.
            shortest_sid: As above.
            fills: Values of empty rows, as above.
            device: Device that the model will be on.
        """
        is_plain = config.packing and config.quantization == "none" and not config.gradient_checkpointing
        is_small = sum(p.numel() for p in model.parameters() if p.requires_grad) <= MOST_TRAINED
        is_whole = device.type == "cuda" and processes.sharding() is None
        takes_masks = causal_lm(model).config._attn_implementation == "sdpa"
        # A graph scores every position, as it may not count the answers; over the vocabulary this takes memory.
        scores_more = config.normalize_over == "vocabulary" and config.targets != "every_item"
        if (
            scores_more
            or config.content_passes  # whose steps leave one of two sets of rows without a gradient
            or not (is_plain and is_small and is_whole and takes_masks)
        ):
            return None
        return cls(model, shortest_sid, fills)

    def __init__(self, model: nn.Module, shortest_sid: int, fills: tuple[int, int, int]):
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.shortest_sid, self.fills, self.graphs = shortest_sid, fills, CudaGraphs()

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Run on a stream of its own, if the device has streams."""
        if not torch.cuda.is_available():
            yield
            return
        own = torch.cuda.Stream()
        own.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(own):
            yield
        torch.cuda.current_stream().wait_stream(own)

    def most_of_level(self, labels: Tensor) -> int:
        """Largest number of tokens of one level in (R, T) labels: a SID has at most one."""
        return -(-labels.numel() // self.shortest_sid)

    def __call__(
        self,
        loss: Callable[..., Tensor],
        rows: Sequence[Tensor],
        count: Tensor,
        most_words: int,
        taught: TaughtCodes | None = None,
        items: ItemTargets | None = None,
    ) -> Tensor:
        """Compute `loss(most_words, *rows, count, *taught, *items)` such that autograd can differentiate it.

        Args:
            loss: The same function at every call; it must read nothing back to the host.
            rows: (R, T) input_ids, position_ids and labels.
            count: Number that the loss is divided by.
            most_words: Largest number of labels that are not SID tokens; has few values, as there is a graph for each.
            taught: Distributions of a teacher; its fields are given to the loss one after another.
            items: Items to be predicted; likewise.
        """
        batch = [*(_round_up(tensor, fill) for tensor, fill in zip(rows, self.fills, strict=True)), count]
        most = self.most_of_level(batch[0])
        if taught is not None:
            answers = [_pad_to(tensor, most) for tensor in (taught.is_drawn, *taught.levels)]
            batch += [_round_up(taught.query_of, NO_QUERY), *answers]
        if items is not None:
            fill = 0 if items.targets.is_floating_point() else self.fills[-1]  # that of labels: not predicted
            batch += [_pad_to(items.places, most), _pad_to(items.targets, most, fill)]
        function = functools.partial(_with_gradients, functools.partial(loss, most_words), self.parameters)
        # Not within `apply`: autograd's nodes of the parameters would be made outside of the capture, and break it.
        return _Loss.apply(*self.graphs.run(function, batch, most_words), *self.parameters)


class _Loss(torch.autograd.Function):
    """A loss whose gradients were computed with it."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Tensor, *parameters: Tensor) -> Tensor:  # any attribute fits ctx
        ctx.save_for_backward(gradients)
        ctx.shapes = [parameter.shape for parameter in parameters]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        parts = (ctx.saved_tensors[0] * grad_output).split([shape.numel() for shape in ctx.shapes])
        return None, None, *(part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True))


def _with_gradients(loss: Callable[..., Tensor], parameters: Sequence[Tensor], *inputs: Tensor) -> list[Tensor]:
    """Compute a loss, and its gradients one after another in one tensor."""
    device = inputs[0].device.type
    # Autocast keeps what it has cast until its context ends, which a graph would go on reading.
    autocast = torch.autocast(
        device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), cache_enabled=False
    )
    with torch.enable_grad(), autocast:
        value = loss(*inputs)
        gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
    return [value.detach(), torch.cat([gradient.flatten() for gradient in gradients])]


def _round_up(tensor: Tensor, fill: int) -> Tensor:
    """Add rows of `fill` to (R, T) up to a multiple of a 32nd of the power of two above, so that sizes are few."""
    rows = len(tensor)
    step = max(LEAST_STEP, (1 << (rows - 1).bit_length()) // 32)
    return pad(tensor, (0, 0, 0, -rows % step), value=fill)


def _pad_to(tensor: Tensor, length: int, fill: int = 0) -> Tensor:
    """Fill (Q, …) up to `length` entries; no batch has more answers than semantic IDs fit into it.

    Raises:
        ValueError: If there are more, of which a longer minimum than the shortest SID would lose some.
    """
    if len(tensor) > length:
        raise ValueError(f"{len(tensor)} answers do not fit into {length} places; shortest_sid is too long.")
    return pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, length - len(tensor)), value=fill)
