"""A function of a test module in several processes, which meet over gloo as those of one launch do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WORKER = """\
import importlib, sys, torch
module, function, out = sys.argv[1:]
torch.save(getattr(importlib.import_module(module), function)(), out)
"""


def in_processes(count: int, function: Callable[[], Any], directory: Path) -> list[Any]:
    """Result of a function without arguments in each of `count` processes; tensors, numbers and containers of them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    outs = [directory / f"rank-{rank}.pt" for rank in range(count)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, function.__module__, function.__name__, str(out)],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "RANK": str(rank), "LOCAL_RANK": str(rank)}
            | {name: str(value) for name, value in launch.items()},
            stderr=subprocess.PIPE, text=True,
        )
        for rank, out in enumerate(outs)
    ]  # fmt: skip
    for process in started:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    return [torch.load(out, weights_only=False) for out in outs]
