"""Files that are replaced are whole or as they were, and leave nothing beside them."""

from __future__ import annotations

import errno
import os

import pytest

from llmrec.runtime import disk


def test_a_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with disk.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == tmp_path
    assert path.read_text() == "new" and [each.name for each in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("no"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_failure_leaves_the_old_file_alone(error, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)), disk.replacing(path) as temporary:
        temporary.write_text("ne")
        raise error
    assert path.read_text() == "old" and [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_write_names_the_file_that_was_to_be_written(tmp_path):
    with pytest.raises(OSError) as caught, disk.replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("ne")
        raise OSError(errno.EIO, "Input/output error")
    assert caught.value.filename == str(tmp_path / "a.txt")


def test_a_link_to_the_file_stays_a_file_of_its_own(tmp_path):
    (tmp_path / "b.txt").write_text("theirs")
    (tmp_path / "a.txt").symlink_to(tmp_path / "b.txt")
    with disk.replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("ours")
    assert (tmp_path / "b.txt").read_text() == "theirs" and (tmp_path / "a.txt").read_text() == "ours"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EMFILE, errno.EROFS, errno.EEXIST])
def test_every_cause_has_a_remedy(number):
    words = {errno.ENOSPC: "Free some space", errno.EMFILE: "ulimit -n", errno.EROFS: "only be read", errno.EIO: "disk"}
    assert words.get(number, "permissions") in disk.remedy(number)


def test_the_cause_is_told_from_what_is_no_failure_of_a_file(tmp_path):
    for error in (KeyError("x"), RuntimeError("shapes"), ValueError("Permission denied (os error 13)")):
        assert disk.cause(error, tmp_path) is None
    refused = ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    assert disk.cause(refused, tmp_path) is refused
