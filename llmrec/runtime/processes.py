"""The processes of an `accelerate launch` or `torchrun`, or the only one there is.

Rank and number are read from the environment, so that stages without torch stay without it. Joining the group goes
through one place: without a GPU a bare `PartialState()` takes its process for the only one, and every later one in the
process inherits that.
"""

from __future__ import annotations

import atexit
import functools
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import PartialState


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_cut_to_one() -> bool:
    """Whether accelerate was asked for several processes on the CPU and, having no MPI, started this one alone."""
    asked = os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_PORT" in os.environ  # as accelerate 1.15 does
    return asked and "WORLD_SIZE" not in os.environ


def sharding() -> str | None:
    """What accelerate was told to share the weights out by among the processes; None where each holds all of them."""
    kinds = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
    return next((kind for name, kind in kinds.items() if os.environ.get(name, "").lower() == "true"), None)


def is_main() -> bool:
    return rank() == 0


def join() -> PartialState:
    """Join the process group; accelerate's state of it.

    Raises:
        RuntimeError: If accelerate was already told that this process is alone; each would report its share as all.
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
    """Leave the group before the interpreter is torn down.

    Its threads were seen to abort a process that had finished its work ("terminate called without an active
    exception", gloo, torch 2.13), for which `accelerate launch` then reports a failure.
    """
    from torch import distributed

    atexit.register(lambda: distributed.destroy_process_group() if distributed.is_initialized() else None)


def wait() -> None:
    """Wait until every process is here."""
    if count() > 1:
        join().wait_for_everyone()


def gather(values: list[Any]) -> list[Any]:
    """The lists of all processes as one, in the order of their ranks, in each of them."""
    if count() == 1:
        return values
    from accelerate.utils import gather_object

    join()
    return gather_object(values)
