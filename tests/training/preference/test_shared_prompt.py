"""Scores of siblings: two routes with their gradients, probabilities that sum to 1, padding, entropy by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.sid.table import EMPTY, SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.preference.shared_prompt import sibling_scores_in_forward
from tests.conftest import tiny_llm, word_tokenizer

NORMALIZATIONS = ["vocabulary", "level", "children"]


@pytest.fixture
def batch(sid_table, vocabulary):
    """Two prompts of 10 and 4 tokens, three completions of the first and two of the second."""
    encoder = SidHistoryEncoder(sid_table, vocabulary)
    prompts = [[4, *encoder.encode_history([0, 3, 7]).tolist()], [4, *encoder.encode_history([9]).tolist()]]
    completions = torch.from_numpy(encoder.tokens_NL[np.array([[1, 6, 11], [2, 8, 0]])])
    completions[1, 2] = EMPTY
    return prompts, completions


def padded(prompts: list[list[int]], side: str) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids, mask = torch.zeros((2, len(prompts), width), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        where = slice(width - len(prompt), width) if side == "left" else slice(len(prompt))
        ids[row, where], mask[row, where] = torch.tensor(prompt), 1
    return {"input_ids": ids, "attention_mask": mask}


def repeated(model, prompts, completions, vocabulary, trie, normalize_over) -> torch.Tensor:
    """(B, M, L) by the model's own logits, of one prompt with one completion at a time."""
    found = torch.zeros(completions.shape)
    for row, prompt in enumerate(prompts):
        for place, tokens in enumerate(completions[row]):
            codes = tokens[tokens != EMPTY].tolist()
            logits = model(torch.tensor([[*prompt, *codes]])).logits[0].float()
            node = torch.tensor(0)
            for level, token in enumerate(codes):
                scores, first = logits[len(prompt) + level - 1], 0
                if normalize_over != "vocabulary":
                    scores, first = scores[vocabulary.block(level)], vocabulary.starts[level]
                if normalize_over == "children":
                    children = trie.children(node, level)
                    scores, node = scores.masked_fill(children < 0, -torch.inf), children[token - first]
                found[row, place, level] = scores.log_softmax(-1)[token - first]
    return found


