"""llmrec push: checkpoints and semantic IDs on a Hub of the loopback device."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import DatasetCard, snapshot_download

from llmrec.cli import main
from llmrec.recommender import Recommender
from llmrec.runtime.manifest import adopt, verify
from llmrec.sid.table import SidTable
from llmrec.stages import extend


def push(capsys, *arguments: str) -> tuple[int, str]:
    """Exit status, and what was printed."""
    status = main(["push", *arguments])
    shown = capsys.readouterr()
    return status, shown.out + shown.err


def test_a_checkpoint_is_sent_as_it_lies_there(hub, tuned, capsys):
    status, shown = push(capsys, "--source", str(tuned), "--repo-id", "ann/shop", "--license", "mit")
    assert status == 0 and "its owner alone sees it" in shown and f"{hub.address}/ann/shop/commit/" in shown
    files = hub.files("ann/shop")
    assert "manifest.json" not in files and "training_log.json" not in files
    for name in files.keys() - {".gitattributes", "README.md"}:
        assert files[name] == (tuned / name).read_bytes(), name
    assert "license: mit" in files["README.md"].decode() and "# shop" in files["README.md"].decode()
    again, here = (Recommender.from_pretrained(source, device="cpu") for source in ("ann/shop", tuned))
    assert again.recommend([["item-1"]]) == here.recommend([["item-1"]])


def test_the_accuracy_on_a_card_is_that_of_the_checkpoint(hub, toy, tuned, tmp_path, capsys):
    evaluated = ["evaluate", "--catalog", toy[0], "--model", str(tuned), "--out", str(tmp_path / "eval"), "-k", "5",
                 "--baselines", "popularity", "--device", "cpu"]  # fmt: skip
    assert main(evaluated) == 0
    metrics = ["--metrics", str(tmp_path / "eval" / "metrics.json")]
    assert push(capsys, "--source", str(tuned), "--repo-id", "ann/shop", *metrics)[0] == 0
    assert "recall@5, full ranking of 12 items, seen items excluded" in hub.files("ann/shop")["README.md"].decode()
    status, shown = push(capsys, "--source", str(toy[1]), "--repo-id", "ann/base", *metrics)
    assert status == 2 and "is another checkpoint; run `llmrec evaluate` on it" in shown
    assert ("models", "ann/base") not in hub.repositories


def test_nothing_that_is_sent_names_a_path_or_a_user(hub, tuned, toy, tmp_path, capsys, sid_table):
    sids = tmp_path / "sid"
    sids.mkdir()
    sid_table.save(sids)
    adopt(sids, "tokenize")
    assert push(capsys, "--source", str(tuned), "--repo-id", "ann/shop")[0] == 0
    assert push(capsys, "--source", str(sids), "--repo-id", "ann/sids")[0] == 0
    sent = {**hub.files("ann/shop"), **{f"sids/{k}": v for k, v in hub.files("ann/sids", "datasets").items()}}
    assert len(sent) > 10
    for name, content in sent.items():
        assert b"/tmp" not in content and str(tmp_path.parent).encode() not in content, name
        assert b"user-" not in content, name


def test_semantic_ids_are_loaded_and_extended_from_the_hub(hub, toy, tmp_path, capsys):
    from tests.support.extended import write_llm

    source = toy[1].parent / "sid"
    status, shown = push(capsys, "--source", str(source), "--repo-id", "ann/sids", "--private", "false")
    assert status == 0 and shown.startswith(f"push: {hub.address}/ann/sids/commit/") and "everybody sees it" in shown
    assert shown.count("\n") == 1  # no progress bars where there is no terminal
    assert hub.files("ann/sids", "datasets").keys() == {
        ".gitattributes", "README.md", "manifest.json", "sid_table.parquet",
    }  # fmt: skip
    local = snapshot_download("ann/sids", repo_type="dataset", local_dir=tmp_path / "local")
    assert SidTable.load(local).sha256 == SidTable.load(source).sha256
    verify(local, "tokenize")
    llm = write_llm(tmp_path / "llm")
    out = extend.main(extend.ExtendConfig(out=str(tmp_path / "base"), sid=local, model=str(llm)))["out"]
    assert SidTable.load(out).sha256 == SidTable.load(source).sha256


def test_the_card_of_semantic_ids_is_read_by_the_parser_of_the_hub(hub, toy, capsys):
    assert (
        push(capsys, "--source", str(toy[1].parent / "sid"), "--repo-id", "ann/sids", "--license", "cc-by-4.0")[0] == 0
    )
    card = DatasetCard(hub.files("ann/sids", "datasets")["README.md"].decode(), ignore_metadata_errors=False)
    assert card.data.license == "cc-by-4.0" and "semantic-ids" in card.data.tags
    assert card.data.to_dict()["configs"] == [{"config_name": "default", "data_files": "sid_table.parquet"}]
    assert "3 levels of [4, 4, 4] codes\nfor 12 items, 11 of them distinct." in card.text


@pytest.mark.parametrize(
    ("source", "more", "said"),
    [
        ("catalog", [], "was written by `llmrec prepare`"),
        ("nowhere", [], "is no directory; give that of a checkpoint or of `llmrec tokenize`"),
        ("sid", ["--metrics", "metrics.json"], "metrics are of a checkpoint, and"),
        ("base", ["--metrics", "metrics.json"], "'metrics.json' does not exist; give the file that"),
        ("empty", [], "has no llmrec.json: it is not a checkpoint"),
    ],
)
def test_what_is_not_sent(hub, toy, tmp_path, capsys, source, more, said):
    (tmp_path / "empty").mkdir()
    places = {"catalog": toy[0], "sid": toy[1].parent / "sid", "base": toy[1]}
    status, shown = push(capsys, "--source", str(places.get(source, tmp_path / source)), "--repo-id", "ann/shop", *more)
    assert status == 2 and said in shown and shown.count("\n") == 1
    assert hub.requests == []


def test_a_hub_that_refuses_is_one_line_and_exit_status_2(hub, toy, capsys):
    hub.faults["POST /api/repos/create"] = 403
    status, shown = push(capsys, "--source", str(toy[1]), "--repo-id", "ann/shop", "--json")
    assert status == 2 and shown.count("\n") == 1 and "you may not do this with 'ann/shop'" in shown
    hub.faults.clear()
    assert main(["push", "--source", str(toy[1]), "--repo-id", "ann/shop", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["private"] is True
