"""Histories in an alias that is drawn: history and answers in the same one, whatever the order of the batch."""

import numpy as np
import pytest

from llmrec.model.history.aliases import AliasHistoryEncoder
from llmrec.model.history.choice import make_history_encoder
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.sid.aliases import aliases_of, codes_of_alias, join_aliases
from llmrec.sid.codes import EMPTY
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.sft.examples import HistoryCollator
from llmrec.training.sft.losses import IGNORED
from tests.conftest import CODES, word_tokenizer

ITEM_IDS = [f"item-{row}" for row in range(12)]
TURNED = (np.array(CODES) + np.array([1, 2, 3])) % 4


def encoder_of(table, **options):
    vocabulary = SidVocabulary.add_to(word_tokenizer(), table.level_sizes, **options)
    return make_history_encoder(table, vocabulary)


@pytest.fixture
def table() -> SidTable:
    return join_aliases(ITEM_IDS, [np.array(CODES), TURNED], [4, 4, 4], share_codes=True)


def examples(count=24):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 6, count)
    return [
        {"rows": rng.integers(0, 12, size).tolist(), "num_context": 0, "user": user, "start": 0}
        for user, size in enumerate(sizes)
    ]


def sequences(encoder, batch, epoch=0):
    collator = HistoryCollator([4], encoder, 0, seed=1, epoch=epoch)
    return [(ids.tolist(), labels.tolist()) for ids, labels in collator.draw(batch)]


def test_a_sequence_is_written_in_one_alias(table):
    encoder = encoder_of(table)
    assert isinstance(encoder, AliasHistoryEncoder)
    each = [SidHistoryEncoder(alias, encoder_vocabulary(table)) for alias in aliases_of(table)]
    drawn = []
    for example, (ids, labels) in zip(examples(), sequences(encoder, examples()), strict=True):
        written = [[4, *one.encode_history(example["rows"]).tolist()] for one in each]
        assert ids in written and labels == [IGNORED, *ids[1:]]
        drawn.append(written.index(ids))
    assert 6 < sum(drawn) < 18  # of 24


def encoder_vocabulary(table):
    return SidVocabulary.add_to(word_tokenizer(), table.level_sizes)


def test_a_draw_depends_on_epoch_and_sequence_alone(table):
    encoder, batch = encoder_of(table), examples()
    once = sequences(encoder, batch)
    assert sequences(encoder, batch[::-1]) == once[::-1]
    assert [sequences(encoder, [each])[0] for each in batch] == once
    assert sequences(encoder, batch, epoch=1) != once


def test_without_a_generator_the_first_alias_is_written(table):
    encoder = encoder_of(table)
    first = SidHistoryEncoder(aliases_of(table)[0], encoder_vocabulary(table))
    assert encoder.encode_history([3, 6]).tolist() == first.encode_history([3, 6]).tolist()
    assert encoder.encode_answer([5]).tolist() == first.encode_answer([5]).tolist()
    assert (encoder.tokens_NL == first.tokens_NL).all()


def test_generators_in_one_state_write_history_and_answer_alike(table):
    encoder = encoder_of(table)
    for seed in range(8):
        history = encoder.encode_history([9, 2], np.random.default_rng(seed))
        assert encoder.encode_answer([9, 2], np.random.default_rng(seed)).tolist() == history.tolist()


def test_one_alias_is_bit_equal_to_semantic_ids():
    table = join_aliases(ITEM_IDS, [np.array(CODES)], [4, 4, 4], share_codes=False)
    plain = SidTable(ITEM_IDS, CODES, level_sizes=[4, 4, 4])
    assert table.sha256 == plain.sha256
    assert isinstance(encoder_of(table), SidHistoryEncoder) and not isinstance(encoder_of(table), AliasHistoryEncoder)
    assert sequences(encoder_of(table), examples()) == sequences(encoder_of(plain), examples())


@pytest.mark.parametrize("share_codes", [True, False])
def test_aliases_come_apart_as_they_were_joined(share_codes):
    other = TURNED if share_codes else TURNED[:, :2]  # whose SIDs begin no other alias's
    table = join_aliases(ITEM_IDS, [np.array(CODES), other], [4, 4, 4], share_codes)
    padded = np.pad(other, ((0, 0), (0, 3 - other.shape[1])), constant_values=EMPTY)
    for alias, expected in enumerate([np.array(CODES), padded]):
        codes, sizes = codes_of_alias(table, alias, share_codes)
        assert codes.tolist() == expected.tolist() and sizes == [4, 4, 4]
    first_codes = [set(alias.all_codes[:, 0].tolist()) for alias in aliases_of(table)]
    assert first_codes[0].isdisjoint(first_codes[1]) is not share_codes


def test_codes_of_their_own_do_not_move_when_a_level_grows():
    before = join_aliases(ITEM_IDS[:2], [np.array([[0], [1]])] * 2, [2], share_codes=False)
    after = join_aliases(ITEM_IDS[:3], [np.array([[0], [1], [2]])] * 2, [3], share_codes=False)
    assert before.all_codes.tolist() == after.all_codes[:4].tolist()


def test_items_that_differ_in_their_number_of_sids_have_no_aliases():
    table = SidTable(["red", "green"], [[0, 1], [1, 0], [2, 2]], item_rows=[0, 1, 0])
    assert aliases_of(table) == [table]
    assert not isinstance(encoder_of(table), AliasHistoryEncoder)


def test_no_generator_is_made_for_histories_that_draw_nothing(table):
    def generators():
        raise AssertionError("a generator was made")
        yield

    one = encoder_of(aliases_of(table)[0])
    assert one.draw_aliases(3, generators()).tolist() == [0, 0, 0]
    with pytest.raises(AssertionError, match="a generator was made"):
        encoder_of(table).draw_aliases(3, generators())