def gradients(model, scores: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a mean in which every code has a weight of its own."""
    model.zero_grad()
    (scores * torch.linspace(-1, 2, scores.numel()).view(scores.shape)).mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same(model, inputs, prompts, completions, vocabulary, trie, normalize_over) -> None:
    with sibling_scores_in_forward(model, vocabulary, trie, normalize_over):
        ours = model(**inputs, completions=completions).log_probs
        found = gradients(model, ours)
    expected = repeated(model, prompts, completions, vocabulary, trie, normalize_over)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    wanted = gradients(model, expected)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("normalize_over", NORMALIZATIONS)
def test_scores_and_gradients_equal_repeated_prompts(llm, batch, vocabulary, trie, normalize_over, side):
    prompts, completions = batch
    assert_same(llm, padded(prompts, side), prompts, completions, vocabulary, trie, normalize_over)


@pytest.mark.parametrize(
    ("architecture", "attention"),
    [("llama", "sdpa"), ("llama", "eager"), ("mistral", "sdpa"), ("gpt2", "sdpa"), ("gemma2", "eager")],
)
def test_every_architecture_and_attention(tokenizer, batch, vocabulary, trie, architecture, attention):
    """Positions that are learned or rotated, scaled embeddings, capped logits, sliding windows beyond the prompt."""
    prompts, completions = batch
    model = tiny_llm(len(tokenizer), architecture, attn_implementation=attention)
    assert_same(model, padded(prompts, "left"), prompts, completions, vocabulary, trie, "vocabulary")


@pytest.mark.parametrize("codes", [np.arange(12)[:, None], np.stack([np.arange(12), np.arange(12) % 3 - 1], axis=1)])
def test_sids_of_one_level_and_of_several_lengths(item_ids, codes):
    tokenizer, table = word_tokenizer(), SidTable(item_ids, codes)
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes)
    model, encoder = tiny_llm(len(tokenizer)), SidHistoryEncoder(table, vocabulary)
    completions = torch.from_numpy(encoder.tokens_NL[np.array([[0, 5, 7]])])
    prompts = [[4, *encoder.encode_history([2, 3]).tolist()]]
    assert_same(model, padded(prompts, "right"), prompts, completions, vocabulary, SidTrie(table), "children")


def test_probabilities_of_all_sids_sum_to_1(llm, batch, vocabulary, trie):
    prompts, _ = batch
    every = torch.from_numpy(vocabulary.token_ids(trie.codes_of(torch.arange(trie.num_leaves)).numpy()))
    with sibling_scores_in_forward(llm, vocabulary, trie, "children"), torch.no_grad():
        scores = llm(**padded(prompts, "left"), completions=every.expand(len(prompts), -1, -1))
    total = scores.log_probs.sum(-1).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(len(prompts)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_entropy_by_hand(llm, batch, vocabulary, trie):
    """Logits of zero are uniform: over V rows, four codes, or the children of the prefix."""
    prompts, completions = batch
    llm.get_output_embeddings().weight.zero_()
    inputs, rows = padded(prompts, "right"), llm.get_output_embeddings().weight.shape[0]
    for normalize_over, expected in (("vocabulary", [rows] * 3), ("level", [4, 4, 4]), ("children", [4, 3, 2])):
        with sibling_scores_in_forward(llm, vocabulary, trie, normalize_over):
            scores = llm(**inputs, completions=completions)
        # Item 1 is (0, 0, 1): level 0 has the codes 0 to 3; 0 is followed by 0, 1 and 3; (0, 0) by 0 and 1.
        torch.testing.assert_close(scores.entropies[0, 0], torch.tensor(expected).log())
        torch.testing.assert_close(scores.log_probs[0, 0], -torch.tensor(expected).log())
        assert not scores.entropies[1, 2].any() and not scores.log_probs[1, 2].any(), "an absent completion counts 0"


def test_a_sid_outside_the_trie_is_impossible_and_leaves_gradients_finite(llm, batch, vocabulary, trie):
    prompts, completions = batch
    completions[0, 0] = torch.tensor([start + code for start, code in zip(vocabulary.starts, (3, 0, 1), strict=True)])
    with sibling_scores_in_forward(llm, vocabulary, trie, "children"):
        log_probs = llm(**padded(prompts, "right"), completions=completions).log_probs
        log_probs[log_probs.isfinite()].sum().backward()
    assert log_probs[0, 0].tolist()[1:] == [-math.inf, -math.inf] and log_probs[0, 1:].isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in llm.parameters() if parameter.grad is not None)


def test_gradient_checkpointing_and_a_lora_give_the_same(llm, batch, vocabulary, trie):
    from peft import LoraConfig, get_peft_model

    prompts, completions = batch
    model = get_peft_model(llm, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable()
            model.train()
        with sibling_scores_in_forward(model, vocabulary, trie, "level"):
            scores = model(**padded(prompts, "left"), completions=completions).log_probs
            found.append((scores, gradients(model, scores)))
    torch.testing.assert_close(found[0], found[1])
    assert all("lora" in name for name in found[0][1])


def test_other_calls_and_the_model_afterwards_are_untouched(llm, batch, vocabulary, trie):
    inputs = padded(batch[0], "right")
    before = llm(**inputs).logits
    with sibling_scores_in_forward(llm, vocabulary, trie, "level"):
        assert torch.equal(llm(**inputs).logits, before)
        assert torch.equal(llm(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits, before)
    assert "forward" not in vars(llm)


def test_what_cannot_be_scored_is_refused(tokenizer, llm, batch, vocabulary, trie):
    cases = [
        ({"normalize_over": "children", "trie": None}, "needs the trie"),
        ({"normalize_over": "levels"}, "choose from vocabulary, level, children"),
    ]
    for options, message in cases:
        with (
            pytest.raises(ValueError, match=message),
            sibling_scores_in_forward(llm, vocabulary, **{"trie": trie, **options}),
        ):
            pass
    small = tiny_llm(vocabulary.starts[0])
    with pytest.raises(ValueError, match="run `llmrec extend` on it"), sibling_scores_in_forward(small, vocabulary):
        pass
    llm.config._attn_implementation = "flash_attention_2"
    with (
        pytest.raises(ValueError, match="with sdpa or eager"),
        sibling_scores_in_forward(llm, vocabulary),
    ):
        pass
    llm.config._attn_implementation = "sdpa"
    llm.config.max_position_embeddings = 12
    with sibling_scores_in_forward(llm, vocabulary), pytest.raises(ValueError, match="take 13 tokens"):
        llm(**padded(batch[0], "left"), completions=batch[1])
