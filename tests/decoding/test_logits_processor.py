"""Law 6: the processor in every loop of `generate`, against hand-computed masks, a dict trie and a Python grammar."""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

from llmrec.decoding.beam_search import tree_beam_search
from llmrec.decoding.generate import sid_generation_config
from llmrec.decoding.grammar import check_prompt_end
from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.decoding.trie.trie import SidTrie
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from tests.conftest import tiny_llm, word_tokenizer
from tests.support.decoding import (
    EOS,
    LOOPS,
    NORMALIZE_OVER,
    PAD,
    WORD,
    codes_of,
    filled,
    generate,
    prompts,
    random_scores,
    setting,
    sids_of,
    tables,
    tokens_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("normalize_over", NORMALIZE_OVER)
def test_processor_masks_and_normalises(trie, vocabulary, normalize_over):
    a, b, c = vocabulary.starts
    # One row each: the beginning, after <a_0>, after <a_2>.
    rows = {0: [[9]], 1: [[9, a + 0], [9, a + 2]], 2: [[9, a + 3, b + 1]]}
    legal = {0: [[0, 1, 2, 3]], 1: [[0, 1, 3], [0]], 2: [[1, 2]]}
    for level, prefixes in rows.items():
        scores = random_scores(len(prefixes), vocabulary, level)
        masked = SidLogitsProcessor(trie, vocabulary, 1, normalize_over)(torch.tensor(prefixes), scores)
        start = (a, b, c)[level]
        for row, codes in enumerate(legal[level]):
            tokens = [start + code for code in codes]
            level_tokens = list(range(start, start + 4))
            over = {"vocabulary": None, "level": level_tokens, "children": tokens}[normalize_over]
            shift = 0 if over is None else scores[row, over].logsumexp(0)
            expected = torch.full_like(scores[row], -torch.inf)
            expected[tokens] = scores[row, tokens] - shift
            assert torch.allclose(masked[row], expected)


def test_a_complete_sid_is_followed_by_end_of_sequence_alone(ragged):
    processor = SidLogitsProcessor(*ragged, prompt_length=2)
    answers = [
        ["a0", "b0", "c0"],  # complete at the last level
        ["a0", "b1", EOS],  # ended one level before
        ["a1", EOS, EOS],  # ended two levels before
        ["a1", EOS, PAD],  # of a user who pads with another token
    ]
    rows = torch.tensor([[8, 9, *tokens_of(answer, ragged[1])] for answer in answers])
    scores = random_scores(4, ragged[1])
    expected = torch.full_like(scores, -torch.inf)
    expected[:, EOS] = 0
    assert processor(rows, scores).equal(expected)
    assert processor(rows[1:, :4], scores[1:]).equal(expected[1:])
    assert processor(torch.cat([rows, torch.full((4, 3), EOS)], dim=1), scores).equal(expected)


@pytest.mark.parametrize("free_text", [False, True])
def test_processor_keeps_no_state(trie, vocabulary, free_text):
    processor = SidLogitsProcessor(trie, vocabulary, prompt_length=1, free_text=free_text)
    a, b, _ = vocabulary.starts
    longer, shorter = torch.tensor([[9, a, b], [9, a + 3, b + 1]]), torch.tensor([[9]])
    scores = random_scores(2, vocabulary)
    before, given_scores = dict(vars(processor)), scores.clone()
    first = processor(longer, scores)
    processor(shorter, scores[:1])
    assert processor(longer.flip(0), scores.flip(0)).equal(first.flip(0))
    assert vars(processor) == before
    assert scores.equal(given_scores)


@pytest.mark.parametrize(
    "answer",
    [[0], ["b0"], ["a0", "b2"], ["a0", "a0"], ["a0", EOS], ["a0", "b0", "c3"], ["a0", "b0", "c0", WORD],
     ["a0", "b0", "c0", "a0"], ["a0", "b0", "c0", PAD]],
    ids=str,
)  # fmt: skip
def test_any_other_answer_raises(trie, vocabulary, answer):
    tokens, legal = (tokens_of(names, vocabulary) for names in (answer, ["a0", "b0", "c0", EOS]))
    processor = SidLogitsProcessor(trie, vocabulary, prompt_length=1)
    with pytest.raises(ValueError, match=r"row 1 .* neither the beginning of a SID of the trie.*") as error:
        processor(torch.tensor([[9, *legal[: len(tokens)]], [9, *tokens]]), random_scores(2, vocabulary))
    assert ("Check that prompt_length 1 " in str(error.value)) == (len(tokens) == 1)
    assert "If a logits processor behind this one bars" in str(error.value)


def test_a_prompt_that_is_taken_for_an_answer_is_blamed_on_prompt_length(trie, vocabulary):
    row, (a, b, _) = [9, 8, 7], vocabulary.starts
    processor = SidLogitsProcessor(trie, vocabulary, prompt_length=1)
    for tokens in (row, [*row, a, b]):
        with pytest.raises(ValueError, match=r"Check that prompt_length 1 is .* SID table\.$"):
            processor(torch.tensor([tokens]), random_scores(1, vocabulary))


class Barring(LogitsProcessor):
    """A caller's constraint: -inf for some tokens."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, input_ids, scores):
        return scores.index_fill(1, torch.tensor(self.tokens), -torch.inf)


@pytest.mark.parametrize("normalize_over", NORMALIZE_OVER)
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("loop", ["greedy", "sampling", "beams"])
def test_a_constraint_that_leaves_nothing_is_named_as_such(llm, trie, vocabulary, normalize_over, level, loop):
    block = vocabulary.block(level)
    ids, mask = prompts()
    ours = SidLogitsProcessor(trie, vocabulary, ids.shape[1], normalize_over)
    config = sid_generation_config(vocabulary, **LOOPS[loop])
    before = LogitsProcessorList([Barring(range(block.start, block.stop)), ours])
    with pytest.raises(ValueError, match=r"No token may follow the answer \[.*\] of row 0: another logits processor"):
        llm.generate(input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=before)
    config.bad_words_ids = [[token] for token in range(block.start, block.stop)]
    with pytest.raises(ValueError, match=r"an option of `generate` such as bad_words_ids"):
        processors = LogitsProcessorList([ours])
        llm.generate(input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=processors)


def test_a_constraint_behind_the_processor_is_named_as_such(llm, trie, vocabulary):
    ids, mask = prompts()
    ours, block = SidLogitsProcessor(trie, vocabulary, ids.shape[1]), vocabulary.block(1)
    behind = LogitsProcessorList([ours, Barring(range(block.start, block.stop))])
    config = sid_generation_config(vocabulary)
    with pytest.raises(ValueError, match=r"If a logits processor behind this one .* put it before this one") as error:
        llm.generate(input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=behind)
    assert "prompt_length" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_either_type_are_masked_in_both_grammars(trie, vocabulary, dtype):
    a, b, _ = vocabulary.starts
    rows, scores = torch.tensor([[9, a], [9, a + 2]]), torch.randn(2, vocabulary.token_range.stop + 7, dtype=dtype)
    expected = torch.full_like(scores, -torch.inf)
    expected[0, [b, b + 1, b + 3]], expected[1, b] = scores[0, [b, b + 1, b + 3]], scores[1, b]
    for free_text in (False, True):
        assert SidLogitsProcessor(trie, vocabulary, 1, free_text=free_text)(rows, scores).equal(expected)


def test_a_word_after_a_short_sid_raises(ragged):
    rows = torch.tensor([[9, *tokens_of(["a1", WORD], ragged[1])]])
    with pytest.raises(ValueError, match=r"row 0 .* nor one and end-of-sequence \(3\)"):
        SidLogitsProcessor(*ragged, prompt_length=1)(rows, random_scores(1, ragged[1]))


def has_enough_continuations(table, num_beams):
    """Whether `generate` can fill its beams at every level: one length, and as many first codes as beams."""
    return table.all_codes.min() >= 0 and len(np.unique(table.all_codes[:, 0])) >= num_beams


@settings(max_examples=25)
@given(tables(), st.sampled_from(NORMALIZE_OVER), st.sampled_from(sorted(LOOPS)), st.integers(0, 99))
def test_answers_of_every_loop_are_items(table, normalize_over, loop, seed):
    assume(loop != "beam sampling" or has_enough_continuations(table, 3))
    model, trie, vocabulary = setting(table, seed=seed)
    ids, mask = prompts((5, 2), seed)
    torch.manual_seed(seed)
    output = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=sid_generation_config(vocabulary, **LOOPS[loop]),
        logits_processor=LogitsProcessorList([SidLogitsProcessor(trie, vocabulary, 5, normalize_over)]),
    )  # fmt: skip
    assert {codes_of(row, vocabulary) for row in output.sequences[:, 5:].tolist()} <= sids_of(table)


@pytest.mark.parametrize("loop", ["greedy", "sampling", "beams"])
def test_rows_that_ended_may_be_padded_with_any_token(loop, ragged):
    trie, vocabulary = ragged
    ids, mask = prompts((4, 3, 2, 1))
    config = sid_generation_config(vocabulary, **LOOPS[loop])
    config.pad_token_id, config.max_new_tokens = PAD, 6
    torch.manual_seed(1)
    output = tiny_llm(vocabulary.token_range.stop).generate(
        input_ids=ids, attention_mask=mask, generation_config=config,
        logits_processor=LogitsProcessorList([SidLogitsProcessor(trie, vocabulary, 4)]),
    )  # fmt: skip
    sids = [tokens_of(names, vocabulary) for names in (["a1"], ["a0", "b1"], ["a0", "b0", "c0"])]
    for answer in output.sequences[:, 4:].tolist():
        end = answer.index(EOS)
        assert answer[:end] in sids
        assert set(answer[end + 1 :]) <= {PAD}


def test_sampling_with_more_beams_than_continuations_raises(ragged):
    # Transformers draws 2 * num_beams tokens without replacement, impossible ones where others are lacking.
    trie, vocabulary = ragged
    ids, mask = prompts()
    with pytest.raises(ValueError, match=r"sampling with beams .* lower num_beams"):
        tiny_llm(vocabulary.token_range.stop).generate(
            input_ids=ids, attention_mask=mask, generation_config=sid_generation_config(vocabulary, 3, do_sample=True),
            logits_processor=LogitsProcessorList([SidLogitsProcessor(trie, vocabulary, 7)]),
        )  # fmt: skip


def test_greedy_takes_the_best_child_at_each_level(llm, trie, vocabulary):
    ids, mask = prompts()
    one_beam = filled(tree_beam_search(llm, ids, mask, trie, vocabulary, 1))
    greedy = generate(llm, ids, mask, trie, vocabulary, 1)
    assert [row[0][0] for row in greedy] == [row[0][0] for row in one_beam]


@given(tables(), st.data())
def test_contract_equals_prefix_constrained_logits_processor(table, data):
    trie, vocabulary = SidTrie(table), SidVocabulary.add_to(word_tokenizer(), table.level_sizes)
    nested = {}
    for sid in sids_of(table):
        node = nested
        for token in vocabulary.token_ids(np.array([sid]))[0].tolist():
            node = node.setdefault(token, {})
    length = data.draw(st.integers(0, table.num_levels + 1))
    some = data.draw(st.lists(st.sampled_from(sorted(sids_of(table))), min_size=1, max_size=6))
    answers = [vocabulary.token_ids(np.array([sid]))[0].tolist() + [EOS] * length for sid in some]
    rows = torch.tensor([[8, 9, *answer[:length]] for answer in answers])

    def allowed_tokens(_, row):
        node = nested
        for token in row[2:].tolist():
            node = node.get(token, {})
        return list(node) or [EOS]

    scores = random_scores(len(rows), vocabulary)
    scores[:, EOS] = 0  # what ending a complete SID costs
    slow = PrefixConstrainedLogitsProcessor(allowed_tokens, 1)
    assert SidLogitsProcessor(trie, vocabulary, 2)(rows, scores).equal(slow(rows, scores)), (
        f"PrefixConstrainedLogitsProcessor: changed in transformers {transformers.__version__}"
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("prompt", "inside"),
    [
        ([WORD], []),
        (["a0", "b0", "c0"], []),
        (["a0", "b0", "c0", WORD], []),
        (["a0", WORD], []),  # a broken SID, but text follows
        (["a3", "b3", "c0"], []),  # not of the catalogue, but complete
        ([WORD, "a0"], ["a0"]),
        (["a0", "b0", "c0", "a3", "b1"], ["a3", "b1"]),
        (["a3", "b2"], ["a3", "b2"]),  # not of the catalogue
        (["b0"], ["b0"]),
    ],
    ids=str,
)
def test_prompts_that_end_inside_a_sid_are_refused(trie, vocabulary, prompt, inside, side):
    tokens = tokens_of(prompt, vocabulary)
    padding = [PAD] * (6 - len(tokens))
    real, pads = [1] * len(tokens), [0] * len(padding)
    ids, mask = ([*padding, *tokens], [*pads, *real]) if side == "left" else ([*tokens, *padding], [*real, *pads])
    ids, mask = torch.tensor([[8] * 6, ids]), torch.tensor([[1] * 6, mask])
    if not inside:
        return check_prompt_end(ids, trie, vocabulary, mask)
    with pytest.raises(ValueError, match="The prompt of row 1 ends inside a SID, in the tokens") as error:
        check_prompt_end(ids, trie, vocabulary, mask)
    assert str(tokens_of(inside, vocabulary)) in str(error.value)


def test_prompts_of_sids_that_differ_in_length(ragged):
    trie, vocabulary = ragged
    rows = [tokens_of(names, vocabulary) for names in (["a1"], ["a0", "b1"], ["a0", "b0", "c0"], ["a2"], ["b0"])]
    for row in rows:  # the last two may be items that the trie leaves out
        check_prompt_end(torch.tensor([row]), trie, vocabulary)
    for row in (["a0"], ["a0", "b0"]):
        with pytest.raises(ValueError, match="ends inside a SID"):
            check_prompt_end(torch.tensor([tokens_of(row, vocabulary)]), trie, vocabulary)


def test_padding_hides_nothing_and_adds_nothing(trie, vocabulary):
    a, b, c = vocabulary.starts
    ids = torch.tensor([[a, b, c]])  # the first code is padding, so the rest is no SID of the trie, but complete
    check_prompt_end(ids, trie, vocabulary, torch.tensor([[0, 1, 1]]))
    with pytest.raises(ValueError, match="ends inside a SID"):
        check_prompt_end(ids, trie, vocabulary, torch.tensor([[1, 1, 0]]))


@pytest.mark.parametrize("free_text", [False, True])
def test_the_processor_refuses_prompts_that_end_inside_a_sid(trie, vocabulary, free_text):
    row = torch.tensor([[9, vocabulary.starts[0]]])
    with pytest.raises(ValueError, match="The prompt of row 0 ends inside a SID"):
        SidLogitsProcessor(trie, vocabulary, 2, free_text=free_text)(row, random_scores(1, vocabulary))
    SidLogitsProcessor(trie, vocabulary, 1, free_text=free_text)(row, random_scores(1, vocabulary))


def test_a_prompt_length_beyond_the_rows_raises(trie, vocabulary):
    with pytest.raises(ValueError, match="prompt_length is 5 but the rows have 2 tokens"):
        SidLogitsProcessor(trie, vocabulary, 5)(torch.tensor([[8, 9]]), random_scores(1, vocabulary))


def test_a_model_without_the_tokens_raises(trie, vocabulary):
    last = vocabulary.token_range.stop - 1
    with pytest.raises(ValueError, match=rf"scores {last} tokens .* SID token is {last}; run `llmrec extend`"):
        SidLogitsProcessor(trie, vocabulary, 1)(torch.tensor([[8]]), random_scores(1, vocabulary)[:, :-1])


def test_an_unknown_normalisation_is_refused(trie, vocabulary):
    with pytest.raises(ValueError, match="normalize_over is 'items'; choose from vocabulary, level, children"):
        SidLogitsProcessor(trie, vocabulary, 1, "items")


def test_a_trie_of_another_vocabulary_is_refused(vocabulary):
    larger = SidTrie(SidTable(["a", "b"], [[0, 0, 4], [0, 0, 1]]))
    with pytest.raises(ValueError, match="Run `llmrec extend` on the new table"):
        SidLogitsProcessor(larger, vocabulary, 7)
