"""Rewards by hand, MiniOneRec's exact advantages, rewards of one's own, and what is refused."""

from __future__ import annotations

import functools
import linecache
import types

import numpy as np
import pytest
import torch

from llmrec.data.catalog import Catalog
from llmrec.sid.table import EMPTY
from llmrec.training.grpo.advantages import group_advantages
from llmrec.training.grpo.rewards import Collaborative, Novelty, RollOuts, build_rewards, prefix, rank, rule
from llmrec.training.grpo.user_rewards import load_function, load_user_rewards, reward_files, try_rewards
from tests.conftest import CODES


def groups(items, target, scores=None, codes=CODES, histories=((0, 1),)):
    """One group of item rows of the shared catalogue, in descending order of probability unless scores are given."""
    items = np.array([items])
    scores = -np.arange(items.shape[1], dtype=float)[None] if scores is None else np.array([scores])
    histories = [np.array(history) for history in histories]
    return RollOuts(histories, np.array([target]), codes[[target]], items, codes[items], scores)


def test_rule():
    assert rule(groups([3, 7, 7, 1], target=7)).tolist() == [[0, 1, 1, 0]]


def test_rank_by_hand():
    """Discounts 1, .6309, .5 of ranks 0, 1, 2, over their sum 2.1309; the hit costs nothing, wherever it stands."""
    discount = np.array([1, 1 / np.log2(3), 0.5])
    costs = -discount / discount.sum()
    assert rank(groups([3, 7, 1], target=7))[0] == pytest.approx([costs[0], 0, costs[2]])
    assert rank(groups([3, 7, 1], target=7, scores=[-3.0, -1.0, -2.0]))[0] == pytest.approx([costs[2], 0, costs[1]])
    assert not rank(groups([3, 7, 1], target=2)).any()


@pytest.mark.parametrize(
    ("place", "hit", "first", "last"),
    [(0, 3.741, None, None), (1, 3.725, None, None), (2, 3.722, None, None), (4, 3.722, -0.627, -0.165)],
)
def test_rule_and_rank_give_the_advantages_of_minionerec(place, hit, first, last):
    """Its published values for 16 beams."""
    items = np.full(16, 3)
    items[place] = 7
    found, _ = build_rewards(["rule", "rank"], [1, 1], None)(groups(items, target=7))
    advantages = group_advantages(torch.from_numpy(found))[0]
    assert advantages[place].item() == pytest.approx(hit, abs=6e-4)
    if first is not None:
        assert advantages[0].item() == pytest.approx(first, abs=6e-4)
        assert advantages[-1].item() == pytest.approx(last, abs=6e-4)


def test_prefix_gives_credit_for_each_level_from_the_first():
    """Item 9 is (3, 1, 1), 10 (3, 1, 2), 11 (3, 3, 3); item 8 = (2, 0, 3) shares its last code alone."""
    assert prefix(groups([9, 10, 11, 8], target=10))[0] == pytest.approx([2 / 3, 1, 1 / 3, 0])
    assert prefix(groups([8], target=11)).tolist() == [[0]]


def test_prefix_of_a_short_target_counts_its_own_codes():
    codes = np.array([[0, 1, EMPTY], [0, 2, 0], [0, 2, 1]])
    assert prefix(groups([0, 1], target=0, codes=codes)).tolist() == [[1, 0.5]]
    assert prefix(groups([0, 1], target=2, codes=codes))[0] == pytest.approx([1 / 3, 2 / 3])


def test_novelty():
    counts = np.array([7, 0, 1])
    found = Novelty(counts)(groups([0, 1, 2], target=0, codes=np.zeros((3, 1), int)))
    assert found[0] == pytest.approx([0, 1, 1 - np.log(2) / np.log(8)])


def test_collaborative_is_the_gain_of_sasrecs_place():
    ranker = types.SimpleNamespace(scores=lambda histories: torch.tensor([[0.5, 3.0, -1.0, 2.0]]))
    found = Collaborative(ranker)(groups([1, 3, 2], target=0, codes=np.zeros((4, 1), int)))
    assert found[0] == pytest.approx([1, 1 / np.log2(3), 1 / np.log2(5)])


def test_collaborative_trains_on_the_training_split(toy):
    """Users of the toy catalogue walk in steps of one, so after item 3 comes item 4."""
    rewards = build_rewards(["collaborative"], [1], Catalog.load(toy[0]), device="cpu")
    found = rewards(groups([4, 9], target=4, histories=((1, 2, 3),)))[0][0]
    assert found[0] > found[1] > 0


def test_weights_and_parts_of_the_sum():
    total, parts = build_rewards(["rule", "prefix"], [2.0, -1.0], None)(groups([9, 10], target=10))
    assert parts.keys() == {"rule", "prefix"}
    assert total[0] == pytest.approx([-2 / 3, 1])


OWN = "def longest(history, item_ids, target):\n    return [len(i) + (i == target) for i in item_ids]\n"


