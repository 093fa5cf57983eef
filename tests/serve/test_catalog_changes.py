"""Changes of what answers: reload, append, remove and rollback, without a lost request."""

from __future__ import annotations

import asyncio
import json
import shutil

import numpy as np
import pytest

from llmrec.configs import ServeConfig
from llmrec.serve.administration import REMOVED, read_removed, run_stage
from llmrec.serve.gate import Access
from llmrec.serve.generation import Generation
from llmrec.serve.service import Service
from llmrec.sid.table import SidTable
from tests.conftest import CODES
from tests.serve.conftest import HISTORY, error_of
from tests.support.extended import write_sid

TOKEN = "a-long-enough-admin-token"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def own(generation):
    """A service whose generation may change."""
    service = Service(generation, ServeConfig(model="m"))
    yield service
    service.close()


@pytest.fixture
def change(client, own, tmp_path):
    """Function that sends changes one after the other to `own`, between two requests for recommendations."""

    def send(*changes: tuple[str, dict | None], admin_dir=tmp_path):
        async def run():
            async with client(own, Access(admin_token=TOKEN), admin_dir) as connected:
                answers = []
                for route, body in changes:
                    answers.append(await connected.post(f"/v1/catalog:{route}", json=body, headers=ADMIN))
                shown = await connected.post("/v1/recommend", json={"history": HISTORY, "k": 20, "exclude": None})
                return answers, {item["item_id"] for item in shown.json()["items"]}

        return asyncio.run(run())

    return send


def test_removed_items_are_gone_at_once_and_after_a_restart(change, tmp_path, generation, tuned, toy):
    (answer,), shown = change(("remove", {"item_ids": ["item-3", "item-5"]}))
    assert (
        answer.status_code == 200 and answer.json()["items"] == 10 and answer.json()["generation"] > generation.number
    )
    assert shown == {f"item-{row}" for row in range(12)} - {"item-3", "item-5"}
    restarted = Generation.load(ServeConfig(model=str(tuned), catalog=toy[0]), read_removed(str(tmp_path)))
    assert restarted.num_shown == 10 and restarted.removed == {"item-3", "item-5"}


def test_a_removed_item_returns_when_the_list_lacks_it_and_is_read_again(change, tmp_path):
    change(("remove", {"item_ids": ["item-3", "item-5"]}))
    (tmp_path / REMOVED).write_text(json.dumps(["item-5"]))
    _, shown = change(("reload", {}))
    assert "item-3" in shown and "item-5" not in shown


@pytest.mark.parametrize(
    ("item_ids", "sentence"),
    [
        (["item-1", "strange"], "1 of the items are unknown, first 'strange'; nothing was removed."),
        ([f"item-{row}" for row in range(12)], "nothing would be left to recommend"),
        ([], "item_ids: list should have at least 1 item"),
    ],
)
def test_a_removal_that_makes_no_sense_changes_nothing(change, tmp_path, item_ids, sentence):
    (answer,), shown = change(("remove", {"item_ids": item_ids}))
    assert answer.status_code == 422 and sentence in error_of(answer)
    assert len(shown) == 12 and not (tmp_path / REMOVED).exists()


def test_a_reload_reads_another_checkpoint_and_a_rollback_returns(change, own, tmp_path, toy, generation):
    shutil.copytree(toy[1], tmp_path / "next")
    own.generation = generation = Generation.load(ServeConfig(model=generation.config.model, device="cpu"))
    answers, _ = change(("reload", {"model": "next"}), ("rollback", None))
    loaded, back = (answer.json() for answer in answers)
    assert loaded["model"] != generation.model_sha256 and loaded["generation"] > generation.number
    assert back["model"] == generation.model_sha256 and own.generation is generation
    answers, _ = change(("rollback", None))
    assert answers[0].json() == loaded


def test_a_rollback_does_not_show_what_was_removed(change, tmp_path):
    _, shown = change(("reload", {}), ("remove", {"item_ids": ["item-3"]}), ("rollback", None))
    assert "item-3" not in shown


