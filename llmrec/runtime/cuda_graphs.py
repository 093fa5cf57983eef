"""CudaGraphs: functions of tensors, replayed as one CUDA graph for each set of input shapes.

A search of three small passes through a decoder is thousands of kernels of a few microseconds each; to launch them one
by one takes longer than to compute them. A graph launches all of them at once. The function must have fixed shapes and
must not read anything back to the host.
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
    """A captured graph and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: list[Tensor]


class CudaGraphs:
    """Functions of tensors that are captured once for each set of shapes and replayed; the first call runs eagerly.

    All graphs share one pool of memory. So they run one at a time, and none runs while outputs of another are copied.

    Args:
        max_graphs: Largest number of graphs kept; the one that was not replayed for longest is dropped first.
    """

    def __init__(self, max_graphs: int = 64):
        self.max_graphs, self.pool = max_graphs, torch.cuda.graph_pool_handle()
        self.calls: Counter[tuple] = Counter()
        self.graphs: dict[tuple, Captured] = {}
        self.lock = threading.Lock()

    def run(
        self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], kind: Hashable = None
    ) -> Sequence[Tensor]:
        """Call a function, as a replay of its graph if it has been captured.

        Args:
            function: Function of CUDA tensors that returns new CUDA tensors.
            inputs: Arguments of the function.
            kind: Key of the function; functions of one kind must compute the same.

        Returns:
            Outputs of the function, in memory of their own.
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
            captured = self.graphs[key] = self.graphs.pop(key)  # the latest last
            for place, tensor in zip(captured.inputs, inputs, strict=True):
                place.copy_(tensor)
            captured.graph.replay()
            return [output.clone() for output in captured.outputs]

    def _capture(self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Captured:
        places, graph = [tensor.clone() for tensor in inputs], torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        # None is a stream of torch's for captures; the default stream cannot be captured.
        stream = None if current == torch.cuda.default_stream() else current
        # Another thread, such as one that loads a model, may allocate memory meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
            outputs = list(function(*places))
        return Captured(graph, places, outputs)
