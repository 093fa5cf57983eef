"""push: send a checkpoint or the semantic IDs of a catalogue to the Hub."""

from __future__ import annotations

from pathlib import Path

from llmrec.configs import PushConfig
from llmrec.model.checkpoint import TRAINING, resolve
from llmrec.model.sharing.push import push_checkpoint
from llmrec.runtime.console import tell
from llmrec.runtime.manifest import MANIFEST, JsonObject, read_manifest
from llmrec.sid.sharing import push_sids

CHECKPOINTS = ("extend", *TRAINING)


def main(config: PushConfig) -> JsonObject:
    """Upload a directory as one commit.

    Returns:
        `address` of the commit, and whether the repository is `private`.

    Raises:
        ConnectionError: If the Hub cannot be reached or refuses.
        ValueError: If the directory is of another stage or was changed, or an option does not go with it.
    """
    source = Path(config.source)
    if not source.is_dir():
        raise ValueError(f"source '{source}' is no directory; give that of a checkpoint or of `llmrec tokenize`.")
    stage = read_manifest(source)["stage"] if (source / MANIFEST).is_file() else CHECKPOINTS[0]
    if stage == "tokenize":
        if config.metrics is not None:
            raise ValueError(f"metrics are of a checkpoint, and '{source}' holds semantic IDs; leave them out.")
        sent = push_sids(source, config.repo_id, config.private, config.license)
    elif stage in CHECKPOINTS:
        sent = push_checkpoint(resolve(source), config.repo_id, config.metrics, config.private, config.license)
    else:
        raise ValueError(
            f"'{source}' was written by `llmrec {stage}`. A checkpoint or the output of `llmrec tokenize` is pushed; "
            "llmrec sends no catalogue, whose interactions are of its users."
        )
    return {"address": sent.address, "private": sent.private}


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    seen = "its owner alone sees it" if result["private"] else "everybody sees it"
    tell(f"push: {result['address']} ({seen}; its README.md says what the files show)")
