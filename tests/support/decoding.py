"""Tables, prompts, slow searches and comparisons that the tests of decoding share."""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList

from llmrec.decoding.generate import sid_generation_config
from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.decoding.trie.lookups import ROOT
from llmrec.decoding.trie.trie import SidTrie
from llmrec.sid.table import EMPTY, SidTable
from llmrec.sid.vocabulary import SidVocabulary
from tests.conftest import tiny_llm, word_tokenizer

settings.register_profile("llmrec", derandomize=True, max_examples=25, deadline=None)
settings.load_profile("llmrec")

NORMALIZE_OVER = ("vocabulary", "level", "children")
ARCHITECTURES = ("qwen3", "qwen2", "llama", "mistral", "gemma2", "gemma3_text", "gpt2", "phi3")
EOS = 3
PAD, WORD = 0, 9
LOOPS = {"greedy": {}, "sampling": {"do_sample": True}, "beams": {"num_beams": 3},
         "beam sampling": {"num_beams": 3, "do_sample": True}}  # fmt: skip


@st.composite
def tables(draw, max_items=14):
    """Tables of every shape: skewed, full, chains, one item, shared SIDs, SIDs of different lengths, aliases."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    sid = st.tuples(*(st.integers(0, size - 1) for size in sizes), st.integers(1, len(sizes)))
    drawn = draw(st.lists(sid, min_size=1, max_size=max_items))
    fixed_length = draw(st.booleans())
    codes = np.array([row[:-1] for row in drawn])
    if not fixed_length:
        codes = np.where(np.arange(len(sizes)) < np.array([row[-1] for row in drawn])[:, None], codes, EMPTY)
    num_items = draw(st.integers(1, len(drawn)))  # SIDs beyond the first of each item are aliases
    rows = np.concatenate([np.arange(num_items), draw(_rows(len(drawn) - num_items, num_items))])
    return SidTable([f"item-{i}" for i in range(num_items)], codes, rows, level_sizes=sizes)


def _rows(count, num_items):
    return st.lists(st.integers(0, num_items - 1), min_size=count, max_size=count).map(lambda r: np.array(r, np.int64))


def owners(table, rows=None):
    """Complete SID -> item rows, from the table's definition."""
    found = {}
    for codes, row in zip(table.all_codes.tolist(), table.item_rows.tolist(), strict=True):
        if rows is None or row in rows:
            found.setdefault(tuple(c for c in codes if c != EMPTY), []).append(row)
    return found


def walk(trie, prefix):
    """Node that a prefix leads to."""
    node = torch.tensor([ROOT])
    for level, code in enumerate(prefix):
        node = trie.children(node, level)[:, code]
    return node


def assert_equals_dict_trie(trie, sids):
    codes = trie.codes_of(torch.arange(-1, trie.num_leaves)).tolist()
    assert codes[0] == [EMPTY] * trie.num_levels
    assert [tuple(c for c in row if c != EMPTY) for row in codes[1:]] == sorted(sids)
    for rank, sid in enumerate(sorted(sids)):
        assert trie.items(rank).tolist() == sids[sid]
    prefixes = {sid[:depth] for sid in sids for depth in range(len(sid) + 1)}
    for prefix in prefixes:
        depth, node = len(prefix), walk(trie, prefix)
        below = [rank for rank, sid in enumerate(sorted(sids)) if sid[:depth] == prefix]
        assert [int(x) for x in trie.leaf_range(node, depth)] == [below[0], below[-1] + 1]
        assert bool(trie.is_leaf(node, depth)) == (prefix in sids)
        if depth < trie.num_levels:
            expected = [(*prefix, code) in prefixes for code in range(trie.level_sizes[depth])]
            assert trie.allowed(node, depth).tolist() == [expected]
            codes, children = (side[0].tolist() for side in trie.expand(node, depth))
            assert len(codes) == trie.width(depth)
            found = {code: child for code, child in zip(codes, children, strict=True) if child >= 0}
            by_code = trie.children(node, depth)[0].tolist()
            assert found == {code: child for code, child in enumerate(by_code) if child >= 0}
            assert [code for code, child in zip(codes, children, strict=True) if child < 0] == [0] * (
                len(codes) - len(found)
            )
    lengths = {len(sid) for sid in sids}
    assert [trie.has_leaves(depth) for depth in range(trie.num_levels + 1)] == [
        depth in lengths for depth in range(trie.num_levels + 1)
    ]


def vocabulary_of(table):
    tokenizer = word_tokenizer()
    return SidVocabulary.add_to(tokenizer, table.level_sizes), len(tokenizer)


