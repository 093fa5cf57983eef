"""export: write a checkpoint in the format of another program."""

from __future__ import annotations

from pathlib import Path

from llmrec.configs import ExportConfig
from llmrec.runtime.console import tell
from llmrec.runtime.hub.checkpoints import check_is_ours, resolve
from llmrec.runtime.manifest import JsonObject, read_manifest, verify
from llmrec.runtime.stage_directory import run_stage


def main(config: ExportConfig) -> JsonObject:
    """Export a checkpoint.

    Returns:
        `out`, `to`, and the counts of the manifest.

    Raises:
        ValueError: If the checkpoint cannot be used, or the other program cannot read its like.
    """
    checkpoint = check_is_ours(resolve(config.model))
    more = {} if config.catalog is None else {"catalog": config.catalog}
    if config.catalog is not None:
        verify(config.catalog, "prepare")

    def build(directory: Path) -> JsonObject:
        from llmrec.serve.exchange.programs import WRITERS  # torch, whose import takes seconds

        return WRITERS[config.to](checkpoint, directory, **more)

    out = run_stage("export", config, {"model": config.model, **more}, build)
    return {"out": str(out), "to": config.to, **read_manifest(out)["counts"]}


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    counts = ", ".join(f"{value:,} {name}" for name, value in result.items() if isinstance(value, int))
    tell(f"export to {result['to']}: {counts} -> {result['out']}")
