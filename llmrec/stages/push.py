"""push: send a checkpoint, the semantic IDs of a catalogue, or the folder of a Space to the Hub."""

from __future__ import annotations

from pathlib import Path

from llmrec.configs import CHECKPOINTS, PushConfig
from llmrec.model.sharing.metadata import read_metrics
from llmrec.runtime.console import tell
from llmrec.runtime.hub.checkpoints import check_is_ours, resolve
from llmrec.runtime.hub.repository import Upload, check_repo_id, upload
from llmrec.runtime.manifest import MANIFEST, JsonObject, content_hash, read_manifest


def main(config: PushConfig) -> JsonObject:
    """Upload a directory as one commit.

    Returns:
        `address` of the commit, and whether the repository is `private`.

    Raises:
        ConnectionError: If the Hub cannot be reached or refuses.
        ValueError: If the directory is of another stage or was changed, or an option does not go with it.
    """
    check_repo_id(config.repo_id)
    source = Path(config.source)
    if not source.is_dir():
        raise ValueError(f"source '{source}' is no directory; give that of a checkpoint or of `llmrec tokenize`.")
    made: JsonObject = read_manifest(source) if (source / MANIFEST).is_file() else {"stage": CHECKPOINTS[0]}
    stage = made["stage"]
    is_space = stage == "export" and made["identity"].get("config", {}).get("to") == "space"
    if is_space and config.license is not None:
        raise ValueError(f"license is written into '{source / 'README.md'}' for a Space; leave it out.")
    if config.metrics is not None and stage not in CHECKPOINTS:
        raise ValueError(f"metrics are of a checkpoint, and '{source}' holds none; leave them out.")
    if config.metrics is not None:
        check_metrics(Path(config.metrics), source)
    if is_space:
        sent = push_folder(source, config.repo_id, config.private)
    elif stage == "tokenize":
        from llmrec.sid.sharing import push_sids  # torch, whose import takes seconds

        sent = push_sids(source, config.repo_id, config.private, config.license)
    elif stage in CHECKPOINTS:
        checkpoint = check_is_ours(resolve(source))
        metrics = None if config.metrics is None else read_metrics(config.metrics)
        from llmrec.model.sharing.push import push_checkpoint  # torch, whose import takes seconds

        sent = push_checkpoint(checkpoint, config.repo_id, metrics, config.private, config.license)
    else:
        raise ValueError(
            f"'{source}' was written by `llmrec {stage}`. A checkpoint, the output of `llmrec tokenize` or of `llmrec "
            "export --to space` is pushed; llmrec sends no catalogue, whose interactions are of its users."
        )
    return {"address": sent.address, "private": sent.private}


def check_metrics(metrics: Path, source: Path) -> None:
    """Refuse the accuracy of another checkpoint; of a file without its manifest nothing is known.

    Raises:
        ValueError: If the evaluation was of another one.
    """
    if (metrics.parent / MANIFEST).is_file():
        inputs = read_manifest(metrics.parent)["identity"].get("inputs", {})
        if inputs.get("model") != content_hash(source):
            raise ValueError(f"'{metrics}' is not of '{source}', which was changed since or is another checkpoint; run "
                             "`llmrec evaluate` on it and give that result.")  # fmt: skip


def push_folder(directory: Path, repo_id: str, private: bool) -> Upload:
    """Send the folder of a Space, whose card and Dockerfile may have been edited.

    Its manifest has paths of this machine, and files whose names begin with a dot may hold keys: they are not sent.
    """
    from llmrec.serve.exchange.space import CATALOG, CHECKPOINT  # torch, whose import takes seconds

    paths = [path for path in sorted(directory.rglob("[!.]*")) if path.is_file()]
    names = [path.relative_to(directory).as_posix() for path in paths]
    files = {name: path for name, path in zip(names, paths, strict=True) if "/." not in f"/{name}"}
    files.pop(MANIFEST)
    return upload(files, repo_id, "space", private, (f"{CHECKPOINT}/*", f"{CATALOG}/*"))


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    seen = "its owner alone sees it" if result["private"] else "everybody sees it"
    tell(f"push: {result['address']} ({seen}; its README.md says what the files show)")