def setting(table, architecture="qwen3", **options):
    """Model, trie and vocabulary of a table."""
    vocabulary, size = vocabulary_of(table)
    return tiny_llm(size, architecture, **options), SidTrie(table), vocabulary


def prompts(lengths=(7, 4, 1), seed=0, side="left"):
    """Random prompts of the given lengths, padded on one side: (B, T) ids and mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        place = slice(max(lengths) - length, None) if side == "left" else slice(0, length)
        ids[row, place] = torch.randint(4, 30, (length,), generator=generator)
        mask[row, place] = 1
    return ids, mask


def generate(model, ids, mask, trie, vocabulary, num_beams, normalize_over="vocabulary", **options):
    """`generate` with the processor; (codes, score) lists of each row, without its -1e9 beams."""
    processor = SidLogitsProcessor(trie, vocabulary, ids.shape[1], normalize_over)
    config = sid_generation_config(vocabulary, num_beams, num_return_sequences=num_beams)
    output = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([processor])
    )
    answers = [codes_of(sequence, vocabulary) for sequence in output.sequences[:, ids.shape[1] :].tolist()]
    if num_beams == 1:
        return [[(codes, None)] for codes in answers]
    pairs = list(zip(answers, output.sequences_scores.tolist(), strict=True))
    rows = [pairs[start : start + num_beams] for start in range(0, len(pairs), num_beams)]
    return [[pair for pair in row if pair[1] > -1e8] for row in rows]


def codes_of(tokens, vocabulary):
    """Codes of an answer, which must end in end-of-sequence."""
    length = tokens.index(EOS) if EOS in tokens else len(tokens)
    assert set(tokens[length:]) <= {EOS}
    return tuple(token - vocabulary.starts[level] for level, token in enumerate(tokens[:length]))


def filled(beams):
    """(codes, score) lists of each row of Beams."""
    return [
        [
            (tuple(c for c in codes if c != EMPTY), score)
            for codes, score, leaf in zip(
                beams.codes[row].tolist(), beams.scores[row].tolist(), beams.leaves[row].tolist(), strict=True
            )
            if leaf >= 0
        ]
        for row in range(len(beams.scores))
    ]


def brute_force(model, ids, mask, trie, vocabulary, normalize_over, permitted=None):
    """Teacher-forced score of every SID, one forward pass each, without cache or padding; best first."""
    sids = [tuple(c for c in row if c != EMPTY) for row in trie.codes_of(torch.arange(trie.num_leaves)).tolist()]
    rows = []
    for row in range(len(ids)):
        prompt, scored = ids[row][mask[row].bool()].tolist(), []
        legal = [sid for rank, sid in enumerate(sids) if permitted is None or permitted[row][rank]]
        for sid in legal:
            tokens = [code + vocabulary.starts[level] for level, code in enumerate(sid)]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].double()
            score = 0.0
            for level, (token, at) in enumerate(zip(tokens, logits, strict=True)):
                siblings = sorted({s[level] for s in legal if len(s) > level and s[:level] == sid[:level]})
                rivals = {
                    "vocabulary": at,
                    "level": at[vocabulary.block(level)],
                    "children": at[[code + vocabulary.starts[level] for code in siblings]],
                }
                score += float(at[token] - rivals[normalize_over].logsumexp(0))
            scored.append((sid, score))
        rows.append(sorted(scored, key=lambda pair: -pair[1]))
    return rows


def draw_filter(data, num_items):
    """Exclusions and allow-lists of two rows, as lists of item rows."""
    some = st.lists(st.integers(0, num_items - 1), unique=True)
    exclude = data.draw(st.lists(some, min_size=2, max_size=2))
    return exclude, data.draw(st.lists(st.none() | some, min_size=2, max_size=2))


def assert_same(found, expected, tolerance=1e-4):
    assert [[codes for codes, _ in row] for row in found] == [[codes for codes, _ in row] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert [score for _, score in row] == pytest.approx([score for _, score in other], abs=tolerance)


def contract(what):
    return f"{what}: changed in transformers {transformers.__version__}"


def tokens_of(names, vocabulary):
    """Token ids of a list like [9, "a0", "b1"]."""
    level = {"a": 0, "b": 1, "c": 2}
    return [name if isinstance(name, int) else vocabulary.starts[level[name[0]]] + int(name[1]) for name in names]


def sids_of(table):
    return {tuple(code for code in row if code != EMPTY) for row in table.all_codes.tolist()}


def random_scores(rows, vocabulary, seed=0):
    return torch.randn(rows, vocabulary.token_range.stop, generator=torch.Generator().manual_seed(seed))
