"""Checkpoints on a Hub of the loopback device: what arrives, for whom, and how it is read again."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.cli import hf

from llmrec.recommender import Recommender

HISTORIES = [["item-0", "item-1"], ["item-5"], []]
SENT = {
    "README.md", "catalog_record.parquet", "config.json", "generation_config.json", "llmrec.json",
    "model.safetensors", "sid_table.parquet", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


def test_a_checkpoint_answers_from_the_hub_as_it_did_before(hub, recommender):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # parquet in a model repository is meant
        address = recommender.push_to_hub("ann/shop")
    sha, files = hub.repositories["models", "ann/shop"].commits[-1]
    assert address == f"{hub.address}/ann/shop/commit/{sha}" and files.keys() - {".gitattributes"} == SENT
    card = files["README.md"].decode()
    assert "\n# shop\n" in card and 'from_pretrained("ann/shop")' in card
    assert json.loads(files["llmrec.json"])["sid_table_sha256"] == recommender.table.sha256
    again = Recommender.from_pretrained("ann/shop", device="cpu")
    assert again.recommend(HISTORIES) == recommender.recommend(HISTORIES)


@pytest.mark.parametrize("private", [True, False])
def test_a_repository_is_private_unless_told_otherwise_and_keeps_its_visibility(hub, recommender, private):
    recommender.push_to_hub("ann/shop", **({} if private else {"private": False}))
    assert hub.repositories["models", "ann/shop"].private == private
    recommender.push_to_hub("ann/shop", private=not private)
    assert hub.repositories["models", "ann/shop"].private == private


def test_a_revision_is_read_as_it_was(hub, recommender, tuned):
    recommender.push_to_hub("ann/shop")
    first = hub.repositories["models", "ann/shop"].commits[-1][0]
    changed = Recommender.from_pretrained(tuned, device="cpu")
    changed.model.get_input_embeddings().weight.data.mul_(-1)
    changed.push_to_hub("ann/shop")
    old, new = (Recommender.from_pretrained(name, device="cpu") for name in (f"ann/shop@{first}", "ann/shop"))
    assert old.recommend(HISTORIES) == recommender.recommend(HISTORIES)
    assert new.recommend(HISTORIES) == changed.recommend(HISTORIES) != old.recommend(HISTORIES)
    with pytest.raises(ValueError, match="has no such revision; give a branch, a tag or the hash of a commit after"):
        Recommender.from_pretrained("ann/shop@v9", device="cpu")


def test_weights_of_an_earlier_upload_do_not_stay_beside_the_new_ones(hub, recommender):
    """They would be read with the new ones, and llmrec refuses a checkpoint with files that were added."""
    recommender.push_to_hub("ann/shop")
    repository = hub.repositories["models", "ann/shop"]
    repository.add({**hub.files("ann/shop"), "model-00001-of-00002.safetensors": b"old", "photo.png": b"kept"})
    before = len(repository.commits)
    recommender.push_to_hub("ann/shop")
    assert hub.files("ann/shop").keys() - {".gitattributes"} == SENT | {"photo.png"}
    assert len(repository.commits) == before + 1
    Recommender.from_pretrained("ann/shop", device="cpu")


def test_it_is_downloaded_by_hf_and_answers_without_a_network(hub, recommender, monkeypatch):
    recommender.push_to_hub("ann/shop")
    monkeypatch.setattr(sys, "argv", ["hf", "download", "ann/shop"])
    monkeypatch.setenv("HF_HUB_DISABLE_UPDATE_CHECK", "1")
    with contextlib.suppress(SystemExit):
        hf.main()
    seen = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = Recommender.from_pretrained("ann/shop", device="cpu")
    assert again.recommend(HISTORIES) == recommender.recommend(HISTORIES)
    assert len(hub.requests) == seen > 10


def test_offline_says_what_to_download(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE is set.* run `hf download ann/shop --revision v1` with"):
        Recommender.from_pretrained("ann/shop@v1", device="cpu")


def test_the_client_reads_what_the_server_lists(hub, recommender):
    """The fake answers the client's listing as the Hub does, so that the other tests stand on firm ground."""
    recommender.push_to_hub("ann/shop")
    listed = {file.path: file for file in HfApi().list_repo_tree("ann/shop", recursive=True)}
    assert listed.keys() - {".gitattributes"} == SENT
    assert listed["model.safetensors"].lfs.size == len(hub.files("ann/shop")["model.safetensors"])
