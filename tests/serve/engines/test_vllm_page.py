"""The Python of docs/vllm.md: the plain mask is that of SidLogitsProcessor, and the other blocks name what exists."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from llmrec.cli import run
from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.sid.table import SidTable
from tests.serve.engines.conftest import checkpoint, tables
from tests.serve.engines.test_mask import prefixes

PAGE = (Path(__file__).parents[3] / "docs" / "vllm.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def plain_mask():
    names: dict = {}
    exec(compile(next(block for block in BLOCKS if "class PlainSidMask" in block), "vllm.md", "exec"), names)
    return names["PlainSidMask"]


@pytest.mark.parametrize("kind", [*tables(), "bitmaps"])
def test_the_plain_mask_is_that_of_generate(exported, tmp_path, kind):
    if kind == "bitmaps":  # dense nodes at the first levels, sparse ones below
        codes = np.random.default_rng(0).integers(0, 20, (300, 3))
        table = SidTable([f"item-{row}" for row in range(300)], codes, level_sizes=[20, 20, 20])
        made = checkpoint(tmp_path / "checkpoint", table)
        run(["export", "--model", str(made.path), "--to", "vllm", "--out", str(tmp_path / "out")])
        folder = tmp_path / "out"
        assert any(level.is_bitmap for level in made.trie._levels)
    else:
        made = exported(kind)
        folder = made.folder
    mask, eos = plain_mask()(folder), made.vocabulary.eos_token_id
    logits = torch.randn(made.model.config.vocab_size, generator=torch.manual_seed(0))
    for tokens in prefixes(made)[:200]:
        processor = SidLogitsProcessor(made.trie, made.vocabulary, 1)
        expected = processor(torch.tensor([[9, *tokens]]), logits[None])[0].isfinite()
        masked = torch.from_numpy(mask(list(tokens), logits.numpy()))
        assert masked.isfinite().equal(expected) and masked[expected].equal(logits[expected])
    for stray in ([0], [-1, 0], [*max(prefixes(made), key=len), eos, eos], [made.vocabulary.num_rows]):
        assert mask.legal(stray).tolist() == [eos]


def test_the_plain_mask_is_short():
    assert len(next(block for block in BLOCKS if "class PlainSidMask" in block).strip().splitlines()) <= 45


def test_every_block_is_python():
    for block in BLOCKS:
        compile(block, "vllm.md", "exec")
