"""Packing: several sequences in one row, as separate as in rows of their own.

Sequences of a batch differ widely in length; if all are padded to the longest, more than half of Amazon Beauty's tokens
are padding. Packed sequences share rows about as long as the longest of them. Positions start again with each sequence,
so transformers sees where one ends and masks them from one another. The loss is that of unpacked rows, and the
sequences of an optimiser step stay the same.

Shapes: S sequences, R rows, T tokens of a row.

Source: first-fit decreasing (Johnson, 1973), as in Krell et al., Efficient Sequence Packing without Cross-contamination
(arXiv:2107.02027).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmrec.model.backbone import causal_lm, run_backbone

ROW_STEP = 64  # so that batches have few row lengths; each has kernels and CUDA graphs of its own
TRIAL = ([1, 2, 3, 4], [5, 6, 7])  # token ids


def row_length(lengths: Sequence[int]) -> int:
    """Length of the rows that sequences are packed into: the longest length, rounded up to a multiple of ROW_STEP."""
    return -(-max(lengths) // ROW_STEP) * ROW_STEP


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Distribute sequences over bins, each into the first with enough room, the longest first.

    Args:
        lengths: Number of tokens of each sequence, none above `capacity`.
        capacity: Number of tokens that fit into a bin.

    Returns:
        For each bin, the positions of its sequences in `lengths`; the longest comes first.
    """
    bins: list[list[int]] = []
    free: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        fitting = next((i for i, room in enumerate(free) if room >= lengths[place]), None)
        if fitting is None:
            bins.append([])
            free.append(capacity)
            fitting = len(bins) - 1
        bins[fitting].append(place)
        free[fitting] -= lengths[place]
    return bins


def pack(sequences: Sequence[Tensor], bins: list[list[int]], length: int, fill: int) -> Tensor:
    """Write sequences into rows, one after another.

    Args:
        sequences: S tensors (tokens,).
        bins: Positions of the sequences of each row.
        length: Number of tokens of a row, T.
        fill: Value after the last sequence of a row.

    Returns:
        (R, T).
    """
    rows = torch.full((len(bins), length), fill)
    for row, places in zip(rows, bins, strict=True):
        torch.cat([sequences[place] for place in places], out=row[: sum(len(sequences[place]) for place in places)])
    return rows


def separate(position_ids: Tensor) -> Tensor:
    """Build the attention mask of packed sequences on the device: causal, and within each sequence only.

    Args:
        position_ids: (R, T) positions, which start again at 0 with each sequence and are 0 at padding.

    Returns:
        (R, 1, T, T) bool, True where a token attends to another.
    """
    sequence_RT = (position_ids == 0).cumsum(dim=1)
    same = sequence_RT.unsqueeze(2) == sequence_RT.unsqueeze(1)
    return same.tril().unsqueeze(1)


def check_packing(model: nn.Module) -> None:
    """Refuse a model that does not keep packed sequences separate.

    Raises:
        ValueError: If the states of a sequence depend on the sequence before it.
    """
    base = causal_lm(model)
    # No trial on 4-bit weights: for inference bitsandbytes changes their layout, and there is no way back.
    is_mixed = base._is_stateful if getattr(base, "is_quantized", False) else not _are_apart(base)
    if is_mixed:
        raise ValueError(
            f"{type(base).__name__} does not keep packed sequences apart; set packing to false, which pads instead."
        )


@torch.no_grad()
def _are_apart(base: PreTrainedModel) -> bool:
    """Tell whether the second of two packed sequences has the same states as on its own."""
    was_training = base.training
    base.eval()
    first, second = (torch.tensor([ids], device=base.device) for ids in TRIAL)
    positions = torch.cat([torch.arange(ids.shape[1], device=base.device) for ids in (first, second)])
    inputs = {"input_ids": torch.cat([first, second], dim=1), "position_ids": positions.unsqueeze(0)}
    packed = run_backbone(base, **inputs, use_cache=False).last_hidden_state[:, first.shape[1] :]
    alone = run_backbone(base, input_ids=second, use_cache=False).last_hidden_state
    base.train(was_training)
    return torch.allclose(packed, alone, atol=float(1e-2 * alone.abs().max()))
