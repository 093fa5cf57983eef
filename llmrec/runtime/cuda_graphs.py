"""CudaGraphs: functions of tensors, replayed as one CUDA graph for each set of input shapes.

A search of three small passes through a decoder is thousands of kernels of a few microseconds; launched one by one they
take longer than they compute. A graph launches them all at once. The function must have fixed shapes and must not read
anything back to the host.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EAGER_CALLS = 1  # of a shape before it is captured; it warms libraries up, and a shape may never come again


@dataclass(frozen=True)
class Captured:
    """A graph with the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: list[Tensor]


class CudaGraphs:
    """Replays of functions of tensors; the first call of each set of shapes runs as it is.

    All graphs share their memory, which is why they run one at a time, and only one of them while its outputs are read.

    Args:
        max_graphs: Graphs kept; beyond that the one captured first goes.
    """

    def __init__(self, max_graphs: int = 64):
        self.max_graphs, self.pool = max_graphs, torch.cuda.graph_pool_handle()
        self.calls: Counter[tuple] = Counter()
        self.graphs: dict[tuple, Captured] = {}
        self.lock = threading.Lock()

    def run(
        self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], kind: Hashable = None
    ) -> Sequence[Tensor]:
        """Outputs of a function, as tensors of their own.

        Args:
            function: From CUDA tensors to new CUDA tensors.
            inputs: What it is called with.
            kind: Tells functions apart that compute differently; those of one kind must compute alike.
        """
        key = (kind, *((tensor.shape, tensor.dtype) for tensor in inputs))
        with self.lock:
            self.calls[key] += 1
            if self.calls[key] <= EAGER_CALLS:
                return function(*inputs)
            if key not in self.graphs:
                while len(self.graphs) >= self.max_graphs:
                    del self.graphs[next(iter(self.graphs))]
                self.graphs[key] = self._capture(function, inputs)
            captured = self.graphs[key]
            for place, tensor in zip(captured.inputs, inputs, strict=True):
                place.copy_(tensor)
            captured.graph.replay()
            return [output.clone() for output in captured.outputs]

    def _capture(self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Captured:
        places, graph = [tensor.clone() for tensor in inputs], torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        # None is a stream of torch's for captures; the default stream cannot be captured.
        stream = None if current == torch.cuda.default_stream() else current
        with torch.cuda.graph(graph, pool=self.pool, stream=stream):
            outputs = list(function(*places))
        return Captured(graph, places, outputs)
