"""Roll-outs of TRL's GRPO under SidLogitsProcessor see, at each step, the mask that an engine applies: the trie's."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.serve.engines.folder import ExportedFolder
from llmrec.serve.engines.mask import rectangle

pytestmark = pytest.mark.filterwarnings("ignore")


class Recorded(SidLogitsProcessor):
    """Keeps the tokens of the answers and the scores that leave the processor."""

    def __init__(self, *arguments, seen):
        super().__init__(*arguments)
        self.seen = seen

    def __call__(self, input_ids, scores):
        masked = super().__call__(input_ids, scores)
        self.seen.append((input_ids[:, self.prompt_length :].tolist(), scores, masked))
        return masked


def lengths(completions, **columns):
    """A reward."""
    return [float(len(text)) for text in completions]


def test_masks_of_a_step_of_grpo_are_those_of_the_engine(exported, tmp_path):
    checkpoint = exported("ragged", "children")
    vocabulary, mask, seen = checkpoint.vocabulary, ExportedFolder(checkpoint.folder).mask, []
    model = copy.deepcopy(checkpoint.model)  # it trains
    generate = model.generate

    def under_the_trie(input_ids, **options):
        processor = Recorded(checkpoint.trie, vocabulary, input_ids.shape[1], "children", seen=seen)
        return generate(input_ids, logits_processor=[processor], **options)

    config = GRPOConfig(
        str(tmp_path), per_device_train_batch_size=8, num_generations=4, max_steps=1, report_to=[], use_cpu=True,
        max_completion_length=checkpoint.trie.num_levels + 1, save_strategy="no", disable_tqdm=True, seed=0,
    )  # fmt: skip
    items = [vocabulary.text(codes[None]) for codes in checkpoint.table.all_codes]
    prompts = Dataset.from_dict({"prompt": [f"recommend the next item: {item}" for item in items]})
    model.generate = under_the_trie
    GRPOTrainer(model, lengths, config, prompts, processing_class=checkpoint.tokenizer).train()
    sids = {tuple(t for t in row if t >= 0) for row in vocabulary.token_ids(checkpoint.table.all_codes).tolist()}
    assert len(seen) == checkpoint.trie.num_levels + 1
    for answers, scores, masked in seen:
        ours = scores.clone()
        mask.apply(ours, torch.arange(len(ours)), *rectangle(answers, mask.trie.num_levels))
        assert ours.isfinite().equal(masked.isfinite()) and torch.allclose(ours, masked, atol=1e-6)
        for row, tokens in enumerate(answers):
            below = [sid for sid in sids if sid[: len(tokens)] == tuple(tokens) and len(sid) > len(tokens)]
            children = {sid[len(tokens)] for sid in below}
            allowed = set(ours[row].isfinite().nonzero().flatten().tolist())
            assert allowed == (children or {vocabulary.eos_token_id})
