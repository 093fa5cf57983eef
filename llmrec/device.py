"""Which device a stage computes on."""

from __future__ import annotations

import torch

from llmrec import processes


def resolve_device(name: str) -> torch.device:
    """Device of this process; `auto` is its own GPU under `accelerate launch`, or else the first, or else the CPU.

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
