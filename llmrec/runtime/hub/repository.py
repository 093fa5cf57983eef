"""Repositories of the Hugging Face Hub: fetched at a revision, and written by one commit each.

`HfApi.upload_folder` may make several commits of a large folder, and keeps files that the folder no longer has. Here a
reader sees an upload whole or not at all, and no weights of an earlier one beside it.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)

from llmrec.runtime import disk
from llmrec.runtime.console import has_screen
from llmrec.runtime.reading import first_line

RepoType = Literal["model", "dataset", "space"]
LOGIN = "`hf auth login`"


class Upload(NamedTuple):
    """An upload that was committed: its address, and whether only its owner sees it."""

    address: str
    private: bool


def download(source: str, repo_type: RepoType = "model") -> Path:
    """Fetch a repository into the cache of huggingface_hub, which later calls and `HF_HUB_OFFLINE=1` read.

    Args:
        source: `owner/name`, or `owner/name@revision` with a branch, a tag or the hash of a commit.
        repo_type: Kind of the repository.

    Returns:
        Its directory in the cache.

    Raises:
        ValueError: If it cannot be had; the message says why.
    """
    repo_id, _, revision = source.partition("@")
    try:
        with _bars_on_a_screen():
            return Path(snapshot_download(repo_id, repo_type=repo_type, revision=revision or None))
    except Exception as error:  # also of the HTTP library of the client, which is another in every version
        raise ValueError(reason(error, source)) from error


def check_repo_id(repo_id: str) -> None:
    """Refuse what is no full name of a repository, before anything is written or sent.

    Raises:
        ValueError: If it has no owner, or characters that the Hub does not take.
    """
    if "/" not in repo_id:
        raise ValueError(f"repo_id is '{repo_id}'; give owner/name, as `hf auth whoami` tells who you are.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id is '{repo_id}', which the Hub does not take: {first_line(error)}") from error


def upload(
    files: Mapping[str, Path], repo_id: str, repo_type: RepoType, private: bool, replaced: Collection[str]
) -> Upload:
    """Make a repository if there is none, and commit files to it.

    Args:
        files: Name in the repository -> file.
        repo_id: owner/name.
        repo_type: Kind of the repository.
        private: Visibility of a repository that is made; one that exists keeps its own.
        replaced: Patterns of names: what matches them in the repository and is not among the files is removed.

    Raises:
        ConnectionError: If the Hub cannot be reached or refuses; the repository then has nothing of it.
        ValueError: If `repo_id` is no name of a repository, or the Hub finds the card malformed.
    """
    check_repo_id(repo_id)
    api = HfApi()
    try:
        sdk = "docker" if repo_type == "space" else None
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk)
        found = api.repo_info(repo_id, repo_type=repo_type)
        old = [
            name for name in api.list_repo_files(repo_id, repo_type=repo_type, revision=found.sha) if name not in files
        ]
        removed = [name for name in old if any(fnmatch(name, pattern) for pattern in replaced)]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(name, str(path)) for name, path in files.items()),
            *(CommitOperationDelete(name, is_folder=False) for name in removed),
        ]
        with warnings.catch_warnings(), _bars_on_a_screen():  # the SID table of a model belongs beside it
            warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
            commit = api.create_commit(
                repo_id,
                operations,
                commit_message="Upload with llmrec",
                repo_type=repo_type,
                parent_commit=found.sha,
            )
    except Exception as error:
        if type(error) is ValueError and "README.md" in str(error):
            raise ValueError(f"'{repo_id}' was not uploaded: {' '.join(str(error).split())}") from error
        raise ConnectionError(
            f"'{repo_id}' was not uploaded to the Hugging Face Hub: {reason(error, repo_id)}. An upload is one commit, "
            "so nothing of it is there in part."
        ) from error
    return Upload(commit.commit_url, bool(found.private))


@contextlib.contextmanager
def _bars_on_a_screen() -> Iterator[None]:
    """Leave out the client's progress bars where llmrec shows none of its own."""
    is_changed = not has_screen() and not are_progress_bars_disabled()
    if is_changed:
        disable_progress_bars()
    try:
        yield
    finally:
        if is_changed:
            enable_progress_bars()


def reason(error: BaseException, source: str) -> str:
    """Say in a clause why the Hub did not do what it was asked for, and what to do.

    Args:
        error: What huggingface_hub raised.
        source: Repository that was asked for.
    """
    chain = _chain(error)
    if any(disk.full_disk(each) is not None for each in chain):
        return "the disk is full; free some space, or set HF_HOME to a directory on another disk"
    if any(isinstance(each, OfflineModeIsEnabled) for each in chain):
        repo_id, _, revision = source.partition("@")
        command = f"hf download {repo_id}" + (f" --revision {revision}" if revision else "")
        return f"HF_HUB_OFFLINE is set, and the cache does not have all of it; run `{command}` with a network first"
    answered = next((each for each in chain if isinstance(each, HfHubHTTPError)), None)
    if answered is None:
        lost = any(isinstance(each, ConnectionError) or type(each).__module__.startswith("http") for each in chain)
        said = first_line(chain[-1])
        return f"no answer from the Hub ({said}); check the network and run it again" if lost else said
    status = answered.response.status_code
    if isinstance(answered, GatedRepoError):
        return "its owner lets in only who has asked for it; ask on its page"
    if isinstance(answered, RevisionNotFoundError):
        return "the repository has no such revision; give a branch, a tag or the hash of a commit after the @"
    if isinstance(answered, RepositoryNotFoundError):
        return f"there is no such repository, or it is private and you are not logged in as one who sees it ({LOGIN})"
    if status == 401:
        return f"the Hub does not know you; log in with {LOGIN}"
    if status == 403:
        return f"you may not do this with '{source}'; check the owner's name, and that your token may write ({LOGIN})"
    if status in (409, 412):
        return "somebody else changed it at the same time; look at its commits, then run it again"
    said = answered.server_message or first_line(answered)
    return f"the Hub answered {status} ({' '.join(said.split())}); run it again later"


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what caused it, the first cause last."""
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) is not None and cause not in found:
        found.append(cause)
    return found
