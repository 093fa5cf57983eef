"""A checkpoint of a random model, exported for vLLM."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from llmrec.cli import run
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.checkpoint import SidConfig, save_model
from llmrec.model.prompts import Prompt
from llmrec.sid.table import EMPTY, SidTable
from llmrec.sid.vocabulary import SidVocabulary
from tests.conftest import CODES, tiny_llm, word_tokenizer
from tests.support import vllm_interface

RAGGED = [[0, 0, EMPTY], [0, 1, 0], [0, 1, 1], [0, 2, EMPTY], [1, EMPTY, EMPTY], [3, 0, 0], [3, 0, 2], [3, 0, 2]]


def checkpoint(directory: Path, table: SidTable, normalize_over: str = "vocabulary", **options) -> SimpleNamespace:
    """A checkpoint of a random model in attention heads of a size that vLLM's CPU build has, and its parts."""
    tokenizer = word_tokenizer()
    if table.words is None:
        vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes, spare_codes=1)
    else:
        vocabulary = SidVocabulary.of_words(table.words, tokenizer.eos_token_id)
    model = tiny_llm(len(tokenizer), head_dim=32)
    sid_config = SidConfig(vocabulary, Prompt(), 4, normalize_over, **options)
    directory.mkdir(parents=True)
    save_model(model, tokenizer, directory)
    sid_config.save(directory, table, tokenizer=tokenizer)
    return SimpleNamespace(
        path=directory, model=model, tokenizer=tokenizer, sid_config=sid_config, vocabulary=vocabulary, table=table,
        trie=SidTrie(table),
    )  # fmt: skip


def tables() -> dict[str, SidTable]:
    """SIDs of one length and of several, some of them shared, two SIDs of each item, and titles in words."""

    def items(number):
        return [f"item-{row}" for row in range(number)]

    titles = word_tokenizer()([["red", "apple"], ["red", "plum"], ["green", "tea"], ["tea"]], is_split_into_words=True)
    words = [[*tokens, 3] for tokens in titles["input_ids"]]
    return {
        "fixed": SidTable(items(12), CODES, level_sizes=[4, 4, 4]),
        "ragged": SidTable(items(8), RAGGED, level_sizes=[4, 3, 3]),
        "aliases": SidTable(items(6), CODES, [*range(6), *range(6)], level_sizes=[4, 4, 4]),
        "words": SidTable.of_tokens(items(4), words),
    }


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Function that makes a checkpoint of one of `tables`, and exports it."""
    made = {}

    def make(name: str, normalize_over: str = "vocabulary", **options) -> SimpleNamespace:
        key = (name, normalize_over, *sorted(options.items()))
        if key not in made:
            root = tmp_path_factory.mktemp("engine")
            made[key] = checkpoint(root / "checkpoint", tables()[name], normalize_over, **options)
            made[key].folder = root / "exported"
            run(["export", "--model", str(made[key].path), "--to", "vllm", "--out", str(made[key].folder)])
        return made[key]

    return make


@pytest.fixture
def interface(monkeypatch):
    """The interfaces of vLLM, or what stands in for them."""
    try:
        import vllm  # noqa: F401
    except ImportError:
        vllm_interface.install(monkeypatch)
    return vllm_interface
