"""export: write a checkpoint in the format of another program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llmrec.configs import ExportConfig
from llmrec.model.checkpoint import resolve
from llmrec.runtime.console import tell
from llmrec.runtime.manifest import JsonObject, read_manifest
from llmrec.runtime.stage_directory import run_stage
from llmrec.serve.engines.export import write_vllm
from llmrec.serve.exchange.flashrec import write_flashrec
from llmrec.serve.exchange.space import write_space
from llmrec.serve.exchange.torch_program import write_torch

# Target -> function of the checkpoint and of the directory to write, which returns counts for the manifest.
TARGETS: dict[str, Callable[..., JsonObject]] = {
    "flashrec": write_flashrec,
    "vllm": write_vllm,
    "space": write_space,
    "torch": write_torch,
}


def main(config: ExportConfig) -> JsonObject:
    """Export a checkpoint.

    Returns:
        `out`, `to`, and the counts of the manifest.

    Raises:
        ValueError: If the checkpoint cannot be used, or the other program cannot read its like.
    """
    checkpoint = resolve(config.model)
    more = {} if config.catalog is None else {"catalog": config.catalog}

    def build(directory: Path) -> JsonObject:
        return TARGETS[config.to](checkpoint, directory, **more)

    out = run_stage("export", config, {"model": config.model, **more}, build)
    return {"out": str(out), "to": config.to, **read_manifest(out)["counts"]}


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    counts = ", ".join(f"{value:,} {name}" for name, value in result.items() if isinstance(value, int))
    tell(f"export to {result['to']}: {counts} -> {result['out']}")
