"""The mask that engines apply: that of SidLogitsProcessor wherever an answer is in the trie, and an end where not."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.serve.engines.mask import SidMask, rectangle
from tests.serve.engines.conftest import tables
from tests.support.decoding import NORMALIZE_OVER

KINDS = tuple(tables())


def prefixes(checkpoint):
    """Every beginning of every SID as tokens, by its length; complete ones too."""
    tokens = checkpoint.vocabulary.token_ids(checkpoint.table.all_codes)
    sids = [[token for token in row if token >= 0] for row in tokens.tolist()]
    return sorted({tuple(sid[:length]) for sid in sids for length in range(len(sid) + 1)}, key=len)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalize_over", NORMALIZE_OVER)
def test_every_prefix_is_masked_as_in_generate(exported, kind, normalize_over):
    """Rows of all lengths in one call, among rows without a mask."""
    checkpoint = exported(kind, normalize_over)
    mask, begun = SidMask.load(checkpoint.folder), prefixes(checkpoint)
    logits = torch.randn(len(begun) + 3, checkpoint.model.config.vocab_size, generator=torch.manual_seed(0))
    masked, rows = logits.clone(), torch.randperm(len(logits), generator=torch.manual_seed(1))[: len(begun)]
    mask.apply(masked, rows, *rectangle(begun, mask.trie.num_levels))
    for row, tokens in zip(rows.tolist(), begun, strict=True):
        processor = SidLogitsProcessor(checkpoint.trie, checkpoint.vocabulary, 1, normalize_over)
        scores = logits[row : row + 1].log_softmax(dim=1) if normalize_over == "vocabulary" else logits[row : row + 1]
        expected = processor(torch.tensor([[9, *tokens]]), scores)[0]
        assert masked[row].isfinite().equal(expected.isfinite()) and masked[row].isfinite().any()
        assert torch.allclose(masked[row], expected, atol=1e-6)
    others = [row for row in range(len(logits)) if row not in rows.tolist()]
    assert len(others) == 3 and masked[others].equal(logits[others])


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_has_left_the_trie_or_ended_is_ended(exported, kind):
    checkpoint = exported(kind)
    mask, eos = SidMask.load(checkpoint.folder), checkpoint.vocabulary.eos_token_id
    complete = max(prefixes(checkpoint), key=len)
    answers = [[0], [-1], [10**6], [complete[0], 0], [*complete, eos], [*complete, eos, eos, eos], [eos, *complete]]
    if kind == "fixed":
        answers.append([checkpoint.vocabulary.starts[0] + 4])  # a spare token, of no code yet
    logits = torch.zeros(len(answers), checkpoint.model.config.vocab_size)
    mask.apply(logits, torch.arange(len(answers)), *rectangle(answers, mask.trie.num_levels))
    assert logits[:, eos].eq(0).all() and logits.isfinite().sum(dim=1).eq(1).all()


def test_modules_of_engines_import_little():
    """No transformers, which engines pin below ours, and no reader of tables, which they lack."""
    barred = ("transformers", "tokenizers", "pyarrow", "polars", "huggingface_hub", "sklearn", "scipy", "yaml", "rich")
    modules = ("settings", "mask", "folder", "switch", "beams")
    code = f"import sys; sys.modules.update(dict.fromkeys({barred})); " + "; ".join(
        f"import llmrec.serve.engines.{module}" for module in modules
    )
    subprocess.run([sys.executable, "-c", code], check=True)
