"""Distributions over codes: by hand, against brute force on random catalogues, and against drawn items."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.sid.table import EMPTY, SidTable
from llmrec.training.distil.code_targets import CodeTargets

CPU = torch.device("cpu")


def brute_force(table: SidTable, probabilities: np.ndarray, answer: int) -> list[np.ndarray]:
    """Sum the items below each code by comparing prefixes, one semantic ID after another."""
    num_sids = np.bincount(table.item_rows)
    own = table.codes([answer])[0]
    result = []
    for level, size in enumerate(table.level_sizes):
        masses = np.zeros(size)
        for codes, row in zip(table.all_codes, table.item_rows, strict=True):
            if codes[level] != EMPTY and (codes[:level] == own[:level]).all():
                masses[codes[level]] += probabilities[row] / num_sids[row]
        result.append(masses / masses.sum() if masses.sum() else masses)
    return result


def test_targets_by_hand():
    table = SidTable(list("abcd"), [[0, 0], [0, 1], [1, 0], [1, 0]])  # c and d share a SID
    probabilities = torch.tensor([[0.1, 0.3, 0.2, 0.4], [0.0, 0.0, 0.5, 0.5]])
    first, second = CodeTargets(table, table.level_sizes, CPU)(probabilities, torch.tensor([0, 1]))
    assert first.tolist() == [pytest.approx([0.4, 0.6]), [0, 1]]
    assert second.tolist() == [pytest.approx([0.25, 0.75]), [0, 0]]  # nothing lies below (0,) in the second


@st.composite
def tables(draw) -> SidTable:
    """Tables with SIDs of several lengths, shared SIDs and items with several SIDs."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    num_items = draw(st.integers(1, 12))
    codes, rows = [], []
    for row in range(num_items):
        for _ in range(draw(st.integers(1, 3))):
            sid = [draw(st.integers(0, size - 1)) for size in sizes]
            end = draw(st.integers(1, len(sizes)))
            codes.append(sid[:end] + [EMPTY] * (len(sizes) - end))
            rows.append(row)
    return SidTable([f"i{row}" for row in range(num_items)], codes, rows, sizes)


@settings(deadline=None, max_examples=150)
@given(tables(), st.integers(0, 2**32 - 1))
def test_targets_equal_brute_force(table, seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(table.num_items), size=3) * (rng.random((3, table.num_items)) > 0.3)
    answers = rng.integers(0, table.num_items, size=3)
    found = CodeTargets(table, table.level_sizes, CPU)(torch.tensor(probabilities), torch.from_numpy(answers))
    for query, answer in enumerate(answers):
        length = int((table.codes([answer])[0] != EMPTY).sum())
        for level, expected in enumerate(brute_force(table, probabilities[query], int(answer))[:length]):
            np.testing.assert_allclose(found[level][query], expected, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.integers(5, 8), min_size=1, max_size=4), min_size=1, max_size=10), st.integers(0, 2**32 - 1)
)
def test_titles_have_the_sums_over_their_words(titles, seed):
    """Read off the token ids alone, without codes: the mass of the titles that go on with each word."""
    sequences = [[*title, 4] for title in titles]
    table = SidTable.of_tokens([f"i{row}" for row in range(len(titles))], sequences)
    rng = np.random.default_rng(seed)
    probabilities, answer = rng.dirichlet(np.ones(len(titles))), int(rng.integers(len(titles)))
    found = CodeTargets(table, table.level_sizes, CPU)(torch.tensor(probabilities[None]), torch.tensor([answer]))
    for level in range(len(sequences[answer])):
        masses = {}
        for sequence, mass in zip(sequences, probabilities, strict=True):
            if sequence[:level] == sequences[answer][:level] and len(sequence) > level:
                masses[sequence[level]] = masses.get(sequence[level], 0) + mass
        expected = [masses.get(token, 0) / sum(masses.values()) for token in table.words.ids[level].tolist()]
        np.testing.assert_allclose(found[level][0], expected, atol=1e-6)


def test_gradient_is_the_expectation_over_drawn_items():
    """Cross-entropy with the targets, over prefixes of drawn items, has the mean gradient of drawn one-hot answers."""
    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers(0, 3, size=(12, 3)), axis=0)
    table = SidTable([f"i{row}" for row in range(len(codes))], codes)
    items = torch.arange(table.num_items)
    probabilities = torch.tensor(rng.dirichlet(np.ones(table.num_items)))
    prefixes = [[tuple(sid[:level]) for sid in codes] for level in range(3)]
    index = [[sorted(set(level)).index(prefix) for prefix in level] for level in prefixes]
    scores = [torch.randn(len(set(level)), 3, dtype=torch.double, requires_grad=True) for level in prefixes]
    levels = CodeTargets(table, table.level_sizes, CPU)(probabilities.expand(len(items), -1), items)

    def mean_gradients(targets):
        loss = sum(
            -(probabilities[:, None] * targets[level] * scores[level][index[level]].log_softmax(1)).sum()
            for level in range(3)
        )
        return torch.autograd.grad(loss, scores)

    one_hot = [torch.nn.functional.one_hot(torch.from_numpy(codes[:, level]), 3).double() for level in range(3)]
    for found, expected in zip(
        mean_gradients([level.double() for level in levels]), mean_gradients(one_hot), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_large_batches_are_computed_in_parts(monkeypatch):
    table = SidTable(list("abcd"), [[0, 0], [0, 1], [1, 0], [1, 1]])
    targets, probabilities, answers = CodeTargets(table, table.level_sizes, CPU), torch.rand(7, 4), torch.arange(7) % 4
    whole = targets(probabilities, answers)
    monkeypatch.setattr("llmrec.training.distil.code_targets.MASSES_AT_ONCE", 8)
    for part, level in zip(targets(probabilities, answers), whole, strict=True):
        assert torch.equal(part, level)
