"""Shared fixtures: a 12-item catalogue (3 levels x 4 codes, one deliberate collision) and real data where it is."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llmrec.data.catalog import Catalog
from llmrec.sid.table import SidTable

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small lose more to waiting for threads than they gain

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
if SHARED_DATA.is_dir():
    os.environ.setdefault("LLMREC_DATA", str(SHARED_DATA))

# Whole stages, trainings and processes; `pytest -m fast` runs everything else, within two minutes on two cores.
NOT_FAST = (
    "stages", "scripts", "views", "baselines", "test_bad_input.py", "faults", "test_launch.py",
    "test_notebook.py",
    "test_readme.py",
    *(f"training/test_{name}.py" for name in ("checkpoints", "divergence", "validation", "weights")),
    "training/tasks/test_task_runs.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(here).as_posix()
        if not path.startswith(NOT_FAST) and not {"gpu", "slow", "hub"} & {mark.name for mark in item.iter_markers()}:
            item.add_marker("fast")


def pytest_collection_finish() -> None:
    """Leave imported libraries out of garbage collections, of which every training run makes several.

    Twenty runs of dpo take 8.8 s of CPU time instead of 14.8.
    """
    gc.collect()
    gc.freeze()


TITLES = ("red apple", "green apple", "ripe pear", "blue plum", "red plum", "sweet melon",
          "green tea", "black tea", "black coffee", "iced coffee", "apple juice", "plum juice")  # fmt: skip
# Items 4 and 5 share (1, 0, 0): the deliberate collision.
CODES = np.array([
    [0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 3, 2], [1, 0, 0], [1, 0, 0],
    [1, 2, 3], [2, 0, 0], [2, 0, 3], [3, 1, 1], [3, 1, 2], [3, 3, 3],
])  # fmt: skip


@pytest.fixture
def item_ids() -> list[str]:
    return [f"item-{row}" for row in range(12)]


@pytest.fixture
def sid_table(item_ids) -> SidTable:
    return SidTable(item_ids, CODES, level_sizes=[4, 4, 4])


@pytest.fixture
def trie(sid_table):
    from llmrec.decoding.trie.trie import SidTrie

    return SidTrie(sid_table)


@pytest.fixture(scope="module")
def forks():
    """A process that has the libraries loaded and forks one that runs a stage; see `forks.Forks`."""
    from tests.support.forks import Forks

    server = Forks()
    yield server
    server.close()


@pytest.fixture(scope="module")
def one_thread():
    """Models this small lose more to waiting for threads than they gain."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def catalog(item_ids) -> Catalog:
    """12 items and 6 users; leave-one-out: the last item is test, the one before it valid."""
    sequences = {f"user-{u}": [(u + step * (1 + u % 3)) % 12 for step in range(5)] for u in range(6)}
    rows = []
    for user, items in sequences.items():
        ids = [item_ids[i] for i in items]
        for split, end in (("train", 2), ("valid", 3), ("test", 4)):
            rows.append({"user_id": user, "split": split, "history": ids[:end], "target": ids[end]})
    items = pa.table({"item_id": item_ids, "title": TITLES, "text": TITLES})
    return Catalog(items, pa.Table.from_pylist(rows))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real datasets; tests that need it skip elsewhere."""
    if not os.environ.get("LLMREC_DATA"):
        pytest.skip("LLMREC_DATA is not set: real datasets are not on this machine")
    return Path(os.environ["LLMREC_DATA"])


def word_tokenizer(words=TITLES):
    """A throw-away word-level tokenizer of a few dozen words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from llmrec.model.prompts import DEFAULT_INSTRUCTION

    special = ["<pad>", "<unk>", "<bos>", "<eos>"]
    vocabulary = dict.fromkeys([*special, *" ".join([*words, DEFAULT_INSTRUCTION]).lower().split()])
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def tiny_llm(vocab_size: int, architecture: str = "qwen3", tied: bool = True, seed: int = 0, **options):
    """A two-layer random causal LM of one of the architectures that users bring; options are fields of its config."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128}  # fmt: skip
    given = {name: value for name, value in {**sizes, **options}.items() if value is not None}
    config = CONFIG_MAPPING[architecture](
        vocab_size=vocab_size, tie_word_embeddings=tied, initializer_range=0.2, pad_token_id=0, bos_token_id=2,
        eos_token_id=3, **given,
    )  # fmt: skip
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def tokenizer():
    return word_tokenizer()


@pytest.fixture
def vocabulary(tokenizer, sid_table):
    from llmrec.sid.vocabulary import SidVocabulary

    return SidVocabulary.add_to(tokenizer, sid_table.level_sizes)


@pytest.fixture
def llm(tokenizer, vocabulary):
    return tiny_llm(len(tokenizer))


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Catalogue directory with a next item that can be learned, and a tiny tied LLM extended for it; only read."""
    from tests.support.extended import extended, write_toy_catalog

    root = tmp_path_factory.mktemp("toy")
    table = SidTable([f"item-{row}" for row in range(12)], CODES, level_sizes=[4, 4, 4])
    return write_toy_catalog(root / "catalog").source, extended(root, table)


@pytest.fixture(scope="session")
def untied(tmp_path_factory):
    """The base of `toy` with an output matrix of its own; only read."""
    from tests.support.extended import extended

    table = SidTable([f"item-{row}" for row in range(12)], CODES, level_sizes=[4, 4, 4])
    return extended(tmp_path_factory.mktemp("untied"), table, tied=False)


@pytest.fixture(scope="session")
def tuned(toy, tmp_path_factory):
    """Checkpoint of the sft stage on `toy`; only read."""
    from tests.support.extended import fine_tune

    out = tmp_path_factory.mktemp("tuned") / "sft"
    fine_tune(out, *toy, train="full", max_steps=30, learning_rate=5e-3, batch_size=24, max_history=10)
    return out


@pytest.fixture(scope="session")
def turns(tmp_path_factory):
    """What `llmrec alternate` reads: catalogue, view, ETEGRec's codes and an LLM extended by them; only read."""
    from tests.support.alternated import write_line

    return write_line(tmp_path_factory.mktemp("turns"))


@pytest.fixture(scope="session")
def turned(turns, tmp_path_factory):
    """Checkpoint of the alternate stage on `turns`, with LoRA and dropout; only read."""
    from tests.support.alternated import run

    out = tmp_path_factory.mktemp("turned") / "out"
    run(out, turns, dropout=0.1, save_steps=2)
    return out


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    """A Hub on the loopback device, logged in as its user, with an empty cache; see `tests.support.hub`."""
    from huggingface_hub import constants

    from tests.support.hub import TOKEN, FakeHub

    server = FakeHub()
    changes = {"ENDPOINT": server.address, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True,
               "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
               "HF_HUB_CACHE": str(tmp_path_factory.mktemp("cache"))}  # fmt: skip
    for name, value in changes.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


@pytest.fixture(scope="session")
def quickstart_200(data_dir, tmp_path_factory) -> Path:
    """What `llmrec quickstart --num-users 200` leaves; what it prints is in quickstart.log, its CPU time in seconds."""
    import resource
    import subprocess
    import sys

    out = tmp_path_factory.mktemp("readme") / "llmrec-quickstart"
    command = [sys.executable, "-m", "llmrec", "quickstart", "--out", str(out), "--num-users", "200"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    (out / "quickstart.log").write_text(result.stderr + result.stdout, encoding="utf-8")
    (out / "seconds").write_text(str(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return out
