"""Device and precision that a stage computes with, the memory it has, and copies between host and device."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmrec.runtime import processes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Limit of a container, in the two versions of cgroups; the first holds "max" where there is none.
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def resolve_device(name: str) -> torch.device:
    """Device of this process by its name.

    Args:
        name: cpu, cuda, cuda:<index>, or auto: this process's own GPU under `accelerate launch`, else the first GPU,
            else the CPU.

    Raises:
        ValueError: If the name is unknown or names a GPU on a machine without one.
    """
    if name == "auto":
        return processes.join().device
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"Unknown device '{name}'; choose auto, cpu or cuda.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is '{name}' but torch finds no GPU here; use auto or cpu.")
    return device


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Data type of weights by its name.

    Args:
        precision: float32, bfloat16, or auto: bfloat16 on a GPU that supports it, float32 elsewhere.
        device: Device of the weights.

    Raises:
        ValueError: If the name is unknown.
    """
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    if precision not in DTYPES:
        raise ValueError(f"Unknown precision '{precision}'; choose auto, {' or '.join(DTYPES)}.")
    return DTYPES[precision]


def memory_of(device: torch.device) -> int:
    """Memory of a GPU, or of the host; of its container where that has a limit. What is unknown counts as enough."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else []
    for limit in LIMITS:
        with suppress(OSError, ValueError):
            found.append(int(limit.read_text()))
    return min(found, default=sys.maxsize)


def refuse_beyond(needed: int, device: torch.device, what: str, remedy: str) -> None:
    """Refuse what needs more memory than a device has.

    Args:
        needed: Bytes.
        device: Where they are needed.
        what: What needs them, as the beginning of a sentence with its verb.
        remedy: Next step of the user, as a sentence.

    Raises:
        ValueError: If the device has less.
    """
    present = memory_of(device)
    if needed > present:
        where = "this GPU" if device.type == "cuda" else "this machine"
        raise ValueError(f"{what} {gigabytes(needed)} of memory, and {where} has {gigabytes(present)}. {remedy}")


def gigabytes(count: int) -> str:
    """Number of bytes as text.

    >>> gigabytes(30_720_000_000)
    '30.7 GB (30,720,000,000 bytes)'
    """
    return f"{count / 1e9:,.1f} GB ({count:,} bytes)"


@contextmanager
def tf32_products() -> Iterator[None]:
    """Round the factors of float32 products on a GPU to TF32 within the block; and restore the setting afterwards."""
    matmul = torch.backends.cuda.matmul
    # Since torch 2.9 the first name; reading the second after someone has set the first raises.
    name, value = ("fp32_precision", "tf32") if hasattr(matmul, "fp32_precision") else ("allow_tf32", True)
    before = getattr(matmul, name)
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def from_host(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device without making the host wait; a copy from unpinned memory waits for queued work."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_host(tensors: Sequence[Tensor]) -> Callable[[], list[np.ndarray]]:
    """Start to copy tensors to the host.

    Returns:
        Function that waits for the copies, but not for work that was queued later, and returns the arrays.
    """
    if tensors[0].device.type != "cuda":
        return lambda: [tensor.cpu().numpy() for tensor in tensors]
    copies = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def wait() -> list[np.ndarray]:
        """Return the arrays once the copies are done."""
        arrived.synchronize()
        return [copy.numpy() for copy in copies]

    return wait
