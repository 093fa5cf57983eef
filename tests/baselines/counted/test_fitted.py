"""Options chosen on valid: the best of the grid, by valid examples alone, and what is given stays."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from llmrec.baselines.counted import ItemKNN, Markov, TransitionGraph
from llmrec.baselines.counted.fitted import fitted, quality
from tests.support.networks import split


@pytest.fixture(scope="module")
def catalog():
    rng = np.random.default_rng(0)
    train, valid, test = (rng.integers(0, 12, size=(40, 6)) for _ in range(3))
    return split(train, valid, test)


def test_no_value_of_the_last_option_is_better(catalog):
    found = fitted(functools.partial(ItemKNN, catalog), catalog)
    valid = catalog.examples("valid")
    others = [ItemKNN(catalog, shrink=found.chosen.shrink, decay=decay) for decay in ItemKNN.grid["decay"]]
    assert quality(found, valid) == max(quality(other, valid) for other in others) > quality(ItemKNN(catalog), valid)


def test_what_is_given_stays(catalog):
    found = fitted(functools.partial(ItemKNN, catalog), catalog, decay=0.123, neighbours=3)
    assert (found.chosen.decay, found.chosen.neighbours) == (0.123, 3)
    assert found.chosen.shrink in ItemKNN.grid["shrink"]


def test_test_examples_choose_nothing_and_valid_examples_do(catalog):
    rng = np.random.default_rng(1)
    train = [catalog.train.sequence(i) for i in range(40)]
    valid = [np.append(catalog.examples("valid").history(i), catalog.examples("valid").targets[i]) for i in range(40)]
    build = functools.partial(TransitionGraph, features=np.eye(12))
    catalogs = (
        catalog,
        split(train, valid, rng.integers(0, 12, (40, 6))),
        split(train, rng.integers(0, 12, (40, 6)), []),
    )
    one, same, other = (fitted(functools.partial(build, each), each).chosen for each in catalogs)
    assert one == same != other


def test_without_valid_examples_or_a_grid_the_defaults_stay(catalog):
    empty = split([[0, 1, 2]], [], [])
    assert fitted(functools.partial(ItemKNN, empty), empty).chosen == ItemKNN.options()
    assert fitted(functools.partial(Markov, catalog), catalog).chosen == Markov.options()
