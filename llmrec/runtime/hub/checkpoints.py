"""Directory of a checkpoint, found and checked without torch, so that what cannot be used is refused at once."""

from __future__ import annotations

from pathlib import Path

from llmrec.configs import CHECKPOINTS
from llmrec.runtime.hub.repository import download
from llmrec.runtime.manifest import MANIFEST, PARTIAL, verify
from llmrec.runtime.model_files import OURS, check_binding


def resolve(source: str | Path) -> Path:
    """Find the local directory of a checkpoint, and verify it if llmrec wrote a manifest.

    Args:
        source: Path or Hub id; `owner/name@revision` is the state of a branch, tag or commit.

    Raises:
        ValueError: If it is neither a directory nor reachable on the Hub, or a file was changed.
    """
    path = Path(source)
    if path.is_dir():
        return verify(path, *CHECKPOINTS) if (path / MANIFEST).is_file() else _bound(path)
    if path.with_name(path.name + PARTIAL).is_dir():
        return verify(path)
    try:
        downloaded = download(str(source))
    except ValueError as error:
        raise ValueError(
            f"'{source}' is neither a checkpoint directory nor a model that could be fetched from the Hub: {error}."
        ) from error
    return _bound(downloaded)


def check_is_ours(directory: Path) -> Path:
    """Refuse a directory without llmrec.json, such as that of a plain causal LM.

    Returns:
        The directory.

    Raises:
        ValueError: If it has none.
    """
    if not (directory / OURS).is_file():
        raise ValueError(f"'{directory}' has no {OURS}: it is not a checkpoint of llmrec. `llmrec extend` makes one.")
    return directory


def _bound(path: Path) -> Path:
    """Check the files of a checkpoint without a manifest by its llmrec.json, if there is one."""
    if (path / OURS).is_file():
        check_binding(path)
    return path