@pytest.mark.parametrize("way", ["file", "module"])
def test_a_function_of_a_file_or_module(way, tmp_path, monkeypatch, item_ids):
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"{tmp_path / 'mine.py' if way == 'file' else 'mine'}:longest"
    own = load_user_rewards([name, "rule"], [], item_ids)
    assert reward_files(own) == {f"reward {name}": str(tmp_path / "mine.py")}
    total, parts = build_rewards([name, "rule"], [1, 10], None, own)(groups([10, 3], target=10))
    assert list(parts) == [name, "rule"]
    assert total.tolist() == [[len("item-10") + 1 + 10, len("item-3")]]


def test_an_object_of_a_file_that_declares_dataclasses(tmp_path, item_ids):
    """`dataclasses` and `inspect` look the file up among the modules; two files of one name are two."""
    files = [tmp_path / "one" / "mine.py", tmp_path / "two" / "mine.py"]
    for weight, file in enumerate(files):
        file.parent.mkdir()
        file.write_text(WEIGHED + f"worth = Worth({weight})\n")
    names = [f"{file}:worth" for file in files]
    own = load_user_rewards(names, [], item_ids)
    assert reward_files(own) == {f"reward {name}": str(file) for name, file in zip(names, files, strict=True)}
    assert build_rewards(names, [1, 10], None, own)(groups([4, 2], target=7))[0].tolist() == [[10, 10]]


WEIGHED = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Worth:
    weight: float

    def __call__(self, history, item_ids, target):
        return [self.weight] * len(item_ids)
"""


def test_what_lies_in_no_file_goes_by_its_name(tmp_path, monkeypatch, item_ids):
    """What is built in, and a function of a notebook, whose file each kernel calls by another name."""
    cell, typed = str(tmp_path / "cell.py"), {}
    monkeypatch.setitem(linecache.cache, cell, (len(OWN), None, OWN.splitlines(True), cell))
    exec(compile(OWN, cell, "exec"), typed)
    typed = typed["longest"]
    own = load_user_rewards([], [typed, functools.partial(groups, [1]), max], item_ids)
    assert reward_files(own) == {"reward longest": "longest", "reward partial": __file__, "reward max": "max"}


def test_a_callable_sees_external_ids(item_ids):
    seen = []

    def reward(history, item_ids, target):
        seen.append((history, item_ids, target))
        return np.zeros(len(item_ids))

    own = load_user_rewards([], [reward], item_ids)
    build_rewards(["reward"], [1], None, own)(groups([4, 2], target=7, histories=((3, 0),)))
    assert seen == [(["item-3", "item-0"], ["item-4", "item-2"], "item-7")]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0], "returned 1 numbers for a group of 3 items"),
        ([[1.0], [2.0], [3.0]], r"returned an array of shape \(3, 1\) for a group of 3"),
        ([1.0, float("nan"), 0.0], r"is nan for the item 'item-8' after the history \['item-1'.*target 'item-7'"),
        ([1.0, 2.0, float("inf")], "is inf for the item 'item-9'"),
        (None, "returned None for a group of 3"),
        (0.5, "returned 0.5 for a group of 3"),
        ("abc", "failed on the history .*ValueError"),
    ],
)
def test_what_is_no_reward_is_refused_before_training(sid_table, result, message):
    with pytest.raises(ValueError, match=f"The reward 'mine' {message}"):
        try_rewards(of(lambda *_: result), sid_table, [np.array([1, 2, 7])], size=3)


def of(function):
    """A function as the only reward, called mine."""
    function.__name__ = "mine"
    return load_user_rewards([], [function], [f"item-{row}" for row in range(12)])


def test_what_fails_names_the_history(sid_table):
    def mine(history, item_ids, target):
        raise KeyError("price")

    with pytest.raises(ValueError, match=r"'mine' failed on the history \['item-1', 'item-2'\].*'item-7'.*price"):
        try_rewards(of(mine), sid_table, [np.array([1, 2, 7])], size=3)


def test_a_reward_is_tried_on_the_target_and_on_misses(sid_table):
    seen = []

    def mine(history, item_ids, target):
        seen.append((item_ids, target))
        return np.ones(len(item_ids))

    try_rewards(of(mine), sid_table, [np.array([0, 11])], size=3)
    assert seen == [(["item-11", "item-0", "item-1"], "item-11")]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("ruel", "unknown reward 'ruel'; did you mean 'rule'"),
        ("no_such_module_here:f", "cannot be loaded: ModuleNotFoundError"),
        ("absent.py:f", "cannot be loaded: FileNotFoundError"),
        ("json:no_such_function", "'json' has no callable 'no_such_function'"),
        ("json:__doc__", "'json' has no callable"),
    ],
)
def test_a_reference_that_leads_nowhere(reference, message):
    with pytest.raises(ValueError, match=message):
        load_function(reference)


@pytest.mark.parametrize("name", ["rule", "mine"])
def test_two_rewards_of_one_name(item_ids, name):
    def mine(history, item_ids, target):
        return []

    mine.__name__ = name
    with pytest.raises(ValueError, match=f"Two rewards are called '{name}'"):
        load_user_rewards([], [mine, mine], item_ids)


def test_every_reward_that_cannot_be_loaded_is_named():
    with pytest.raises(ValueError, match=r"'no_such_module_here:f' cannot be loaded.*unknown reward 'rul'"):
        load_user_rewards(["no_such_module_here:f", "rule", "rul"], [], ["a", "b"])
