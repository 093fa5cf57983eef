"""A catalogue in pieces from extend to recommend: what is learned, merged, saved, appended, and refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from llmrec.cli import main
from llmrec.configs import DpoConfig, ExtendConfig
from llmrec.model.checkpoint import SidConfig
from llmrec.recommender import Recommender
from llmrec.sid.table import SidTable
from llmrec.stages import dpo, extend
from tests.support.extended import extended, fine_tune, losses, same_weights, write_sid
from tests.support.pieces import piece_table
from tests.training.test_checkpoints import OPTIONS, start_and_kill

HISTORY = ["item-3", "item-6", "item-1"]
ONE_TARGET = {"targets": "last_item", "train": "full"}
LEARNING = {**ONE_TARGET, "max_steps": 150, "learning_rate": 5e-3, "batch_size": 24, "max_history": 10}


def run_json(capsys, *arguments) -> dict:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return extended(tmp_path_factory.mktemp("pieces"), piece_table())


@pytest.fixture(scope="module")
def tuned(toy, tmp_path_factory, base):
    """Checkpoint of the sft stage; only read."""
    root = tmp_path_factory.mktemp("tuned")
    fine_tune(root / "sft", toy[0], base, **LEARNING)
    return root / "sft"


def test_it_learns_what_comes_next(capsys, tmp_path, toy, tuned):
    flags = ["--model", tuned, "--device", "cpu", "--baselines", "popularity", "--k", "3", "--exact-examples", "5"]
    metrics = run_json(capsys, "evaluate", *flags, "--catalog", toy[0], "--out", tmp_path / "test")
    assert metrics["systems"]["ours"]["plain"]["ndcg@3"] > 0.7
    assert metrics["sid_usage"] is not None and metrics["num_beams"] == 12


def test_the_command_and_python_answer_alike_and_every_item_once(capsys, tuned):
    flags = ["--model", tuned, "--history", *HISTORY, "--k", "12", "--device", "cpu"]
    items = run_json(capsys, "recommend", *flags)["users"][0]["items"]
    recommender = Recommender.from_pretrained(tuned, device="cpu")
    item_ids, scores = recommender.recommend([HISTORY, ["item-2"]], k=12)
    assert [item["item_id"] for item in items] == item_ids[0] and len(set(item_ids[0])) == 9
    np.testing.assert_allclose([item["score"] for item in items], scores[0], atol=1e-5)
    assert recommender.recommend([["item-2"], HISTORY], k=12)[0] == item_ids[::-1], "whatever the batch"
    assert np.exp(scores[0]).sum() <= 1 + 1e-6, "scores are logs of shares"
    allowed = recommender.recommend([HISTORY, HISTORY[:1]], k=3, exclude=["item-8"], allow=["item-4", "item-8"])
    assert allowed[0] == [["item-4"], ["item-4"]]


def test_saved_and_loaded(tmp_path, tuned):
    recommender = Recommender.from_pretrained(tuned, device="cpu")
    recommender.save_pretrained(tmp_path / "saved")
    again = Recommender.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.recommend([HISTORY], k=12) == recommender.recommend([HISTORY], k=12)
    vocabulary = json.loads((tmp_path / "saved" / "llmrec.json").read_text())["vocabulary"]
    assert vocabulary["segmentations"] == 5 and set(vocabulary["starts"]) == {vocabulary["starts"][0]}
    assert again.table.pieces == piece_table().pieces


def test_other_pieces_are_another_table(tmp_path, tuned):
    """A table whose items are the same and whose merges are not is refused by its hash."""
    recommender = Recommender.from_pretrained(tuned, device="cpu")
    recommender.save_pretrained(tmp_path / "saved")
    table = recommender.table
    pieces = dataclasses.replace(table.pieces, weights=table.pieces.weights * 2)
    SidTable(table.item_ids, table.all_codes, pieces=pieces).save(tmp_path / "saved")
    with pytest.raises(ValueError, match="is not the table this checkpoint was trained on"):
        Recommender.from_pretrained(tmp_path / "saved", device="cpu")


@pytest.mark.parametrize("train", ["lora", "sid_tokens"])
def test_adapters_train_the_rows_of_pieces(tmp_path, toy, base, train):
    counts = fine_tune(tmp_path / "sft", toy[0], base, targets="last_item", train=train, eval_steps=2)
    assert "valid_ndcg@10" in counts and not same_weights(tmp_path / "sft", base)
    sid_config, table, _ = SidConfig.load(tmp_path / "sft")
    assert table.pieces is not None and sid_config.vocabulary.segmentations == 5


def test_packed_and_padded_runs_have_one_loss_curve(tmp_path, toy, base):
    for packing in (True, False):
        fine_tune(tmp_path / str(packing), toy[0], base, **ONE_TARGET, packing=packing, normalize_over="level")
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-3)


def test_an_interrupted_run_ends_as_if_it_had_not_been(monkeypatch, tmp_path, toy, base):
    fine_tune(tmp_path / "whole", toy[0], base, **OPTIONS, **ONE_TARGET)
    start_and_kill(monkeypatch, tmp_path / "sft", (toy[0], base), 4, **ONE_TARGET)
    fine_tune(tmp_path / "sft", toy[0], base, **OPTIONS, **ONE_TARGET)
    assert losses(tmp_path / "sft") == losses(tmp_path / "whole")
    assert same_weights(tmp_path / "sft", tmp_path / "whole")


@pytest.mark.parametrize("normalize_over", ["vocabulary", "level"])
def test_it_learns_a_teachers_distribution(capsys, tmp_path, toy, base, normalize_over):
    """Weight 1 follows the teacher alone, with answers that it draws, and weight 0 is bit-equal to none."""
    run_json(capsys, "teach", "--catalog", toy[0], "--ranker", "item_knn", "--device", "cpu", "--out", tmp_path / "knn")
    runs = {"none": {}, "off": {"teacher_weight": 0.0}, "on": {"teacher_weight": 1.0, "drawn_answers": True}}
    for name, options in runs.items():
        teacher = {} if name == "none" else {"teacher": [str(tmp_path / "knn")]}
        fine_tune(tmp_path / name, toy[0], base, **ONE_TARGET, normalize_over=normalize_over, **teacher, **options)
    assert losses(tmp_path / "none") == losses(tmp_path / "off")
    assert same_weights(tmp_path / "none", tmp_path / "off") and not same_weights(tmp_path / "none", tmp_path / "on")
    assert np.isfinite(losses(tmp_path / "on")).all()


def test_an_appended_item_is_recommended(tmp_path, toy):
    """Its pieces are there already, so nothing is untrained."""
    old = extended(tmp_path, piece_table(num_items=11))
    config = ExtendConfig(
        out=str(tmp_path / "more"), sid=str(write_sid(tmp_path / "new", piece_table())), model=str(old)
    )
    result = extend.main(config)
    assert result["new_items"] == 1 and result["grown"] == []
    answers = Recommender.from_pretrained(tmp_path / "more", device="cpu").recommend([HISTORY], k=12)
    assert "item-11" in answers[0][0]
    with pytest.raises(ValueError, match=r"leave out \['segmentations'\]"):
        extend.main(dataclasses.replace(config, segmentations=2, out=str(tmp_path / "other")))


def test_a_table_of_other_pieces_is_not_appended(tmp_path):
    old = extended(tmp_path, piece_table())
    other = piece_table()
    other = SidTable(
        other.item_ids, other.all_codes, pieces=dataclasses.replace(other.pieces, weights=other.pieces.weights + 1)
    )
    sid = write_sid(tmp_path / "new", other)
    with pytest.raises(ValueError, match="other pieces"):
        extend.main(ExtendConfig(out=str(tmp_path / "more"), sid=str(sid), model=str(old)))


@pytest.mark.parametrize("given", [{"item_rows": True}, {"head": "codes"}, {"spare_codes": 2}])
def test_extend_refuses_what_pieces_do_not_go_with(tmp_path, given):
    with pytest.raises(ValueError, match=f"in pieces, which run across items .*leave out {next(iter(given))}"):
        extended(tmp_path, piece_table(), **given)


def test_sft_refuses_several_targets(tmp_path, toy, base):
    with pytest.raises(ValueError, match="set targets to last_item"):
        fine_tune(tmp_path / "sft", toy[0], base)


def test_dpo_refuses_pieces(tmp_path, toy, tuned):
    with pytest.raises(ValueError, match="writes histories in pieces"):
        dpo.main(DpoConfig(out=str(tmp_path / "dpo"), catalog=toy[0], model=str(tuned), device="cpu"))


def test_without_drawing_there_is_one_way(tmp_path, toy):
    """0 segmentations: training and answers have the fixed way, and scores stay log-probabilities."""
    base = extended(tmp_path, piece_table(), segmentations=0)
    fine_tune(tmp_path / "sft", toy[0], base, **ONE_TARGET)
    recommender = Recommender.from_pretrained(tmp_path / "sft", device="cpu")
    assert recommender.sid_config.vocabulary.segmentations == 0
    scores = recommender.recommend([HISTORY], k=9)[1][0]
    assert np.exp(scores).sum() < 1 and len(scores) == 9