def test_there_may_be_nothing_to_go_back_to(change):
    (answer,), _ = change(("rollback", None))
    assert answer.status_code == 409 and error_of(answer).startswith("There is no generation to go back to")


@pytest.mark.parametrize("name", ["../tuned", "/etc", ".hidden", "a/b", "", "a" * 129, "a\n"])
def test_only_names_within_the_directory_can_be_named(change, name):
    (answer,), _ = change(("reload", {"model": name}))
    assert answer.status_code == 422 and "model: " in error_of(answer)


def test_without_a_directory_nothing_can_be_named(change):
    (answer,), _ = change(("reload", {"model": "next"}), admin_dir=None)
    assert answer.status_code == 403 and "--admin-dir" in error_of(answer)


def test_what_cannot_be_loaded_leaves_what_answers(change, tmp_path, own, generation):
    (tmp_path / "broken").mkdir()
    (answer,), shown = change(("reload", {"model": "broken"}))
    assert answer.status_code == 422 and "is not a checkpoint of llmrec" in error_of(answer)
    assert error_of(answer).endswith("What answered before still does.")
    assert own.generation is generation and len(shown) == 12


def test_appended_items_are_recommended_from_a_new_checkpoint(change, tmp_path, own, forks, monkeypatch):
    def run_stage(arguments):
        forks.start(arguments, tmp_path / "log")
        if forks.wait():
            raise ValueError((tmp_path / "log").read_text())

    monkeypatch.setattr("llmrec.serve.administration.run_stage", run_stage)
    ids = [f"item-{row}" for row in range(13)]
    grown = SidTable(ids, np.concatenate([CODES, [[3, 0, 0]]]), level_sizes=[4, 4, 4])
    write_sid(tmp_path / "tokens-2", grown)
    own.generation = Generation.load(ServeConfig(model=own.generation.config.model, device="cpu"))
    (answer,), shown = change(("append", {"sid": "tokens-2", "out": "checkpoint-2"}))
    assert answer.status_code == 200, answer.text
    assert answer.json()["items"] == 13 and "item-12" in shown
    assert (tmp_path / "checkpoint-2" / "manifest.json").is_file()
    (answer,), _ = change(("append", {"sid": "nothing", "out": "checkpoint-3"}))
    assert answer.status_code == 422 and error_of(answer).startswith("sid is 'nothing', which admin_dir does not have")
    for key in ("model", "catalog"):
        (answer,), _ = change(("reload", {key: "nothing"}))
        assert answer.status_code == 422 and error_of(answer).startswith(f"{key} is 'nothing', which admin_dir")
    (tmp_path / "other").mkdir()
    (answer,), _ = change(("append", {"sid": "other", "out": "checkpoint-3"}))
    assert answer.status_code == 422 and "other" in error_of(answer) and own.generation.num_shown == 13


def test_a_stage_that_fails_says_why_in_a_line(monkeypatch):
    monkeypatch.setenv("LLMREC_ADMIN_TOKEN", TOKEN)
    with pytest.raises(ValueError, match=r"^llmrec extend: .sid. is required"):
        run_stage(["extend", "--out", "x"])


def test_one_change_at_a_time_and_no_request_is_lost(client, own, tmp_path):
    async def run():
        async with client(own, Access(admin_token=TOKEN), tmp_path) as connected:
            statuses, models = [], set()

            async def keep_asking():
                while not reloading.done():
                    answer = await connected.post("/v1/recommend", json={"history": HISTORY})
                    statuses.append(answer.status_code)
                    models.add(answer.json()["model"])

            reloading = asyncio.ensure_future(connected.post("/v1/catalog:reload", json={}, headers=ADMIN))
            await asyncio.sleep(0.01)
            second = await connected.post("/v1/catalog:reload", json={}, headers=ADMIN)
            await asyncio.gather(*(keep_asking() for _ in range(4)))
            return statuses, second, (await reloading).status_code

    statuses, second, status = asyncio.run(run())
    assert status == 200 and second.status_code == 409 and error_of(second).startswith("Another change is under way")
    assert len(statuses) > 4 and set(statuses) == {200}
