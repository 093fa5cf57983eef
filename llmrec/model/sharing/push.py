"""A checkpoint as a model repository of the Hub: which of its files are sent, and what they show."""

from __future__ import annotations

import tempfile
from pathlib import Path

from llmrec.model.card import FILE as CARD
from llmrec.model.card import write_card
from llmrec.model.checkpoint import FILE as CONFIG
from llmrec.runtime import disk
from llmrec.runtime.hub.repository import Upload, upload
from llmrec.runtime.manifest import JsonObject
from llmrec.runtime.model_files import READ
from llmrec.sid.catalogs.catalog_record import FILE as RECORD
from llmrec.sid.table import FILE as TABLE

SENT = (*READ, CONFIG, TABLE, RECORD)  # patterns of names; manifests and logs name paths and stay at home


def push_checkpoint(
    directory: Path, repo_id: str, metrics: JsonObject | None, private: bool, license: str | None
) -> Upload:
    """Send a checkpoint as one commit, with a card made for it.

    Args:
        directory: Checkpoint, which the caller has verified.
        repo_id: owner/name on the Hub.
        metrics: Content of metrics.json of `llmrec evaluate`, for the card.
        private: Visibility of a repository that is made.
        license: Id of a licence, for the card.

    Raises:
        ConnectionError: If the Hub cannot be reached or refuses.
        ValueError: If `repo_id` is no name, or the card is refused.
    """
    with tempfile.TemporaryDirectory() as scratch, disk.naming(Path(scratch)):
        write_card(directory, repo_id, metrics, license, Path(scratch))
        files = {**checkpoint_files(directory), CARD: Path(scratch, CARD)}
        return upload(files, repo_id, "model", private, SENT)


def checkpoint_files(directory: Path) -> dict[str, Path]:
    """Name -> path of the files of a checkpoint that others may have."""
    return {path.name: path for path in sorted(directory.iterdir()) if any(map(path.match, SENT))}
