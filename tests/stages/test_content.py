"""CLLM4Rec: `sft` with content passes on a catalogue of one token per item."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM

from llmrec.cli import main
from llmrec.data.catalog import Catalog
from llmrec.model.checkpoint import SidConfig
from llmrec.recommender import Recommender
from llmrec.runtime.manifest import read_json
from llmrec.sid.table import SidTable
from llmrec.training.sft.mutual import MutualTerm
from tests.conftest import TITLES
from tests.support.extended import extended, fine_tune, losses, same_weights, weights_of
from tests.support.prepared import write_catalog
from tests.training.test_checkpoints import OPTIONS, start_and_kill, start_two

ROWS = {"train": "sid_tokens", "scheduler": "constant", "learning_rate": 0.01, "sid_learning_rate": 0.01,
        "max_steps": -1, "batch_size": 9, "micro_batch_size": 9}  # fmt: skip
CONTENT = {**ROWS, "content_passes": 1}


@pytest.fixture(scope="module")
def atomic(toy, tmp_path_factory):
    """Catalogue whose items 0 to 5 share three texts in pairs, and a model with one token for each item; only read."""
    root = tmp_path_factory.mktemp("atomic")
    plain = Catalog.load(toy[0])
    texts = [TITLES[row // 2 * 2] if row < 6 else TITLES[row] for row in range(12)]
    catalog = write_catalog(root / "catalog", plain.items.set_column(2, "text", [texts]), plain._split)
    table = SidTable(plain.item_ids, np.arange(12)[:, None], level_sizes=[12])
    return catalog.source, extended(root, table)


def rows_of(directory) -> torch.Tensor:
    """Rows of the items' tokens in a checkpoint."""
    embedding = AutoModelForCausalLM.from_pretrained(directory).get_input_embeddings().weight.detach()
    return embedding[SidConfig.load(directory)[0].vocabulary.block(0)]


def content_of(directory) -> torch.Tensor:
    return load_file(directory / "content.safetensors")["weight"]


def test_the_weight_without_content_changes_nothing(tmp_path, atomic):
    fine_tune(tmp_path / "plain", *atomic)
    fine_tune(tmp_path / "weight", *atomic, content_weight=7.0)
    assert same_weights(tmp_path / "plain", tmp_path / "weight")
    assert not (tmp_path / "plain" / "content.safetensors").exists()


def test_without_the_mutual_term_content_leaves_the_collaborative_rows_as_they_are_without_it(tmp_path, atomic):
    """Bit for bit the rows of atomic sft, with a content pass before each of its epochs."""
    fine_tune(tmp_path / "plain", *atomic, **ROWS, epochs=2)
    counts = fine_tune(tmp_path / "content", *atomic, **CONTENT, epochs=2, content_weight=0)
    assert counts["steps"] == 2 * (3 + 2)  # 27 histories and 12 texts, in batches of 9
    assert same_weights(tmp_path / "plain", tmp_path / "content")
    assert not torch.equal(content_of(tmp_path / "content"), rows_of(atomic[1]))


def test_the_mutual_term_draws_the_rows_together(tmp_path, atomic):
    distances = []
    for weight in (0.0, 100.0, 1e5):
        out = tmp_path / str(weight)
        fine_tune(out, *atomic, **CONTENT, epochs=4, content_weight=weight)
        distances.append(float((rows_of(out) - content_of(out)).square().mean()))
    assert distances[0] > 1.2 * distances[1] > 1.2 * distances[2]


def test_rows_of_equal_text_become_alike(tmp_path, atomic):
    fine_tune(
        tmp_path / "content",
        *atomic,
        **{**CONTENT, "content_passes": 60, "histories": False, "epochs": 1, "sid_learning_rate": 0.05},
    )
    assert torch.equal(rows_of(tmp_path / "content"), rows_of(atomic[1])), "no history was read"
    content = content_of(tmp_path / "content")
    cosine = cosine_similarity(content[:, None], content[None], dim=-1)
    pairs = torch.tensor([cosine[0, 1], cosine[2, 3], cosine[4, 5]])
    others = cosine[~torch.eye(12, dtype=torch.bool)].mean()
    assert pairs.min() > others + 0.1


