"""Words, pieces, aliases and heads on a GPU: training has the losses of the CPU, and rankings are those of the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llmrec.cli import main
from llmrec.decoding.ranker import SidRanker
from llmrec.model.checkpoint import SidConfig, load_model, load_tokenizer
from llmrec.sid.table import SidTable
from tests.conftest import CODES
from tests.stages.test_aliases import aliased
from tests.support.extended import extended, fine_tune, losses, toy_sequences
from tests.support.pieces import piece_table
from tests.support.titles import write_bpe_llm

pytestmark = pytest.mark.gpu

LEARNING = {"max_steps": 12, "train": "full", "batch_size": 24, "max_history": 6, "precision": "float32"}
OPTIONS = {
    "words": {"normalize_over": "vocabulary"},
    "pieces": {"targets": "last_item"},
    "aliases": {},
    "codes": {},
    "vectors": {},
}


def base_of(kind: str, root: Path, catalog: Path) -> Path:
    """Output of extend for an identifier."""
    if kind == "words":
        llm = write_bpe_llm(root / "llm")
        given = ["--method", "titles", "--llm", llm, "--collision", "accept", "--catalog", catalog]
        assert main(["tokenize", *map(str, given), "--out", str(root / "sid")]) == 0
        assert main(["extend", *map(str, ["--sid", root / "sid", "--model", llm, "--out", root / "base"])]) == 0
        return root / "base"
    sids = SidTable([f"item-{row}" for row in range(12)], CODES, level_sizes=[4, 4, 4])
    tables = {"pieces": piece_table(), "aliases": aliased()}
    head = {"head": kind} if kind in ("codes", "vectors") else {}
    return extended(root, tables.get(kind, sids), **head)


@pytest.fixture(scope="module", params=OPTIONS)
def trained(request, tmp_path_factory, toy):
    """Checkpoints trained on either device from one start: kind, then CPU and GPU."""
    kind, root = request.param, tmp_path_factory.mktemp(request.param)
    base = base_of(kind, root, toy[0])
    for device in ("cpu", "cuda"):
        fine_tune(root / device, toy[0], base, **{**LEARNING, **OPTIONS[kind], "device": device})
    return kind, root / "cpu", root / "cuda"


def test_training_has_the_losses_of_the_cpu(trained):
    _, on_cpu, on_gpu = trained
    assert losses(on_gpu) == pytest.approx(losses(on_cpu), rel=1e-3)


def ranked(directory: Path, device: str, capture: bool):
    config, table, _ = SidConfig.load(directory)
    model = load_model(directory).float().eval().to(device)
    ranker = SidRanker(model, table, config, config.prompt.prefix(load_tokenizer(directory)), capture=capture)
    histories = [np.array(items[:4]) for items in toy_sequences()[:5]]
    exclude = [np.array([0, 4]), *[np.array([], dtype=np.int64)] * 4]
    torch.manual_seed(0)
    return [ranker.rank(histories, 8, exclude) for _ in range(4)][-1]  # as they are, then captured, then replayed


def test_rankings_are_those_of_the_cpu_captured_or_not(trained):
    kind, directory, _ = trained
    expected = ranked(directory, "cpu", capture=False)
    for capture in (False, True):
        found = ranked(directory, "cuda", capture)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4, err_msg=kind)
        assert np.array_equal(found.items, expected.items)
