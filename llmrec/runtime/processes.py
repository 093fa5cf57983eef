"""Processes of an `accelerate launch` or `torchrun`; a plain run has one.

Rank and number of processes are read from the environment, so that stages without torch need not import it. `join` is
the only place that joins the process group: without a GPU a bare `PartialState()` takes its process for the only one,
and every later `PartialState` in the process inherits that.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """Rank of this process, 0 for the first."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_cut_to_one() -> bool:
    """True if accelerate was asked for several processes on the CPU and, for lack of MPI, started only this one."""
    asked = os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_PORT" in os.environ  # as accelerate 1.15 does
    return asked and "WORLD_SIZE" not in os.environ


def sharding() -> str | None:
    """Name of the method by which accelerate shards weights over the processes; None if each process holds them all."""
    kinds = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
    return next((kind for name, kind in kinds.items() if os.environ.get(name, "").lower() == "true"), None)


def is_main() -> bool:
    """True in the first process."""
    return rank() == 0


def join() -> PartialState:
    """Join the process group.

    Returns:
        State of accelerate.

    Raises:
        RuntimeError: If accelerate was told before that this process is alone: each would report its share as the
            whole.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available())
    if state.num_processes != count():
        raise RuntimeError(f"accelerate knows {state.num_processes} of {count()} processes (WORLD_SIZE).")
    if count() > 1:
        _leave_at_exit()
    return state


@functools.cache
def _leave_at_exit() -> None:
    """Leave the process group before the interpreter is torn down.

    Threads of gloo were seen to abort a process that had finished its work ("terminate called without an active
    exception", torch 2.13), and `accelerate launch` then reports a failure.
    """
    from torch import distributed

    atexit.register(lambda: distributed.destroy_process_group() if distributed.is_initialized() else None)


def refuse_several(stage: str) -> None:
    """Refuse several processes where each would write the same files.

    Raises:
        ValueError: If there are several.
    """
    if count() > 1:
        raise ValueError(f"{stage} works in one process and {count()} were started; run `llmrec {stage}` by itself.")


def wait() -> None:
    """Wait until every process has arrived here."""
    if count() > 1:
        join().wait_for_everyone()


def gather(values: list[T]) -> list[T]:
    """Concatenate the lists of all processes in the order of their ranks; every process gets the whole list."""
    if count() == 1:
        return values
    from accelerate.utils import gather_object

    join()
    return gather_object(values)


def share(num_rows: int) -> slice:
    """Rows of this process, where those of all processes follow one another in the order of their ranks."""
    return slice(num_rows * rank() // count(), num_rows * (rank() + 1) // count())


def total(part: Tensor) -> Tensor:
    """Sum a tensor over the processes; every process gets the same, on its own device."""
    if count() == 1:
        return part
    from accelerate.utils import reduce

    return reduce(part.to(join().device), "sum").to(part.device)


def add_up(tensors: Sequence[Tensor], factor: float = 1) -> None:
    """Put in the place of tensors the sums of all processes' ones, in one message.

    Args:
        tensors: Of one type and device; in every process of the same shapes.
        factor: Multiplier of those of this process.
    """
    if count() == 1:
        return
    import torch

    sums = total(torch.cat([tensor.flatten() for tensor in tensors]) * factor)
    for tensor, part in zip(tensors, sums.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def joined(part: Tensor) -> Tensor:
    """Join the rows of all processes' tensors in the order of their ranks; every process gets them all.

    Args:
        part: (n, …) rows of this process, on any device; n may differ, and may be 0.
    """
    if count() == 1:
        return part
    import torch
    from accelerate.utils import gather, pad_across_processes

    device = join().device
    lengths = gather(torch.tensor([len(part)], device=device)).tolist()
    every = gather(pad_across_processes(part.to(device))).unflatten(0, (len(lengths), max(lengths)))
    return torch.cat([rows[:length] for rows, length in zip(every, lengths, strict=True)]).to(part.device)


def from_first(part: Tensor) -> Tensor:
    """The tensor that the first process has; those of the others are of the same shape and type."""
    if count() == 1:
        return part
    from accelerate.utils import broadcast

    return broadcast(part.detach().clone().to(join().device)).to(part.device)