@pytest.mark.parametrize("train", ["sid_tokens", "lora", "full"])
def test_the_trunk_is_frozen_unless_it_is_asked_to_train(tmp_path, atomic, train):
    fine_tune(tmp_path / "sft", *atomic, **{**CONTENT, "train": train, "epochs": 1})
    before, after = weights_of(atomic[1]), weights_of(tmp_path / "sft")
    block = SidConfig.load(atomic[1])[0].vocabulary.block(0)
    changed = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    embedding = next(name for name in before if "embed_tokens" in name)
    assert (changed == {embedding}) == (train == "sid_tokens")
    rest = torch.ones(len(before[embedding]), dtype=torch.bool)
    rest[block] = False
    words_moved = not torch.equal(before[embedding][rest], after[embedding][rest])
    assert words_moved == (train == "full")


def test_the_mutual_term_is_the_mean_over_dimensions():
    """Two rows that differ by .1 in each of 4 dimensions: .01 for each item read; the released code sums to .04."""
    embedding, content = torch.nn.Embedding(6, 4), torch.nn.Embedding(2, 4)
    embedding.weight.data[4:] = 0.3
    content.weight.data[:] = 0.2
    model = SimpleNamespace(get_input_embeddings=lambda: embedding, content_rows=content)
    value = MutualTerm(slice(4, 6), 6, 1.0).sum(model, torch.tensor([[1, 5]]))
    assert value.item() == pytest.approx(0.01)
    assert 4 * value.item() == pytest.approx(0.04)
    value.backward()
    assert content.weight.grad is None or not content.weight.grad.any()
    assert embedding.weight.grad[5].tolist() == pytest.approx([2 * 0.1 / 4] * 4)
    embedding.weight.grad = None
    both = MutualTerm(slice(4, 6), 6, 3.0).sum(model, torch.tensor([[7, 0], [4, 4]]))
    assert both.item() == pytest.approx(3 * 3 * 0.01)
    both.backward()
    assert content.weight.grad[1].tolist() == pytest.approx([-3 * 2 * 0.1 / 4] * 4)
    assert not content.weight.grad[0].any() and not embedding.weight.grad[5].any()


