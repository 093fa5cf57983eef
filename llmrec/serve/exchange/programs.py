"""Programs that `llmrec export` writes a checkpoint for; importing them imports torch, which takes seconds."""

from __future__ import annotations

from collections.abc import Callable

from llmrec.runtime.manifest import JsonObject
from llmrec.serve.engines.export import write_vllm
from llmrec.serve.exchange.flashrec import write_flashrec
from llmrec.serve.exchange.space import write_space
from llmrec.serve.exchange.torch_program import write_torch

# Program -> function of the checkpoint and of the directory to write, which returns counts for the manifest.
WRITERS: dict[str, Callable[..., JsonObject]] = {
    "flashrec": write_flashrec,
    "vllm": write_vllm,
    "space": write_space,
    "torch": write_torch,
}
