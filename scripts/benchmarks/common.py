"""What every benchmark states and how it takes time."""

from __future__ import annotations

import gc
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
CPU_INFO = Path("/proc/cpuinfo")
CALLS_PER_GRAPH = 20
# On a busy machine CPU seconds say more than wall time: CPU_SECONDS=1 python scripts/benchmarks/…
clock = time.process_time if os.environ.get("CPU_SECONDS") else time.perf_counter


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
        clock=clock.__name__,
        gpus=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        python=platform.python_version(),
        **{package: version(package) for package in packages},
    )


def _cpu_info() -> list[str]:
    return CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.exists() else []


def seconds(call: Callable[[], object], repeats: int, device: torch.device | str = "cpu") -> float:
    """Median time of a call after one that does not count, by `clock`."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        started = clock()
        call()
        _wait(device)
        times.append(clock() - started)
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


def carried_out(command: Sequence[str]) -> dict[str, float]:
    """Run a command in a process of its own, whose peak is looked up as long as it runs.

    The peak that the kernel reports at the end of a child counts that of its parent, too.

    Returns:
        `seconds`, `cpu_seconds` and `peak_mb` of resident memory, of this process without its children.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    peak_kb, ended = 0, 0
    while not ended:
        ended, status, used = os.wait4(process.pid, os.WNOHANG)
        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8") if not ended else ""
        peak_kb = max([peak_kb, *map(int, re.findall(r"VmHWM:\s+(\d+)", lines))])
        time.sleep(0.1)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}.")
    cpu = used.ru_utime + used.ru_stime
    return {"seconds": time.perf_counter() - started, "cpu_seconds": cpu, "peak_mb": peak_kb / 1024}
