"""The exported folder: a model that transformers loads alone, prompts that training saw, and items of answers."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmrec.cli import run
from llmrec.model.checkpoint import SidConfig, save_model
from llmrec.model.history.choice import make_history_encoder
from llmrec.model.prompts import Prompt
from llmrec.serve.engines.folder import ExportedFolder
from llmrec.serve.engines.mask import SidMask
from llmrec.sid.answer_head import AnswerHead
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from tests.conftest import CODES, tiny_llm, word_tokenizer
from tests.serve.engines.conftest import tables


@pytest.mark.parametrize("kind", tables())
def test_prompts_are_those_of_training(exported, kind):
    checkpoint = exported(kind)
    folder, table = ExportedFolder(checkpoint.folder), checkpoint.table
    assert folder.item_ids == table.item_ids
    for rows in ([0], [3, 1], [0, 1, 2, 3, 2, 1]):  # the last one is longer than max_history
        ids, mask = checkpoint.sid_config.encode([rows], table, checkpoint.tokenizer)
        assert folder.prompt([table.item_ids[row] for row in rows]) == ids[0][mask[0] == 1].tolist()


@pytest.mark.parametrize(("history", "problem"), [([], "is empty"), (["item-0", "x"], "has 1 unknown .* first 'x'")])
def test_a_history_without_known_items_is_refused(exported, history, problem):
    with pytest.raises(ValueError, match=f"The history {problem}.*"):
        ExportedFolder(exported("fixed").folder).prompt(history)


def test_answers_are_read_as_items(exported):
    checkpoint = exported("ragged")
    folder, eos = ExportedFolder(checkpoint.folder), checkpoint.vocabulary.eos_token_id
    a, b, c = checkpoint.vocabulary.starts
    answers = [[a, b, eos], [a, b], [a + 3, b, c + 2, eos], [a + 1, eos, 9], [a], [a, b, c], [9, eos], [],
               [a + 3, b, c + 2, c]]  # fmt: skip
    expected = [["item-0"], ["item-0"], ["item-6", "item-7"], ["item-4"], [], [], [], [], []]
    assert folder.items(answers) == expected
    assert folder.items([]) == []


def test_items_are_ranked_once_each(exported):
    checkpoint = exported("ragged")
    folder, (a, b, c) = ExportedFolder(checkpoint.folder), checkpoint.vocabulary.starts
    answers, scores = [[a + 1, 3], [a, b], [9], [a + 1], [a + 3, b, c + 2]], [-3.0, -1.0, -0.1, -3.0, -2.0]
    assert folder.ranked(answers, scores, 5) == (["item-0", "item-6", "item-7", "item-4"], [-1.0, -2.0, -2.0, -3.0])
    assert folder.ranked(answers, scores, 2, exclude=["item-0", "item-7"]) == (["item-6", "item-4"], [-2.0, -3.0])
    assert folder.ranked([], [], 2) == ([], [])


def test_transformers_alone_loads_the_folder(exported):
    checkpoint = exported("fixed")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder)
    checkpoint.vocabulary.check(tokenizer)
    ids = torch.tensor([ExportedFolder(checkpoint.folder).prompt(["item-0"])])
    with torch.no_grad():
        assert model(ids).logits.equal(checkpoint.model(ids).logits)
    generation = json.loads((checkpoint.folder / "generation_config.json").read_text())
    assert generation.keys() == {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}
    beside = {path.name for path in checkpoint.folder.glob("*.safetensors")}
    assert beside == {"model.safetensors"}  # vLLM would read another one as weights


def test_items_with_rows_of_their_own_have_them_in_prompts(tmp_path):
    table = SidTable([f"item-{row}" for row in range(12)], CODES, level_sizes=[4, 4, 4])
    tokenizer = word_tokenizer()
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes, num_items=12)
    save_model(tiny_llm(len(tokenizer)), tokenizer, make(tmp_path / "checkpoint"))
    SidConfig(vocabulary, Prompt(), 4, "level").save(tmp_path / "checkpoint", table, tokenizer=tokenizer)
    run(["export", "--model", str(tmp_path / "checkpoint"), "--to", "vllm", "--out", str(tmp_path / "out")])
    folder, encoder = ExportedFolder(tmp_path / "out"), make_history_encoder(table, vocabulary)
    assert folder.prompt(["item-3"])[-4:] == encoder.encode_history(np.array([3])).tolist()


def make(directory):
    directory.mkdir()
    return directory


def test_a_model_that_answers_by_a_head_is_refused(tmp_path, sid_table):
    tokenizer = word_tokenizer()
    vocabulary = SidVocabulary.add_to(tokenizer, sid_table.level_sizes)
    headed = dataclasses.replace(vocabulary, head=AnswerHead("codes", 0.1))
    save_model(tiny_llm(len(tokenizer)), tokenizer, make(tmp_path / "checkpoint"))
    SidConfig(headed, Prompt(), 4, "level").save(tmp_path / "checkpoint", sid_table, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="vLLM needs a model that writes semantic IDs"):
        run(["export", "--model", str(tmp_path / "checkpoint"), "--to", "vllm", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda path: shutil.rmtree(path / "sids"), "no local folder of `llmrec export --to vllm`"),
        (lambda path: (path / "sids" / "trie.safetensors").unlink(), "does not exist"),
        (lambda path: (path / "sids" / "sid.json").write_text("{"), "cannot be read"),
        (lambda path: (path / "sids" / "sid.json").write_text('{"version": 0}'), "of another version"),
        (lambda path: (path / "sids" / "items.json").write_text('{"item-0": [1]}'), "has 1 items, .* 12"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_whole_is_refused(exported, tmp_path, change, problem):
    shutil.copytree(exported("fixed").folder, tmp_path / "out")
    change(tmp_path / "out")
    with pytest.raises(ValueError, match=problem):
        ExportedFolder(tmp_path / "out")


def test_a_trie_of_another_table_is_refused(exported, tmp_path):
    shutil.copytree(exported("fixed").folder, tmp_path / "out")
    shutil.copy(exported("ragged").folder / "sids" / "trie.safetensors", tmp_path / "out" / "sids")
    with pytest.raises(ValueError, match=r"of one SID table and .* of another"):
        SidMask.load(tmp_path / "out")
