"""Text and SIDs in one answer: the processor against hand-made masks and a grammar read from the beginning."""

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

from llmrec.decoding.generate import sid_generation_config
from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.decoding.trie.trie import SidTrie
from llmrec.sid.vocabulary import SidVocabulary
from tests.conftest import word_tokenizer
from tests.support.decoding import (
    EOS,
    LOOPS,
    PAD,
    WORD,
    prompts,
    random_scores,
    setting,
    sids_of,
    tables,
    tokens_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def may_follow(answer, sids, vocabulary):
    """Tokens that the grammar of text and SIDs allows after an answer, read from its beginning."""
    begun = ()
    for token in answer:
        if begun or token in vocabulary.token_range:
            begun = (*begun, token - vocabulary.starts[len(begun)])
            begun = () if begun in sids else begun
    level = len(begun)
    codes = {vocabulary.starts[level] + sid[level] for sid in sids if sid[:level] == begun and len(sid) > level}
    words = [] if begun else [token for token in range(vocabulary.token_range.start)]
    return sorted({*words, *codes})


def assert_grammatical(answer, sids, vocabulary):
    """Each token of an answer follows from the ones before it, up to end-of-sequence."""
    answer = answer[: answer.index(EOS)] if EOS in answer else answer
    for place, token in enumerate(answer):
        assert token in may_follow(answer[:place], sids, vocabulary), (answer, place)


def test_masks_of_text_and_sids(ragged):
    trie, vocabulary = ragged
    after = vocabulary.token_range.stop  # a word that was added to the tokenizer after the codes
    text = {*range(vocabulary.starts[0]), after, *tokens_of(["a0", "a1"], vocabulary)}
    cases = [
        ([WORD, WORD, WORD, WORD], text),
        ([WORD, WORD, WORD, "a0"], tokens_of(["b0", "b1"], vocabulary)),
        ([WORD, WORD, "a0", "b0"], tokens_of(["c0"], vocabulary)),
        ([WORD, "a0", "b0", "c0"], text),  # complete at the last level
        (["a0", "b0", "c0", "a0"], tokens_of(["b0", "b1"], vocabulary)),  # items side by side
        ([WORD, WORD, "a0", "b1"], text),  # complete one level before
        ([WORD, "a0", "b1", WORD], text),
        ([WORD, WORD, WORD, "a1"], text),  # complete two levels before
        (["a1", "a1", "a1", "a0"], tokens_of(["b0", "b1"], vocabulary)),
        (["a0", "b0", "c0", after], text),
        (["a1", EOS, PAD, PAD], text),  # a row that has ended
        (["a0", "b1", EOS, EOS], text),
    ]
    rows = torch.tensor([[8, *tokens_of(answer, vocabulary)] for answer, _ in cases])
    scores = torch.randn(len(rows), after + 1)
    masked = SidLogitsProcessor(trie, vocabulary, 1, free_text=True)(rows, scores)
    for row, (_, allowed) in enumerate(cases):
        expected = torch.full_like(scores[row], -torch.inf)
        expected[list(allowed)] = scores[row, list(allowed)]
        assert masked[row].equal(expected), cases[row]


def test_an_answer_begins_in_text_whatever_the_prompt_was(ragged):
    trie, vocabulary = ragged
    rows = torch.tensor([tokens_of(["a0", "b0", "c0"], vocabulary), tokens_of([WORD, WORD, "a1"], vocabulary)])
    scores = random_scores(2, vocabulary)
    masked = SidLogitsProcessor(trie, vocabulary, 3, free_text=True)(rows, scores)
    allowed = [*range(vocabulary.starts[0]), *tokens_of(["a0", "a1"], vocabulary)]
    expected = torch.full_like(scores, -torch.inf)
    expected[:, allowed] = scores[:, allowed]
    assert masked.equal(expected)


@given(tables(), st.data())
def test_masks_equal_the_grammar_read_from_the_beginning(table, data):
    trie, vocabulary = SidTrie(table), SidVocabulary.add_to(word_tokenizer(), table.level_sizes, spare_codes=1)
    sids = sids_of(table)
    whole = st.sampled_from(sorted(sids)).map(lambda sid: vocabulary.token_ids(np.array([sid]))[0].tolist())
    parts = st.lists(st.integers(0, vocabulary.starts[0] - 1).map(lambda word: [word]) | whole, max_size=6)
    rows = [list(chain(*answer)) for answer in data.draw(st.lists(parts, min_size=1, max_size=5))]
    rows = [row[: data.draw(st.integers(0, len(row)))] for row in rows]
    length = max(map(len, rows))
    rows = torch.tensor([[8, 9, *[WORD] * (length - len(row)), *row] for row in rows])
    scores = random_scores(len(rows), vocabulary)
    slow = PrefixConstrainedLogitsProcessor(lambda _, row: may_follow(row[2:].tolist(), sids, vocabulary), 1)
    assert SidLogitsProcessor(trie, vocabulary, 2, free_text=True)(rows, scores).equal(slow(rows, scores))


@pytest.mark.parametrize(
    "answer",
    [["b0"], [WORD, "b0"], ["a0", WORD], ["a0", EOS], ["a0", "a1"], ["a0", "c0"], ["a0", "b0", "b0"], ["a3"],
     [WORD, "a1", "b0"], ["a0", "b1", "c0"], ["a0", "b0", "c0", "c0"], [*[WORD] * 5, "a0", "b0", "a1"]],
    ids=str,
)  # fmt: skip
def test_answers_that_break_a_sid_raise(ragged, answer):
    trie, vocabulary = ragged
    tokens = tokens_of(answer, vocabulary)
    rows = torch.tensor([[8, *[WORD] * len(tokens)], [8, *tokens]])
    with pytest.raises(ValueError, match=r"row 1 has the tokens .*, where the last token breaks a SID"):
        SidLogitsProcessor(trie, vocabulary, 1, free_text=True)(rows, random_scores(2, vocabulary))


@settings(max_examples=40)
@given(tables(), st.sampled_from(sorted(LOOPS)), st.integers(0, 99))
def test_every_loop_keeps_to_the_grammar_of_text_and_sids(table, loop, seed):
    model, trie, vocabulary = setting(table, seed=seed)
    ids, mask = prompts((5, 2), seed)
    config = sid_generation_config(vocabulary, **LOOPS[loop])
    config.pad_token_id, config.max_new_tokens = PAD, 16
    torch.manual_seed(seed)
    output = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config,
        logits_processor=LogitsProcessorList([SidLogitsProcessor(trie, vocabulary, 5, free_text=True)]),
    )  # fmt: skip
    for answer in output.sequences[:, 5:].tolist():
        assert_grammatical(answer, sids_of(table), vocabulary)


def test_contract_sampling_cuts_come_after_the_processor(sid_table):
    # Before it, top-k could leave a row inside a SID with nothing but -inf.
    model, trie, vocabulary = setting(sid_table)
    ids, mask = prompts()
    config = sid_generation_config(vocabulary, 1, 8, do_sample=True)
    config.top_k, config.top_p, config.max_new_tokens = 2, 0.9, 24
    torch.manual_seed(0)
    output = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config,
        logits_processor=LogitsProcessorList([SidLogitsProcessor(trie, vocabulary, 7, free_text=True)]),
    )  # fmt: skip
    answers = output.sequences[:, 7:].tolist()
    for answer in answers:
        assert_grammatical(answer, sids_of(sid_table), vocabulary)
    assert any(token in vocabulary.token_range for answer in answers for token in answer)


@pytest.mark.parametrize("normalize_over", ["level", "children"])
def test_codes_among_words_are_scored_over_the_vocabulary_only(trie, vocabulary, normalize_over):
    with pytest.raises(ValueError, match=f"normalize_over is '{normalize_over}', but with free_text .* only 'vocab"):
        SidLogitsProcessor(trie, vocabulary, 1, normalize_over, free_text=True)
