"""`extend --head` and what follows it: sft in full and with LoRA, evaluate, recommend, append, and refusals."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from llmrec.cli import main
from llmrec.configs import DpoConfig, ExtendConfig
from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.decoding.search import SearchProblem
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.checkpoint import SidConfig, load_model
from llmrec.model.heads.own_files import FILES, HEAD
from llmrec.recommender import Recommender
from llmrec.sid.answer_head import AnswerHead
from llmrec.sid.table import EMPTY, SidTable
from llmrec.stages import dpo, extend
from llmrec.training.sft.captured_step import CapturedLoss
from tests.conftest import CODES
from tests.stages.test_evaluate_overlap import check_places
from tests.support.extended import extended, fine_tune, losses, same_weights, write_sid
from tests.training.test_checkpoints import OPTIONS, start_and_kill, start_two

HISTORY = ["item-3", "item-6", "item-1"]
LEARNING = {"train": "full", "max_steps": 60, "learning_rate": 5e-3, "batch_size": 24, "max_history": 10}


@pytest.fixture(params=["codes", "vectors"], scope="module")
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def tuned_head(toy, tmp_path_factory, kind):
    """Checkpoint of the sft stage with a head; only read."""
    root = tmp_path_factory.mktemp(kind)
    table = SidTable([f"item-{row}" for row in range(12)], CODES, level_sizes=[4, 4, 4])
    fine_tune(root / "sft", toy[0], extended(root, table, head=kind, spare_codes=1), **LEARNING)
    return root / "sft"


def run_json(capsys, *arguments) -> dict:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_it_learns_what_comes_next(capsys, tmp_path, toy, tuned_head, kind):
    """In the toy catalogue the next item follows from the last one."""
    flags = ["--model", tuned_head, "--device", "cpu", "--baselines", "popularity", "--k", "3"]
    metrics = run_json(capsys, "evaluate", *flags, "--catalog", toy[0], "--out", tmp_path / "test")
    assert metrics["systems"]["ours"]["plain"]["ndcg@3"] > 0.8
    assert metrics["head"] == kind and metrics["num_beams"] is None
    page = (tmp_path / "test" / "report.html").read_text()
    assert f"are ranked, in one pass by the head {kind}." in page and "None beams" not in page


def test_a_later_catalogue_is_evaluated(capsys, tmp_path, tuned_head):
    check_places(capsys, tuned_head, tmp_path)


def test_the_command_and_python_answer_alike_without_beams(capsys, tuned_head):
    flags = ["--model", tuned_head, "--history", *HISTORY, "--k", "12", "--device", "cpu"]
    items = run_json(capsys, "recommend", *flags)["users"][0]["items"]
    recommender = Recommender.from_pretrained(tuned_head, device="cpu")
    item_ids, scores = recommender.recommend([HISTORY], k=12)
    assert [item["item_id"] for item in items] == item_ids[0] and len(set(item_ids[0])) == 9
    np.testing.assert_allclose([item["score"] for item in items], scores[0], atol=1e-5)
    assert abs(item_ids[0].index("item-4") - item_ids[0].index("item-5")) == 1, "they share a semantic ID"
    assert scores[0][item_ids[0].index("item-4")] == scores[0][item_ids[0].index("item-5")]
    allowed = recommender.recommend([HISTORY, HISTORY[:1]], k=3, exclude=["item-8"], allow=["item-4", "item-8"])
    assert allowed[0] == [["item-4"], ["item-4"]]


def test_a_checkpoint_of_its_own_and_a_backbone_for_transformers(tmp_path, tuned_head, kind):
    """The head lies in a file of its own, so plain transformers misses and ignores nothing."""
    recommender = Recommender.from_pretrained(tuned_head, device="cpu")
    recommender.save_pretrained(tmp_path / "saved")
    again = Recommender.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.recommend([HISTORY], k=12) == recommender.recommend([HISTORY], k=12)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (tmp_path / "saved" / FILES[HEAD]).is_file() == (kind == "codes")
    assert hasattr(load_model(tuned_head), HEAD) == (kind == "codes")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "Recommender.from_pretrained" in card and "SidLogitsProcessor" not in card


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("train", ["lora", "sid_tokens", "full"])
def test_what_trains(tmp_path, toy, sid_table, kind, train, tied):
    """Law 4: with an adapter, only the rows of codes, the head and LoRA; merged scores like the adapter."""
    base = extended(tmp_path, sid_table, tied=tied, head=kind)
    counts = fine_tune(tmp_path / "sft", toy[0], base, train=train, eval_steps=2, learning_rate=1e-2)
    assert counts["targets"] > 0 and "valid_ndcg@10" in counts
    vocabulary = SidConfig.load(tmp_path / "sft")[0].vocabulary
    assert vocabulary == SidConfig.load(base)[0].vocabulary and vocabulary.head == AnswerHead(kind, 0.07)
    before, after = load_model(base), load_model(tmp_path / "sft")
    is_equal = torch.isclose(*(m.get_input_embeddings().weight for m in (before, after)), atol=1e-7).all(dim=1)
    assert not is_equal[vocabulary.token_range.start : vocabulary.token_range.stop - 1].any()
    if train != "full":
        assert is_equal[: vocabulary.starts[0]].all()
    if not tied:
        assert torch.equal(*(m.get_output_embeddings().weight for m in (before, after)))
    layer = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(before.state_dict()[layer], after.state_dict()[layer]) == (train == "sid_tokens")
    if kind == "codes":
        assert getattr(before, HEAD).weight.abs().max() == 0 < getattr(after, HEAD).weight.abs().max()


@pytest.mark.parametrize("train", ["lora", "full"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(monkeypatch, tmp_path, toy, tuned_head, kind, train):
    ours = {"train": train, "eval_steps": 2}
    fine_tune(tmp_path / "whole", toy[0], tuned_head, **OPTIONS, **ours)
    start_and_kill(monkeypatch, tmp_path / "sft", (toy[0], tuned_head), 4, **ours)
    fine_tune(tmp_path / "sft", toy[0], tuned_head, **OPTIONS, **ours)
    assert losses(tmp_path / "sft") == losses(tmp_path / "whole")
    assert same_weights(tmp_path / "sft", tmp_path / "whole")
    if kind == "codes":
        assert (tmp_path / "sft" / FILES[HEAD]).read_bytes() == (tmp_path / "whole" / FILES[HEAD]).read_bytes()


def test_it_learns_a_teachers_distribution(capsys, tmp_path, toy, tuned_head):
    """Weight 1 follows the teacher alone, and weight 0 is bit-equal to training without one."""
    flags = ["--catalog", toy[0], "--ranker", "item_knn", "--device", "cpu", "--out", str(tmp_path / "knn")]
    run_json(capsys, "teach", *flags)
    shared = {"train": "full", "max_steps": 3, "label_smoothing": 0.1}
    runs = {"none": {}, "off": {"teacher_weight": 0.0}, "on": {"teacher_weight": 1.0}}
    for name, options in runs.items():
        teacher = {} if name == "none" else {"teacher": [str(tmp_path / "knn")]}
        fine_tune(tmp_path / name, toy[0], tuned_head, **shared, **teacher, **options)
    assert losses(tmp_path / "none") == losses(tmp_path / "off")
    assert same_weights(tmp_path / "none", tmp_path / "off") and not same_weights(tmp_path / "none", tmp_path / "on")
    curve = losses(tmp_path / "on")
    assert curve[-1] < curve[0] and np.isfinite(curve).all()


def test_two_processes_train_the_same_model(tmp_path, toy, sid_table, forks, kind):
    """DDP wants a gradient of everything that trains, which an output matrix that nothing reads would not have."""
    base = extended(tmp_path, sid_table, tied=False, head=kind)
    ours = (toy[0], base)
    pids = start_two(forks, tmp_path / "two", ours, "--train", "full", "--dropout", "0")
    assert [forks.wait(pid) for pid in pids] == [0, 0], (tmp_path / "stderr-0").read_text()
    fine_tune(tmp_path / "one", *ours, **{**OPTIONS, "train": "full", "dropout": 0.0})
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


def test_packed_and_padded_runs_have_one_loss_curve(tmp_path, toy, tuned_head):
    for packing in (True, False):
        fine_tune(tmp_path / str(packing), toy[0], tuned_head, train="full", label_smoothing=0.1, packing=packing)
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-3)


def test_without_a_head_nothing_changes(tmp_path, sid_table, toy):
    """Law 13, down to the bytes of llmrec.json."""
    base = extended(tmp_path, sid_table, head="none")
    assert same_weights(base, toy[1])
    assert (base / "llmrec.json").read_bytes() == (toy[1] / "llmrec.json").read_bytes()


def test_an_appended_item_is_read_and_found_at_once(tmp_path, tuned_head, toy):
    """Its vector is the mean of codes that are trained; a level may also use its spare token."""
    codes = np.concatenate([CODES, [[1, 1, 3]]])
    table = SidTable([*(f"item-{row}" for row in range(12)), "new"], codes, level_sizes=[4, 4, 4])
    config = ExtendConfig(
        out=str(tmp_path / "more"), sid=str(write_sid(tmp_path / "sid", table)), model=str(tuned_head)
    )
    assert extend.main(config)["new_items"] == 1
    before, after = (Recommender.from_pretrained(path, device="cpu") for path in (tuned_head, tmp_path / "more"))
    (old,), (new,) = (each.recommend([HISTORY], k=13)[0] for each in (before, after))
    assert "new" in new and [item for item in new if item != "new"] == old
    assert len(after.recommend([["new"]], k=3)[0][0]) == 3
    with pytest.raises(ValueError, match=r"leave out \['head'\]"):
        extend.main(dataclasses.replace(config, head="codes", out=str(tmp_path / "other")))


REFUSED = {
    "leave tasks out": {"tasks": ["title_to_sid"]},
    "leave drawn_answers out": {"teacher": ["t"], "drawn_answers": True},
    "leave normalize_over out": {"normalize_over": "vocabulary"},
}


@pytest.mark.parametrize("said", REFUSED)
def test_sft_refuses_what_a_head_cannot_learn(monkeypatch, tmp_path, toy, tuned_head, said):
    monkeypatch.setattr("llmrec.stages.sft.verify", lambda *a: None)
    with pytest.raises(ValueError, match=f"answers by the head '.*', (which|whose) .*{said}"):
        fine_tune(tmp_path / "sft", toy[0], tuned_head, **REFUSED[said])


@pytest.mark.parametrize("option", ["item_dropout", "item_decay"])
def test_sft_refuses_options_of_item_rows_that_are_absent(monkeypatch, tmp_path, toy, tuned_head, option):
    """They had no effect: neither with a head nor with plain semantic IDs."""
    monkeypatch.setattr("llmrec.stages.sft.verify", lambda *a: None)
    for model in (tuned_head, toy[1]):
        with pytest.raises(ValueError, match=f"{option}: '.*' has no item rows for it; leave it out"):
            fine_tune(tmp_path / "sft", toy[0], model, **{option: 0.2})


def test_what_writes_semantic_ids_is_refused(tmp_path, toy, tuned_head, kind):
    sid_config, table, _ = SidConfig.load(tuned_head)
    said = f"needs a model that writes semantic IDs, but this one answers in one pass by the head '{kind}'"
    with pytest.raises(ValueError, match=f"^dpo {said}"):
        dpo.main(DpoConfig(out=str(tmp_path / "dpo"), catalog=toy[0], model=str(tuned_head), device="cpu"))
    with pytest.raises(ValueError, match=f"^SidLogitsProcessor {said}"):
        SidLogitsProcessor(SidTrie(table), sid_config.vocabulary, 5)
    with pytest.raises(ValueError, match=f"^A search over codes {said}"):
        SearchProblem(load_model(tuned_head), SidTrie(table), sid_config.vocabulary, "level")


def test_semantic_ids_that_a_head_cannot_read_are_refused(tmp_path, item_ids):
    codes = np.array(CODES)
    codes[[3, 6, 11], 2] = EMPTY
    with pytest.raises(ValueError, match="semantic IDs of different lengths; a head reads one semantic ID of each"):
        extended(tmp_path, SidTable(item_ids, codes, level_sizes=[4, 4, 4]), head="codes")


def test_item_rows_and_a_head_exclude_one_another(capsys):
    assert main(["extend", "--sid", "s", "--model", "m", "--out", "o", "--item-rows", "--head", "codes"]) == 2
    assert "item_rows and head both read and score items; leave one of them out" in capsys.readouterr().err


def test_absent_and_foreign_weights_of_a_head_are_refused(tmp_path, tuned_head, kind):
    if kind != "codes":
        pytest.skip("no weights")
    copy = tmp_path / "copy"
    shutil.copytree(tuned_head, copy, ignore=shutil.ignore_patterns("manifest.json"))
    values = json.loads((copy / "llmrec.json").read_text())
    (copy / FILES[HEAD]).unlink()
    with pytest.raises(ValueError, match=r"is not as it was saved: head\.safetensors is missing"):
        Recommender.from_pretrained(copy, device="cpu")
    values.pop("binding")
    (copy / "llmrec.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"whose weights are absent: head\.safetensors has to lie beside"):
        Recommender.from_pretrained(copy, device="cpu")
    other = dict(getattr(load_model(tuned_head), HEAD).state_dict())
    save_file({"weight": other["weight"][:, :5].contiguous()}, copy / FILES[HEAD])
    with pytest.raises(ValueError, match="does not belong to the weights beside it"):
        Recommender.from_pretrained(copy, device="cpu")
    (copy / FILES[HEAD]).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"head\.safetensors cannot be read"):
        Recommender.from_pretrained(copy, device="cpu")


def test_a_captured_step_has_a_place_for_every_answer(monkeypatch, tmp_path, toy, tuned_head):
    """An item is one token in histories, however many codes it has."""
    seen: list[int] = []

    def of(config, model, shortest_sid, *rest):
        seen.append(shortest_sid)

    monkeypatch.setattr(CapturedLoss, "of", of)
    fine_tune(tmp_path / "sft", toy[0], tuned_head, train="full", max_steps=1)
    assert seen == [1]
