"""What every benchmark states and how it takes time."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")
CALLS_PER_GRAPH = 20


def emit(case: str, **values: object) -> None:
    """Print one JSON line; floats to four digits."""
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in values.items()}
    print(json.dumps({"case": case, **rounded}), flush=True)


def emit_machine() -> None:
    """Print the hardware, its load when the benchmark starts, and the versions."""
    names = [line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")]
    packages = ("torch", "transformers", "numpy")
    emit(
        "machine",
        cpu=names[0] if names else platform.processor(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0],
        gpus=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        python=platform.python_version(),
        **{package: version(package) for package in packages},
    )


def _cpu_info() -> list[str]:
    return CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.exists() else []


def seconds(call: Callable[[], object], repeats: int, device: torch.device | str = "cpu") -> float:
    """Median wall time of a call after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        started = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def fitting(call: Callable[[], float]) -> float | None:
    """What the call returns; None where it runs out of memory."""
    try:
        return call()
    except torch.OutOfMemoryError:
        release()
        return None


def release() -> None:
    """Give cached memory back to the GPU."""
    gc.collect()
    torch.cuda.empty_cache()


def graph_seconds(call: Callable[[int], object], repeats: int = 50) -> float:
    """Median time of one of the calls that a CUDA graph makes in a row, `call(0)` to `call(CALLS_PER_GRAPH - 1)`."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(CALLS_PER_GRAPH):
            call(i)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(CALLS_PER_GRAPH):
            call(i)
    times = []
    for _ in range(repeats + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / CALLS_PER_GRAPH)
    return statistics.median(times[1:])


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