@pytest.mark.parametrize("train", ["sid_tokens", "full"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(monkeypatch, tmp_path, atomic, train):
    """Killed in a content pass of the first epoch, and resumed there."""
    ours = {"train": train, "content_passes": 2, "eval_steps": 2}
    fine_tune(tmp_path / "whole", *atomic, **OPTIONS, **ours)
    start_and_kill(monkeypatch, tmp_path / "sft", atomic, 4, **ours)
    fine_tune(tmp_path / "sft", *atomic, **OPTIONS, **ours)
    assert losses(tmp_path / "sft") == losses(tmp_path / "whole")
    assert same_weights(tmp_path / "sft", tmp_path / "whole")
    assert torch.equal(content_of(tmp_path / "sft"), content_of(tmp_path / "whole"))


def test_a_later_run_goes_on_with_the_content_rows(tmp_path, atomic):
    fine_tune(tmp_path / "content", *atomic, **{**CONTENT, "histories": False, "epochs": 1})
    still = {**CONTENT, "sid_learning_rate": 1e-12, "learning_rate": 1e-12, "epochs": 1}
    fine_tune(tmp_path / "later", atomic[0], tmp_path / "content", **still)
    assert torch.allclose(content_of(tmp_path / "later"), content_of(tmp_path / "content"), atol=1e-9)
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "content", broken)
    (broken / "content.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"content\.safetensors"):
        fine_tune(tmp_path / "again", atomic[0], broken, **CONTENT)


def test_the_result_ranks_and_is_plain_transformers(tmp_path, atomic):
    options = {**CONTENT, "train": "full", "learning_rate": 5e-3, "epochs": 20, "masked_epochs": 5, "max_history": 10}
    counts = fine_tune(tmp_path / "sft", *atomic, **options)
    assert counts["task_examples"] == 18
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    assert "content_rows.weight" not in model.state_dict()
    recommender = Recommender.from_pretrained(tmp_path / "sft", device="cpu")
    assert recommender.recommend([["item-3", "item-4", "item-5"]], k=1)[0][0] == ["item-6"]
    assert read_json(tmp_path / "sft" / "llmrec.json")["details"]["sft"]["content_passes"] == 1


def test_two_processes_train_the_same_rows(tmp_path, atomic, forks):
    """Both get a share of each step, which is of one kind: two steps of content, then three of histories."""
    pids = start_two(
        forks, tmp_path / "two", atomic, "--train", "sid_tokens", "--content-passes", "1", "--dropout", "0"
    )
    assert [forks.wait(pid) for pid in pids] == [0, 0], (tmp_path / "stderr-0").read_text()
    ours = {**OPTIONS, "train": "sid_tokens", "content_passes": 1, "dropout": 0.0}
    fine_tune(tmp_path / "one", *atomic, **ours)
    for read in (rows_of, content_of):
        torch.testing.assert_close(read(tmp_path / "two"), read(tmp_path / "one"), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("ranker", [["item_knn"], ["sasrec", "--hidden", "8", "--layers", "1", "--max-epochs", "1"]])
def test_a_teacher_is_asked_about_histories_alone(tmp_path, atomic, ranker):
    flags = ["--catalog", atomic[0], "--device", "cpu", "--out", str(tmp_path / "taught"), "--ranker", *ranker]
    assert main(["teach", *flags]) == 0
    options = {**CONTENT, "epochs": 2, "teacher": [str(tmp_path / "taught")]}
    for weight in (0.0, 0.5):
        fine_tune(tmp_path / str(weight), *atomic, **{**options, "teacher_weight": weight})
    plain, taught = losses(tmp_path / "0.0"), losses(tmp_path / "0.5")
    assert plain[:2] == taught[:2] and plain[2] != taught[2], "two steps of content, then histories"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize_over": "vocabulary"}, "content_passes scores words and items apart; set normalize_over to level"),
        ({"quantization": "nf4"}, "which are not merged from 4 bits; set quantization to none"),
        ({"masked_epochs": 4, "epochs": 3}, "masked_epochs is 4, of 3 epochs"),
        ({"masked_epochs": 1, "teacher": ["a"]}, "leave teacher out, or masked_epochs"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, atomic, options, message):
    with pytest.raises(ValueError, match=message):
        fine_tune(tmp_path / "sft", *atomic, **{"content_passes": 1, **options})


def test_other_identifiers_are_refused_in_one_line(capsys, tmp_path, toy):
    flags = ["--catalog", str(toy[0]), "--model", str(toy[1]), "--out", str(tmp_path / "sft")]
    assert main(["sft", *flags, "--content-passes", "1"]) == 2
    error = capsys.readouterr().err
    assert "needs one new token for each of 12 items" in error and "has 4 x 4 x 4 codes" in error
    assert "`llmrec tokenize --method atomic`" in error and "Traceback" not in error


def test_a_catalogue_without_known_words_is_refused(tmp_path, atomic):
    plain = Catalog.load(atomic[0])
    items = plain.items.set_column(2, "text", [["zzz"] * 12]).set_column(1, "title", [["zzz"] * 12])
    catalog = write_catalog(tmp_path / "catalog", items, plain._split)
    with pytest.raises(ValueError, match=r"no item of .* has a text with a word that the tokenizer knows"):
        fine_tune(tmp_path / "sft", catalog.source, atomic[1], **CONTENT)
