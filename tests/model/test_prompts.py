"""Law 8: instruction, history, answer, and no token between history and answer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.model.history.encoder import NO_ITEM
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.model.prompts import DEFAULT_INSTRUCTION, Prompt, most_prompt_tokens
from llmrec.sid.table import EMPTY, SidTable
from llmrec.sid.vocabulary import SidVocabulary
from tests.conftest import word_tokenizer
from tests.support.decoding import tables

CHAT_TEMPLATE = (
    "{% for m in messages %}<bos> {{ m['role'] }} {{ m['content'] }} <eos>{% endfor %}"
    "{% if add_generation_prompt %} green tea{% endif %}"
)


@settings(max_examples=25)
@given(tables(), st.data())
def test_the_answer_follows_the_history_at_once(table, data):
    tokenizer = word_tokenizer()
    encoder = SidHistoryEncoder(table, SidVocabulary.add_to(tokenizer, table.level_sizes))
    history = data.draw(st.lists(st.integers(0, table.num_items - 1), min_size=1, max_size=6))
    *shown, answer = history
    prefix = Prompt().prefix(tokenizer)
    prompt = [*prefix, *encoder.encode_history(shown)]
    assert [*prompt, *encoder.encode_history([answer])] == [*prefix, *encoder.encode_history(history)]


@pytest.mark.parametrize("chat_template", [False, True])
def test_ids_are_those_of_the_text(tokenizer, vocabulary, sid_table, chat_template):
    tokenizer.chat_template = CHAT_TEMPLATE
    prompt = Prompt(chat_template=chat_template)
    ids = [*prompt.prefix(tokenizer), *SidHistoryEncoder(sid_table, vocabulary).encode_history([3, 6])]
    before = f"<bos> user {DEFAULT_INSTRUCTION} <eos> green tea" if chat_template else DEFAULT_INSTRUCTION
    text = before + "<a_0><b_3><c_2><a_1><b_2><c_3>"  # items 3 and 6
    assert ids == tokenizer.encode(text, add_special_tokens=False)


def test_histories_of_sids_of_different_lengths(tokenizer):
    table = SidTable(["long", "short"], [[1, 0, 1], [0, 1, EMPTY]])
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes)
    a, b, c = vocabulary.starts
    encoder = SidHistoryEncoder(table, vocabulary)
    assert encoder.encode_history([1, 0, 1]).tolist() == [a, b + 1, a + 1, b, c + 1, a, b + 1]
    assert encoder.encode_history([]).tolist() == []


def test_histories_do_not_depend_on_rng(sid_table, vocabulary):
    encoder = SidHistoryEncoder(sid_table, vocabulary)
    assert encoder.encode_history([0, 5], np.random.default_rng(0)).tolist() == encoder.encode_history([0, 5]).tolist()


def test_a_tokenizer_that_ends_every_text_does_not_end_the_prompt(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)]
    )
    assert tokenizer.encode("red apple")[-1] == 3
    prefix = Prompt("red apple").prefix(tokenizer)
    assert prefix == [2, *tokenizer.convert_tokens_to_ids(["red", "apple"])]


def test_a_prompt_with_nothing_before_the_history_is_refused(tokenizer):
    with pytest.raises(ValueError, match="needs something before it"):
        Prompt("").prefix(tokenizer)


def test_a_chat_template_that_is_not_there_is_refused(tokenizer):
    with pytest.raises(ValueError, match="chat_template is true but the tokenizer has none"):
        Prompt(chat_template=True).prefix(tokenizer)


def test_a_table_that_needs_more_codes_is_refused(vocabulary):
    with pytest.raises(ValueError, match="Run `llmrec extend` on the new table"):
        SidHistoryEncoder(SidTable(["a"], [[0, 0, 7]]), vocabulary)


def test_a_dictionary_keeps_the_prompt():
    prompt = Prompt("What next?", chat_template=True)
    assert Prompt(**prompt.to_dict()) == prompt


@settings(max_examples=25)
@given(tables(), st.data())
def test_prompts_in_one_gather_are_prefix_and_history_of_each(table, data):
    vocabulary = SidVocabulary.add_to(word_tokenizer(), table.level_sizes)
    encoder = SidHistoryEncoder(table, vocabulary)
    prefix = data.draw(st.lists(st.integers(4, 9), max_size=3))
    histories = data.draw(st.lists(st.lists(st.integers(0, table.num_items - 1), max_size=4), min_size=1, max_size=4))
    rows = [row for history in histories for row in history]
    prompts = encoder.encode_prompts(prefix, rows, [len(history) for history in histories])
    expected = [[*prefix, *encoder.encode_history(history).tolist()] for history in histories]
    assert prompts.tokens.tolist() == [token for prompt in expected for token in prompt]
    assert prompts.lengths.tolist() == [len(prompt) for prompt in expected]
    assert (prompts.items == NO_ITEM).sum() == len(prefix) * len(histories)
    for item, row in enumerate(rows):
        assert prompts.tokens[prompts.items == item].tolist() == encoder.encode_history([row]).tolist()
    assert max(prompts.lengths) <= most_prompt_tokens(prefix, max(map(len, histories)), vocabulary)


def test_padded_prompts_by_hand(sid_table, vocabulary):
    ids, mask = SidHistoryEncoder(sid_table, vocabulary).pad_prompts([4, 5], [[3], [6, 3]], 0)
    a, b, c = vocabulary.starts  # item 3 is (0, 3, 2), item 6 is (1, 2, 3)
    assert ids.tolist() == [[4, 5, a, b + 3, c + 2, 0, 0, 0], [4, 5, a + 1, b + 2, c + 3, a, b + 3, c + 2]]
    assert mask.tolist() == [[1] * 5 + [0] * 3, [1] * 8]
