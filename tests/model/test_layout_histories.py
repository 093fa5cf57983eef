"""Histories in the layout of another project, token by token."""

from __future__ import annotations

import numpy as np
import pytest

from llmrec.model.history.choice import make_history_encoder
from llmrec.sid.item_layout import ItemLayout
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary

TABLE = SidTable(["red", "green", "blue"], [[0, 1], [1, 0], [1, 1]])
# Codes of level 0 are tokens 100 and 101, of level 1 tokens 102 and 103.
RED, GREEN, BLUE = [100, 103], [101, 102], [101, 103]


def encoder(**layout):
    vocabulary = SidVocabulary((2, 2), (100, 102), (2, 2), eos_token_id=1, layout=ItemLayout(**layout))
    assert SidVocabulary.from_dict(vocabulary.to_dict()) == vocabulary
    return make_history_encoder(TABLE, vocabulary)


def test_a_prompt_has_separators_and_ends_with_the_suffix():
    prompts = encoder(separator=(7,), suffix=(8, 9)).encode_prompts((5,), [0, 1, 2], [2, 1])
    assert prompts.tokens.tolist() == [5, *RED, 7, *GREEN, 8, 9, 5, *BLUE, 8, 9]
    assert prompts.lengths.tolist() == [8, 5]
    assert prompts.items.tolist() == [-1, 0, 0, 1, 1, 1, -1, -1, -1, 2, 2, -1, -1]


def test_a_target_stands_behind_the_suffix_and_its_sid_alone_is_the_answer():
    is_target = np.array([False, False, True])
    prompts = encoder(separator=(7,), suffix=(8, 9), begin=(3,), end=(4,)).encode_prompts(
        (5,), [0, 1, 2], [3], is_target
    )
    expected = [5, 3, *RED, 4, 7, 3, *GREEN, 4, 8, 9, 3, *BLUE, 4]
    assert prompts.tokens.tolist() == expected and prompts.lengths.tolist() == [len(expected)]
    learned = (prompts.items == 2) & prompts.is_answer
    assert prompts.tokens[learned].tolist() == BLUE


def test_where_items_are_asked_for_in_place_every_one_may_be_a_target():
    onerec = encoder(begin=(3,), end=(4,))
    whole = onerec.encode_prompts((5,), [0, 1, 2], [3], np.array([False, True, True]))
    for seen in (1, 2):  # the tokens before each target are its prompt
        prompt = onerec.encode_prompts((5,), [0, 1, 2][:seen], [seen]).tokens.tolist()
        first = int(np.flatnonzero((whole.items == seen) & whole.is_answer)[0])
        assert whole.tokens[:first].tolist() == prompt
    with pytest.raises(ValueError, match=r"A history has 2 targets, .* Set targets to last_item"):
        encoder(suffix=(8,)).encode_prompts((5,), [0, 1, 2], [3], np.array([False, True, True]))


def test_numbers_are_those_of_the_names():
    layout = ItemLayout(numbers=((0, 10), (3, 4)))
    vocabulary = SidVocabulary((2, 2), (100, 102), (2, 2), eos_token_id=1, layout=layout)
    assert vocabulary.tokens() == ["<a_0>", "<a_10>", "<b_3>", "<b_4>"]
    assert vocabulary.text(TABLE.codes([1])) == "<a_10><b_3>"


@pytest.mark.parametrize(
    "values", [{"separator": (-1,)}, {"suffix": (True,)}, {"numbers": ((1, 1),)}, {"end": (2**31,)}]
)
def test_a_hostile_layout_is_refused(values):
    with pytest.raises(ValueError, match="item layout"):
        ItemLayout(**values)
