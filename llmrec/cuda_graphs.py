"""CudaGraphs: a function of tensors, replayed as one CUDA graph for each set of input shapes.

A search of three small passes through a decoder is thousands of kernels of a few microseconds; launched one by one they
take longer than they compute. A graph launches them all at once. The function must have fixed shapes and must not read
anything back to the host.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
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
    """Replays of a function; the first call of each set of shapes runs as it is.

    Args:
        function: From CUDA tensors to new CUDA tensors.
        max_graphs: Graphs kept; beyond that the one captured first goes.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], max_graphs: int = 64):
        self.function, self.max_graphs = function, max_graphs
        self.calls: Counter[tuple] = Counter()
        self.graphs: dict[tuple, Captured] = {}
        self.pool = torch.cuda.graph_pool_handle()  # shared, since graphs run one after another
        self.lock = threading.Lock()

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """The function's outputs, as tensors of their own."""
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        with self.lock:
            self.calls[key] += 1
            if self.calls[key] <= EAGER_CALLS:
                return self.function(*inputs)
            if key not in self.graphs:
                while len(self.graphs) >= self.max_graphs:
                    del self.graphs[next(iter(self.graphs))]
                self.graphs[key] = self._capture(inputs)
            captured = self.graphs[key]
            for place, tensor in zip(captured.inputs, inputs, strict=True):
                place.copy_(tensor)
            captured.graph.replay()
            return [output.clone() for output in captured.outputs]

    def _capture(self, inputs: Sequence[Tensor]) -> Captured:
        places, graph = [tensor.clone() for tensor in inputs], torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            outputs = list(self.function(*places))
        return Captured(graph, places, outputs)
