"""Semantic IDs after a pass of the tokenizer: matched codes, suffixes that stay, churn, collapse, and the swap."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.sid.groups import ordinals
from llmrec.sid.table import EMPTY, SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.tokenizers.collisions.suffix import add_suffix, least_free
from llmrec.training.alternate.retokenize import code_metrics, match_codes, retokenize
from llmrec.training.alternate.swap_table import swap_table
from llmrec.training.sft.examples import HistoryCollator
from tests.training.alternate.test_swap_table import start, train
from tests.training.sft.test_examples import make_collator

IDENTITY = [np.arange(4), np.arange(4)]
# Prefixes of twelve items: three share (0, 0), two (1, 1).
CODES = np.array([[0, 0], [0, 0], [0, 0], [0, 1], [1, 1], [1, 1], [1, 2], [2, 0], [2, 3], [3, 1], [3, 2], [3, 3]])
codes_of_items = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=12, max_size=12).map(np.array)
property_test = settings(derandomize=True, max_examples=60, deadline=None)


def table_of(codes: np.ndarray, suffixes: int = 12) -> SidTable:
    with_suffix, sizes = add_suffix(codes, ordinals(codes)[0], [4, 4], suffixes)
    return SidTable([f"item-{row}" for row in range(12)], with_suffix, level_sizes=sizes)


def test_least_free_by_hand():
    codes = np.array([[5], [5], [5], [7], [5], [7]])
    suffix = np.array([2, EMPTY, 0, EMPTY, EMPTY, 0])
    assert least_free(codes, suffix).tolist() == [2, 1, 0, 1, 3, 0]
    assert suffix[1] == EMPTY


@property_test
@given(codes_of_items, st.lists(st.booleans(), min_size=12, max_size=12))
def test_least_free_keeps_and_fills(codes, keeps):
    ordinal = ordinals(codes)[0]
    given_suffix = np.where(keeps, ordinal, EMPTY)
    found = least_free(codes, given_suffix)
    assert (found[keeps] == ordinal[keeps]).all()
    _, inverse = np.unique(codes, axis=0, return_inverse=True)
    for bucket in range(inverse.max() + 1):
        assert sorted(found[inverse.ravel() == bucket]) == list(range((inverse == bucket).sum()))


@property_test
@given(codes_of_items, codes_of_items)
def test_items_whose_prefix_stays_keep_their_suffix_and_all_are_distinct(before, after):
    old = table_of(before)
    made = retokenize(old, after, IDENTITY)
    stays = (before == after).all(axis=1)
    assert (made.table.all_codes[stays] == old.all_codes[stays]).all()
    assert (made.table.all_codes[:, :-1] == after).all()
    assert len(np.unique(made.table.all_codes, axis=0)) == 12
    assert made.churn == pytest.approx((made.table.all_codes != old.all_codes).any(axis=1).mean())
    assert made.table.level_sizes == old.level_sizes


def test_an_item_that_leaves_does_not_move_those_that_stay():
    """The first of three leaves (0, 0); the others keep 1 and 2, and a newcomer takes the place 0."""
    moved = CODES.copy()
    moved[0], moved[11] = (2, 2), (0, 0)
    made = retokenize(table_of(CODES), moved, IDENTITY)
    assert made.table.all_codes[[0, 1, 2, 11]].tolist() == [[2, 2, 0], [0, 0, 1], [0, 0, 2], [0, 0, 0]]
    assert made.churn == 2 / 12


def test_codes_that_swapped_places_are_found_again():
    old = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    noisy = 1.7 * old[order] + 0.05 * torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    assert match_codes(old, noisy).tolist() == order.tolist()
    assert match_codes(old, old).tolist() == list(range(6))


def test_a_code_that_turned_away_from_all_free_ones_is_new():
    old = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert match_codes(old, torch.tensor([[0.0, 2.0], [-1.0, 0.0]])).tolist() == [1, EMPTY]


def test_renamed_codes_are_no_churn_and_keep_suffixes():
    names = [np.array([2, 0, 3, 1]), np.array([1, 3, 0, 2])]  # old code of each new one
    new = np.stack([np.argsort(old)[column] for old, column in zip(names, CODES.T, strict=True)], axis=1)
    made = retokenize(table_of(CODES), new, names)
    assert made.churn == 0 and (made.table.all_codes[:, -1] == table_of(CODES).all_codes[:, -1]).all()
    assert [codes.tolist() for codes in made.old_codes] == [[2, 0, 3, 1], [1, 3, 0, 2], list(range(12))]


def test_items_of_an_unmatched_code_have_changed():
    made = retokenize(table_of(CODES), CODES, [np.array([0, EMPTY, 2, 3]), np.arange(4)])
    assert made.churn == 3 / 12, "those with code 1 at level 0"


@pytest.mark.parametrize("lora", [False, True])
def test_a_swap_of_codes_and_rows_leaves_the_loss_unchanged(tokenizer, lora):
    """What a pass does where codebooks are permuted alone: the loss goes on as if nothing had happened."""
    old = table_of(CODES)
    vocabulary = SidVocabulary.add_to(tokenizer, old.level_sizes)
    collator = make_collator(tokenizer, old, vocabulary)
    model, optimizer = start(tokenizer, vocabulary, tied=True, lora=lora)
    train(model, optimizer, collator, vocabulary, 2, "level")
    model, optimizer = copy.deepcopy((model, optimizer))
    undisturbed = train(*copy.deepcopy((model, optimizer)), collator, vocabulary, 3, "level")

    books = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(2))
    orders = [torch.tensor([2, 0, 3, 1]), torch.tensor([1, 3, 0, 2])]
    matches = [match_codes(book, book[order]) for book, order in zip(books, orders, strict=True)]
    new = np.stack([np.argsort(match)[column] for match, column in zip(matches, CODES.T, strict=True)], axis=1)
    made = retokenize(old, new, matches)
    assert (made.table.all_codes != old.all_codes).any()
    encoder = swap_table(model, optimizer, vocabulary, made.table, made.old_codes)
    swapped = HistoryCollator(collator.prefix, encoder, collator.pad_token_id)
    assert train(model, optimizer, swapped, vocabulary, 3, "level") == pytest.approx(undisturbed, rel=1e-5)


def test_a_collapsed_level_is_refused():
    wide = SidTable([str(row) for row in range(40)], np.stack([np.arange(40), np.arange(40), np.zeros(40)], axis=1),
                    level_sizes=[40, 40, 40])  # fmt: skip
    fallen = np.stack([np.zeros(40, np.int64), np.arange(40)], axis=1)
    with pytest.raises(ValueError, match="the tokenizer has collapsed: level 0 uses 1 of 40 codes"):
        retokenize(wide, fallen, [np.arange(40)] * 2)


def test_more_items_on_one_prefix_than_suffixes_are_refused():
    crowded = np.array([[row % 4, 0] for row in range(12)])
    with pytest.raises(ValueError, match=r"collapsed: 4 suffixes are needed .* there are tokens for 3"):
        retokenize(table_of(CODES, suffixes=3), np.concatenate([crowded[:11], crowded[:1]]), IDENTITY)


def test_code_metrics_by_hand():
    metrics = code_metrics(np.array([[0, 0], [0, 1], [1, 0], [1, 0]]))
    assert metrics["perplexity_0"] == pytest.approx(2) and metrics["unique_per_item"] == 3 / 4
    assert metrics["perplexity_1"] == pytest.approx(4 / 3**0.75)
