"""TokenRec from end to end: tokenize, extend --head projection, sft by both losses, evaluate, append, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from llmrec.cli import main
from llmrec.configs import ExtendConfig, TokenizeConfig
from llmrec.data.catalog import Catalog
from llmrec.model.checkpoint import SidConfig, load_model
from llmrec.model.heads.own_files import FILES, HEAD
from llmrec.recommender import Recommender
from llmrec.stages import extend, tokenize
from llmrec.views import ItemViews, View
from tests.support.extended import (
    fine_tune,
    losses,
    same_weights,
    toy_sequences,
    write_llm,
    write_sid,
    write_toy_catalog,
)
from tests.support.prepared import run_json, write_catalog
from tests.training.test_checkpoints import OPTIONS as OPTIONS_OF_RUNS
from tests.training.test_checkpoints import start_and_kill, start_two

HISTORY = ["item-3", "item-6", "item-1"]
LEARNING = {"train": "full", "max_steps": 60, "learning_rate": 5e-3, "batch_size": 24, "max_history": 10}
OPTIONS = {"codebook_size": 4, "num_levels": 2, "encoder_layers": [8], "latent_dim": 4, "max_epochs": 5}
VECTORS = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)


def tokenized(root: Path, catalog: str | Path, vectors: np.ndarray, **options) -> Path:
    """Semantic IDs by token_rec of items with these vectors, zero for an item without one."""
    (root / "views").mkdir(parents=True)
    ItemViews(lightgcn=View(vectors, ~vectors.any(axis=1))).save(root / "views")
    chosen = {"method": "token_rec", "options": OPTIONS} if "append" not in options else {}
    paths = {"out": str(root / "sid"), "catalog": str(catalog), "views": str(root / "views")}
    return Path(tokenize.main(TokenizeConfig(**paths, **{"collision": "accept"}, **chosen, **options))["out"])


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Checkpoint of extend on a catalogue and views of its own; only read, and beside them in one directory."""
    root = tmp_path_factory.mktemp("token_rec")
    sid = tokenized(root, write_toy_catalog(root / "catalog").source, VECTORS)
    config = ExtendConfig(out=str(root / "base"), sid=str(sid), model=str(write_llm(root / "llm")), head="projection")
    return Path(extend.main(config)["out"])


@pytest.fixture(scope="module")
def tuned(base) -> Path:
    fine_tune(base.parent / "sft", base.parent / "catalog", base, **LEARNING)
    return base.parent / "sft"


def test_it_learns_what_comes_next(capsys, tmp_path, tuned):
    flags = ["--model", tuned, "--device", "cpu", "--baselines", "popularity", "--k", "3"]
    metrics = run_json(capsys, "evaluate", *flags, "--catalog", tuned.parent / "catalog", "--out", tmp_path / "test")
    assert metrics["systems"]["ours"]["plain"]["ndcg@3"] > 0.8
    assert metrics["head"] == "projection" and metrics["num_beams"] is None


def test_the_cosine_loss_learns_too_and_the_same_seed_gives_the_same_curve(capsys, tmp_path, base):
    catalog, options = base.parent / "catalog", {**LEARNING, "head_loss": "cosine"}
    for out in ("one", "two"):
        fine_tune(tmp_path / out, catalog, base, **options)
    curve = losses(tmp_path / "one")
    assert curve == losses(tmp_path / "two") and same_weights(tmp_path / "one", tmp_path / "two")
    assert 0 < curve[-1] < 0.6 * curve[0] < 0.6, "at most (1 + 1 + 1) / 2, and about .5 at random"
    flags = ["--model", tmp_path / "one", "--device", "cpu", "--baselines", "popularity", "--k", "3"]
    metrics = run_json(capsys, "evaluate", *flags, "--catalog", catalog, "--out", tmp_path / "test")
    assert metrics["systems"]["ours"]["plain"]["ndcg@3"] > 0.6


