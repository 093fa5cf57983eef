"""TokenTrie: items written in tokens that the LLM has, searched, sampled, filtered and generated as SIDs are."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec import LeafFilter, SidDecoder, SidTable, SidTrie, SidVocabulary, TokenTrie, tree_beam_search, tree_sample
from llmrec.decoding.generate import sid_generate, sid_generation_config
from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.sid.table import EMPTY
from tests.conftest import tiny_llm
from tests.support.decoding import (
    EOS,
    LOOPS,
    NORMALIZE_OVER,
    assert_equals_dict_trie,
    assert_same,
    draw_filter,
    filled,
    prompts,
    setting,
    tables,
)

pytestmark = pytest.mark.usefixtures("one_thread")
END = 4  # token that ends every item
WORDS = 30  # tokens of the tiny LLM
RING, TWO, BOX = 7, 8, 9


@st.composite
def titles(draw, max_items=10):
    """Token ids of titles that begin alike and differ in length; items may share one."""
    words = st.lists(st.integers(5, 9), min_size=1, max_size=5)
    return [[*each, END] for each in draw(st.lists(words, min_size=1, max_size=max_items))]


def words_setting(sequences, seed=0):
    trie = TokenTrie(sequences)
    return tiny_llm(WORDS, seed=seed), trie, SidVocabulary.of_words(trie.words, EOS)


def sequences_of(beams, trie):
    """(tokens, score) lists of each row of Beams."""
    return [
        [(tuple(token for token in trie.words.token_ids([codes + (EMPTY,) * (trie.num_levels - len(codes))])[0].tolist()
                if token != EMPTY), score) for codes, score in row]
        for row in filled(beams)
    ]  # fmt: skip


def teacher_forced(model, ids, mask, sequences, normalize_over, permitted=None):
    """Score of every distinct sequence, one forward pass each; best first. Rivals are read off the sequences."""
    rows = []
    for row in range(len(ids)):
        prompt = ids[row][mask[row].bool()].tolist()
        legal = {tuple(s) for i, s in enumerate(sequences) if permitted is None or i in permitted[row]}
        everything = {tuple(s) for s in sequences}
        scored = []
        for sequence in legal:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *sequence]])).logits[0, len(prompt) - 1 : -1].double()
            score = 0.0
            for level, (token, at) in enumerate(zip(sequence, logits, strict=True)):
                of_level = sorted({s[level] for s in everything if len(s) > level})
                siblings = sorted({s[level] for s in legal if len(s) > level and s[:level] == sequence[:level]})
                rivals = {"vocabulary": at, "level": at[of_level], "children": at[siblings]}
                score += float(at[token] - rivals[normalize_over].logsumexp(0))
            scored.append((sequence, score))
        rows.append(sorted(scored, key=lambda pair: -pair[1]))
    return rows


@given(titles())
def test_the_trie_is_that_of_a_dictionary(sequences):
    trie = TokenTrie(sequences)
    sids = {}
    for row, sequence in enumerate(sequences):
        codes = tuple(int(np.flatnonzero(trie.words.ids[level] == token)[0]) for level, token in enumerate(sequence))
        sids.setdefault(codes, []).append(row)
    assert_equals_dict_trie(trie, sids)


def test_titles_that_begin_another_are_both_reachable():
    model, trie, vocabulary = words_setting([[RING, END], [RING, TWO, END], [BOX, END]])
    beams = tree_beam_search(model, *prompts((4,)), trie, vocabulary, 5)
    found = {tokens for tokens, _ in sequences_of(beams, trie)[0]}
    assert found == {(RING, END), (RING, TWO, END), (BOX, END)}


def test_legal_tokens_of_three_titles():
    # "a b", "a b c" and "d": the first word is a or d, and after "a b" the title ends or goes on with c.
    a, b, c, d = 5, 6, 7, 8
    trie = TokenTrie([[a, b, END], [a, b, c, END], [d, END]])
    vocabulary = SidVocabulary.of_words(trie.words, EOS)

    def legal(*answer):
        processor = SidLogitsProcessor(trie, vocabulary, prompt_length=1)
        masked = processor(torch.tensor([[9, *answer]]), torch.zeros(1, WORDS))
        return masked[0].isfinite().nonzero().flatten().tolist()

    assert legal() == [a, d]
    assert legal(a) == [b]
    assert legal(a, b) == [END, c]
    assert legal(a, b, c) == [END]
    assert legal(d, END) == [EOS]
    with pytest.raises(ValueError, match="neither the beginning of a SID"):
        legal(d, b)


@settings(max_examples=20)
@given(tables(), st.integers(2, 6), st.sampled_from(["vocabulary", "children"]), st.integers(0, 99))
def test_on_sid_tokens_it_is_the_sid_trie(table, num_beams, normalize_over, seed):
    model, trie, vocabulary = setting(table, seed=seed)
    tokens_SL = vocabulary.token_ids(table.all_codes)
    sequences = [[token for token in row if token != EMPTY] for row in tokens_SL.tolist()]
    tokens = TokenTrie(sequences, table.item_rows, table.num_items)
    words = SidVocabulary.of_words(tokens.words, EOS)
    ids, mask = prompts((5, 2), seed)
    ours = tree_beam_search(model, ids, mask, tokens, words, num_beams, normalize_over)
    theirs = tree_beam_search(model, ids, mask, trie, vocabulary, num_beams, normalize_over)
    assert ours.leaves.equal(theirs.leaves)
    assert ours.scores.nan_to_num(neginf=0).allclose(theirs.scores.nan_to_num(neginf=0), atol=1e-6)
    assert [tokens.items(rank).tolist() for rank in range(tokens.num_leaves)] == [
        trie.items(rank).tolist() for rank in range(trie.num_leaves)
    ]


@settings(max_examples=20)
@given(titles(), st.sampled_from(NORMALIZE_OVER), st.integers(0, 99))
def test_beams_that_cover_the_catalogue_equal_teacher_forcing(sequences, normalize_over, seed):
    model, trie, vocabulary = words_setting(sequences, seed)
    ids, mask = prompts((4, 2), seed)
    beams = tree_beam_search(model, ids, mask, trie, vocabulary, 11, normalize_over)
    assert_same(sequences_of(beams, trie), teacher_forced(model, ids, mask, sequences, normalize_over))


@settings(max_examples=20)
@given(titles(), st.integers(2, 5), st.sampled_from(NORMALIZE_OVER), st.integers(0, 99))
def test_beams_equal_generate(sequences, num_beams, normalize_over, seed):
    model, trie, vocabulary = words_setting(sequences, seed)
    ids, mask = prompts((5, 2), seed)
    beams = tree_beam_search(model, ids, mask, trie, vocabulary, num_beams, normalize_over)
    processor = SidLogitsProcessor(trie, vocabulary, ids.shape[1], normalize_over)
    config = sid_generation_config(vocabulary, num_beams, num_return_sequences=num_beams)
    output = model.generate(ids, attention_mask=mask, generation_config=config, logits_processor=[processor])
    answers = [
        tuple(row[: row.index(EOS)] if EOS in row else row) for row in output.sequences[:, ids.shape[1] :].tolist()
    ]
    pairs = list(zip(answers, output.sequences_scores.tolist(), strict=True))
    rows = [pairs[start : start + num_beams] for start in (0, num_beams)]
    assert_same(sequences_of(beams, trie), [[pair for pair in row if pair[1] > -1e8] for row in rows])


@settings(max_examples=25)
@given(titles(), st.data(), st.integers(1, 12), st.sampled_from(NORMALIZE_OVER), st.integers(0, 99))
def test_every_answer_is_a_permitted_item(sequences, data, num_beams, normalize_over, seed):
    model, trie, vocabulary = words_setting(sequences, seed)
    exclude, allow = draw_filter(data, len(sequences))
    ids, mask = prompts((4, 2), seed)
    permitted = [
        {i for i in range(len(sequences)) if i not in barred and (only is None or i in only)}
        for barred, only in zip(exclude, allow, strict=True)
    ]
    leaf_filter = LeafFilter(trie, exclude, allow)
    beams = tree_beam_search(model, ids, mask, trie, vocabulary, num_beams, normalize_over, leaf_filter)
    draws = tree_sample(model, ids, mask, trie, vocabulary, 12, leaf_filter=leaf_filter)
    for row, items in enumerate(permitted):
        legal = {tuple(sequences[item]) for item in items}
        found = [tokens for tokens, _ in sequences_of(beams, trie)[row]]
        assert len(found) == len(set(found))
        assert set(found) <= legal
        assert num_beams < len(legal) or set(found) == legal
        assert {tokens for tokens, _ in sequences_of(draws, trie)[row]} == legal
    if num_beams >= len(sequences):
        assert_same(sequences_of(beams, trie), teacher_forced(model, ids, mask, sequences, normalize_over, permitted))


@settings(max_examples=20)
@given(titles(), st.sampled_from(["greedy", "sampling", "beams"]), st.integers(0, 99))
def test_answers_of_every_loop_are_items(sequences, loop, seed):
    model, trie, vocabulary = words_setting(sequences, seed)
    ids, mask = prompts((4, 2), seed)
    processor = SidLogitsProcessor(trie, vocabulary, ids.shape[1])
    config = sid_generation_config(vocabulary, LOOPS[loop].get("num_beams", 1), 1, LOOPS[loop].get("do_sample", False))
    torch.manual_seed(seed)
    output = model.generate(ids, attention_mask=mask, generation_config=config, logits_processor=[processor])
    for row in output.sequences[:, ids.shape[1] :].tolist():
        assert row[: row.index(EOS)] in sequences


@given(titles(), st.integers(0, 99))
def test_probabilities_over_children_sum_to_one(sequences, seed):
    model, trie, vocabulary = words_setting(sequences, seed)
    beams = tree_beam_search(model, *prompts((4, 2), seed), trie, vocabulary, trie.num_leaves, "children")
    assert beams.scores.exp().sum(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_items_of_one_title_share_a_leaf():
    trie = TokenTrie([[RING, END], [BOX, END], [RING, END]])
    assert trie.num_leaves == 2
    assert trie.items(0).tolist() == [0, 2]


def test_generate_takes_the_tree_search_and_the_decoder_answers_alike():
    model, trie, vocabulary = words_setting([[RING, END], [RING, TWO, END], [BOX, TWO, TWO, END]])
    ids, mask = prompts((4, 4))
    beams = tree_beam_search(model, ids, mask, trie, vocabulary, 3)
    decoded = SidDecoder(model, trie, vocabulary, 3)(ids, mask)
    assert decoded.leaves.equal(beams.leaves)
    config = sid_generation_config(vocabulary, 3, num_return_sequences=3)
    search = {"custom_generate": sid_generate, "trie": trie, "vocabulary": vocabulary}
    output = model.generate(ids, attention_mask=mask, generation_config=config, **search)
    answers = [tuple(row[: row.index(EOS)]) for row in output.sequences[:, 4:].tolist()]
    assert answers == [tokens for row in sequences_of(beams, trie) for tokens, _ in row]


def test_a_trie_keeps_its_words(tmp_path):
    sequences = [[RING, END], [RING, TWO, END], [BOX, END]]
    trie = TokenTrie(sequences)
    trie.save(tmp_path / "trie")
    loaded = SidTrie.load(tmp_path / "trie")
    kept = [loaded, trie.to("cpu"), trie.with_items([0, 1]), trie.remove([2])]
    assert [each.words == trie.words for each in kept] == [True] * 4
    of_table = SidTrie(SidTable.of_tokens(["a", "b", "c"], sequences))
    assert of_table.words == trie.words
    assert of_table.codes_of(torch.arange(3)).equal(loaded.codes_of(torch.arange(3)))


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "An identifier needs a token, and none was given"),
        ([[5, END], []], "An identifier needs a token; row 1 is empty"),
        ([[5], [5, 6]], "is also the beginning of another one"),
    ],
)
def test_sequences_that_are_no_items_are_refused(sequences, message):
    with pytest.raises(ValueError, match=message):
        TokenTrie(sequences)


def test_words_of_another_trie_are_refused(llm, trie, vocabulary):
    titles, others = TokenTrie([[RING, END]]), TokenTrie([[BOX, END]])
    words = SidVocabulary.of_words(titles.words, EOS)
    with pytest.raises(ValueError, match="The SID table has other words"):
        tree_beam_search(llm, *prompts(), others, words, 2)
    with pytest.raises(ValueError, match="The SID table is of codes, the vocabulary of words"):
        tree_beam_search(llm, *prompts(), trie, words, 2)
    with pytest.raises(ValueError, match="The SID table is of words, the vocabulary of codes"):
        tree_beam_search(llm, *prompts(), titles, vocabulary, 2)
    with pytest.raises(ValueError, match="free_text tells codes from text by their tokens"):
        SidLogitsProcessor(titles, words, 1, free_text=True)


def catalogue_of_titles(num_items=10**5, longest=12, vocabulary=49_152):
    """Titles of up to `longest` tokens, drawn as words are: few frequent ones and many rare ones."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, longest, num_items)
    words = (vocabulary - 10) * rng.random((num_items, longest)) ** 3 + 5
    return [[*row[:length], END] for row, length in zip(words.astype(np.int64).tolist(), lengths, strict=True)]


@pytest.mark.slow
def test_a_hundred_thousand_titles_are_built_in_seconds_and_megabytes():
    sequences = catalogue_of_titles()
    start = time.perf_counter()
    trie = TokenTrie(sequences)
    seconds = time.perf_counter() - start
    assert seconds <= 5
    assert trie.num_bytes + trie.owners.num_bytes <= 30e6
