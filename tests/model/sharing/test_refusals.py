"""What a push or a download says when the Hub, the network or the disk fails, and that nothing is there in part."""

from __future__ import annotations

import errno

import pytest
from huggingface_hub import constants

from llmrec.recommender import Recommender
from tests.model.sharing.test_round_trip import HISTORIES

COMMIT = "POST /api/models/ann/shop/commit"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """The client waits between its attempts."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


@pytest.mark.parametrize(
    ("where", "status", "said"),
    [
        ("POST /api/repos/create", 401, "the Hub does not know you; log in with `hf auth login`"),
        ("POST /api/repos/create", 403, "you may not do this with 'ann/shop'; check the owner's name"),
        ("POST /api/repos/create", None, "no answer from the Hub"),
        ("POST /api/models/ann/shop/preupload", None, "no answer from the Hub"),
        ("/info/lfs/objects/batch", 403, "you may not do this with 'ann/shop'"),
        ("PUT /lfs/", None, "no answer from the Hub"),
        ("PUT /lfs/", 507, "the Hub answered 507"),
        (COMMIT, 409, "somebody else changed it at the same time"),
        (COMMIT, 500, "the Hub answered 500"),
        (COMMIT, None, "no answer from the Hub"),
    ],
)
def test_a_push_that_fails_is_one_line_and_leaves_no_file(hub, recommender, where, status, said):
    hub.faults[where] = status
    with pytest.raises(ConnectionError, match="'ann/shop' was not uploaded to the Hugging Face Hub: ") as caught:
        recommender.push_to_hub("ann/shop")
    assert said in str(caught.value) and "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    found = hub.repositories.get(("models", "ann/shop"))
    assert found is None or list(found.commits[-1][1]) == [".gitattributes"]
    hub.faults.clear()
    recommender.push_to_hub("ann/shop")  # the same call again is the remedy
    assert Recommender.from_pretrained("ann/shop", device="cpu").recommend(HISTORIES) == recommender.recommend(
        HISTORIES
    )


def test_a_failed_push_leaves_the_old_state(hub, recommender, tuned):
    recommender.push_to_hub("ann/shop")
    before = dict(hub.files("ann/shop"))
    hub.faults["PUT /lfs/"] = None
    changed = Recommender.from_pretrained(tuned, device="cpu")
    changed.model.get_input_embeddings().weight.data.mul_(2)
    with pytest.raises(ConnectionError):
        changed.push_to_hub("ann/shop")
    assert hub.files("ann/shop") == before


def test_a_stranger_may_neither_write_nor_read(hub, recommender, monkeypatch):
    with pytest.raises(ConnectionError, match="you may not do this with 'bob/shop'"):
        recommender.push_to_hub("bob/shop")
    recommender.push_to_hub("ann/shop")
    monkeypatch.setenv("HF_TOKEN", "hf_of_someone_else")
    with pytest.raises(ConnectionError, match="the Hub does not know you"):
        recommender.push_to_hub("ann/shop")
    with pytest.raises(ValueError, match="there is no such repository, or it is private and you are not logged in"):
        Recommender.from_pretrained("ann/shop", device="cpu")


def test_a_commit_of_somebody_else_in_the_meantime_is_not_overwritten(hub, recommender, monkeypatch):
    recommender.push_to_hub("ann/shop")
    repository = hub.repositories["models", "ann/shop"]
    validate = hub.server.RequestHandlerClass.validate

    def validated_late(self, body):
        repository.add({**repository.commits[-1][1], "theirs.txt": b"1"})
        validate(self, body)

    monkeypatch.setattr(hub.server.RequestHandlerClass, "validate", validated_late)
    with pytest.raises(ConnectionError, match="somebody else changed it at the same time"):
        recommender.push_to_hub("ann/shop")
    assert "theirs.txt" in hub.files("ann/shop")


def test_a_name_or_a_licence_that_the_hub_does_not_know(hub, recommender):
    with pytest.raises(ValueError, match="Repo id"):
        recommender.push_to_hub("no such/name/at all")
    with pytest.raises(ValueError, match="repo_id is 'shop'; give owner/name"):
        recommender.push_to_hub("shop")
    assert hub.requests == []
    with pytest.raises(ValueError, match=r"'ann/shop' was not uploaded: .*\"license\" must be one of") as caught:
        recommender.push_to_hub("ann/shop", license="my own")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_named_before_anything_is_sent(hub, recommender, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("llmrec.recommender.save_model", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        recommender.push_to_hub("ann/shop")
    assert caught.value.filename and hub.requests == []


def test_a_download_that_fails_is_one_line_and_the_next_one_is_whole(hub, recommender, monkeypatch):
    recommender.push_to_hub("ann/shop")
    hub.faults["GET /ann/shop/resolve"] = None
    with pytest.raises(ValueError, match=r"could be fetched from the Hub: no answer from the Hub .*check the network"):
        Recommender.from_pretrained("ann/shop", device="cpu")
    hub.faults.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set, and the cache does not have all of it"):
        Recommender.from_pretrained("ann/shop", device="cpu")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert Recommender.from_pretrained("ann/shop", device="cpu").recommend(HISTORIES) == recommender.recommend(
        HISTORIES
    )


def test_a_disk_that_fills_while_a_model_is_fetched(hub, recommender, monkeypatch):
    recommender.push_to_hub("ann/shop")

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(ValueError, match="the disk is full; free some space, or set HF_HOME"):
        Recommender.from_pretrained("ann/shop", device="cpu")