def test_vectors_are_those_that_were_quantised_and_stay_as_they_were(base, tuned):
    unit = torch.nn.functional.normalize(torch.from_numpy(VECTORS), dim=1)
    for checkpoint in (base, tuned):
        torch.testing.assert_close(getattr(load_model(checkpoint), HEAD).vectors, unit)
    before, after = (getattr(load_model(path), HEAD).inner.weight for path in (base, tuned))
    assert not torch.equal(before, after)
    _, info = AutoModelForCausalLM.from_pretrained(tuned, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_the_command_and_python_answer_alike_and_a_copy_too(capsys, tmp_path, tuned):
    flags = ["--model", tuned, "--history", *HISTORY, "--k", "9", "--device", "cpu"]
    items = run_json(capsys, "recommend", *flags)["users"][0]["items"]
    recommender = Recommender.from_pretrained(tuned, device="cpu")
    item_ids, scores = recommender.recommend([HISTORY], k=9)
    assert [item["item_id"] for item in items] == item_ids[0] and len(set(item_ids[0])) == 9
    np.testing.assert_allclose([item["score"] for item in items], scores[0], atol=1e-5)
    recommender.save_pretrained(tmp_path / "saved")
    assert Recommender.from_pretrained(tmp_path / "saved", device="cpu").recommend([HISTORY], k=9) == (item_ids, scores)
    allowed = recommender.recommend([HISTORY], k=3, exclude=["item-8"], allow=["item-4", "item-8"])
    assert allowed[0] == [["item-4"]]


@pytest.mark.parametrize("options", [{"train": "lora"}, {"train": "full", "head_loss": "cosine"}])
def test_an_interrupted_run_ends_as_if_it_had_not_been(monkeypatch, tmp_path, base, options):
    """With the cosine loss, the other items that are drawn are those of the run that was not interrupted."""
    ours = (base.parent / "catalog", base)
    fine_tune(tmp_path / "whole", *ours, **OPTIONS_OF_RUNS, **options)
    start_and_kill(monkeypatch, tmp_path / "sft", ours, 4, **options)
    fine_tune(tmp_path / "sft", *ours, **OPTIONS_OF_RUNS, **options)
    assert losses(tmp_path / "sft") == losses(tmp_path / "whole")
    assert same_weights(tmp_path / "sft", tmp_path / "whole")
    assert (tmp_path / "sft" / FILES[HEAD]).read_bytes() == (tmp_path / "whole" / FILES[HEAD]).read_bytes()


def test_two_processes_train_the_same_model(tmp_path, base, forks):
    ours = (str(base.parent / "catalog"), base)
    pids = start_two(forks, tmp_path / "two", ours, "--train", "full", "--dropout", "0")
    assert [forks.wait(pid) for pid in pids] == [0, 0], (tmp_path / "stderr-0").read_text()
    fine_tune(tmp_path / "one", *ours, **{**OPTIONS_OF_RUNS, "train": "full", "dropout": 0.0})
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


@pytest.mark.parametrize("train", ["lora", "sid_tokens"])
def test_an_adapter_is_merged_with_its_projection(tmp_path, base, train):
    fine_tune(tmp_path / "sft", base.parent / "catalog", base, train=train, eval_steps=2, learning_rate=1e-2)
    before, after = load_model(base), load_model(tmp_path / "sft")
    assert not torch.equal(getattr(before, HEAD).outer.weight, getattr(after, HEAD).outer.weight)
    assert torch.equal(getattr(before, HEAD).vectors, getattr(after, HEAD).vectors)
    start = SidConfig.load(base)[0].vocabulary.starts[0]
    assert torch.equal(*(model.get_input_embeddings().weight[:start] for model in (before, after)))


def test_it_learns_a_teachers_distribution(capsys, tmp_path, base):
    catalog = base.parent / "catalog"
    run_json(
        capsys, "teach", "--catalog", catalog, "--ranker", "item_knn", "--device", "cpu", "--out", tmp_path / "knn"
    )
    shared = {"train": "full", "max_steps": 3, "teacher": [str(tmp_path / "knn")]}
    for weight in (0.0, 1.0):
        fine_tune(tmp_path / str(weight), catalog, base, teacher_weight=weight, **shared)
    fine_tune(tmp_path / "none", catalog, base, **{**shared, "teacher": []})
    assert same_weights(tmp_path / "none", tmp_path / "0.0") and not same_weights(tmp_path / "none", tmp_path / "1.0")


def test_an_appended_item_is_ranked_next_to_its_neighbour(tmp_path, tuned):
    vectors = np.concatenate([VECTORS, VECTORS[4:5] * 1.01])
    table = pa.table({"item_id": [*(f"item-{row}" for row in range(12)), "new"], "title": ["red tea"] * 13})
    split = Catalog.load(tuned.parent / "catalog")._split
    catalog = write_catalog(tmp_path / "catalog", table, split)
    sid = tokenized(tmp_path, catalog.source, vectors, append=str(tuned.parent / "sid"))
    config = ExtendConfig(out=str(tmp_path / "more"), sid=str(sid), model=str(tuned))
    assert extend.main(config)["new_items"] == 1
    before, after = (Recommender.from_pretrained(path, device="cpu") for path in (tuned, tmp_path / "more"))
    (old,), (new,) = (each.recommend([HISTORY], k=13)[0] for each in (before, after))
    assert [item for item in new if item != "new"] == old
    assert abs(new.index("new") - new.index("item-4")) == 1
    assert len(after.recommend([["new"]], k=3)[0][0]) == 3


def test_items_without_a_vector_come_last_and_extend_says_so(capsys, tmp_path):
    vectors = np.array(VECTORS)
    vectors[9] = 0
    sid = tokenized(tmp_path, write_toy_catalog(tmp_path / "catalog").source, vectors)
    flags = ["--sid", sid, "--model", write_llm(tmp_path / "llm"), "--head", "projection", "--out", tmp_path / "base"]
    assert main(["extend", *map(str, flags)]) == 0
    assert "1 of 12 items have no vector in the views ['lightgcn']; they are ranked last" in capsys.readouterr().err
    recommender = Recommender.from_pretrained(tmp_path / "base", device="cpu")
    assert recommender.recommend([HISTORY], k=12)[0][0][-1] == "item-9"


def test_what_has_no_vectors_is_refused(tmp_path, base, sid_table):
    root, llm = base.parent, str(write_llm(tmp_path / "llm"))

    def refused(sid: Path, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            extend.main(ExtendConfig(out=str(tmp_path / "base"), sid=str(sid), model=llm, head="projection"))

    refused(
        write_sid(tmp_path / "adopted", sid_table), "ranks by the vectors that were quantised, but .* was made with"
    )
    paths = {"catalog": str(root / "catalog"), "views": str(root / "views")}
    tokenize.main(TokenizeConfig(out=str(tmp_path / "random"), method="random", **paths))
    refused(tmp_path / "random", "method 'random' of .* quantises no vectors to rank by")
    shutil.copytree(root / "views", tmp_path / "views")
    config = TokenizeConfig(
        out=str(tmp_path / "moved"), method="rq_kmeans", catalog=paths["catalog"], views=str(tmp_path / "views")
    )
    tokenize.main(config)
    shutil.rmtree(tmp_path / "views")
    refused(tmp_path / "moved", "needs the views that .* was made of, but .* is gone or has changed")


REFUSED = {
    "head_loss 'cosine' knows one item as the answer": {"head_loss": "cosine", "label_smoothing": 0.1},
    "which writes no semantic IDs or words that tasks ask for": {"tasks": ["title_to_sid"]},
}


@pytest.mark.parametrize("said", REFUSED)
def test_sft_refuses_what_the_head_cannot_learn(tmp_path, base, said):
    with pytest.raises(ValueError, match=said):
        fine_tune(tmp_path / "sft", base.parent / "catalog", base, **REFUSED[said])


def test_the_cosine_loss_is_of_no_other_head(tmp_path, toy):
    with pytest.raises(ValueError, match=r"head_loss 'cosine' is of head 'projection', which '.*' does not have"):
        fine_tune(tmp_path / "sft", toy[0], toy[1], head_loss="cosine")


def test_absent_weights_are_refused(tmp_path, tuned):
    copy = tmp_path / "copy"
    shutil.copytree(tuned, copy, ignore=shutil.ignore_patterns("manifest.json"))
    (copy / FILES[HEAD]).unlink()
    values = json.loads((copy / "llmrec.json").read_text())
    values.pop("binding")
    (copy / "llmrec.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"head 'projection', whose weights are absent: head\.safetensors has to lie"):
        Recommender.from_pretrained(copy, device="cpu")


def test_the_toy_histories_have_items_that_share_codes(base):
    """Else nothing here would show that the head tells such items apart."""
    table = SidConfig.load(base)[1]
    codes = [tuple(sid) for sid in table.codes(np.arange(12)).tolist()]
    assert len(set(codes)) < len(codes) and max(map(len, toy_sequences())) <= LEARNING["max_history"]
