"""Histories in pieces: drawn anew for every example, never touched by the answer, and the same whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.model.history.choice import make_history_encoder
from llmrec.model.history.pieces import PieceHistoryEncoder
from llmrec.model.new_rows import InitialVectors, add_rows, feature_table
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.sft.examples import HistoryCollator
from llmrec.training.sft.losses import IGNORED
from tests.conftest import tiny_llm, word_tokenizer
from tests.support.pieces import KIND_SIZES, piece_table

HISTORIES = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9, 10], [11]]
EXAMPLES = [
    {"rows": rows, "num_context": len(rows) - 1, "user": user, "start": 0} for user, rows in enumerate(HISTORIES)
]


def encoder_of(segmentations: int = 5) -> PieceHistoryEncoder:
    table = piece_table()
    vocabulary = SidVocabulary.add_to(word_tokenizer(), table.level_sizes, segmentations=segmentations)
    encoder = make_history_encoder(table, vocabulary)
    assert isinstance(encoder, PieceHistoryEncoder)
    return encoder


def drawn(encoder, examples, epoch=0) -> list[tuple[list[int], list[int]]]:
    collator = HistoryCollator([4], encoder, 0, seed=1, epoch=epoch)
    return [(ids.tolist(), labels.tolist()) for ids, labels in collator.draw(examples)]


def test_the_answer_stands_alone_behind_the_pieces_of_the_others():
    encoder = encoder_of()
    for rows, (ids, labels) in zip(HISTORIES, drawn(encoder, EXAMPLES), strict=True):
        answer = encoder.encode_answer(rows[-1:]).tolist()
        assert ids[-len(answer) :] == labels[-len(answer) :] == answer
        assert set(labels[: -len(answer)]) == {IGNORED} and ids[0] == 4
        history = [token - encoder.start for token in ids[1 : -len(answer)]]
        assert encoder.pieces.features_of(history) == sorted(encoder.features_Nm[rows[:-1]].reshape(-1).tolist())


def test_an_answer_is_written_as_in_the_table():
    encoder, table = encoder_of(), piece_table()
    for row in range(12):
        assert (encoder.encode_answer([row]) - encoder.start).tolist() == table.codes([row])[
            0, : table.lengths[row]
        ].tolist()


def test_every_epoch_draws_anew_and_the_order_of_a_batch_does_not_matter():
    encoder = encoder_of()
    first = drawn(encoder, EXAMPLES)
    assert drawn(encoder, EXAMPLES) == first
    assert drawn(encoder, EXAMPLES[::-1])[::-1] == first
    assert len({str(drawn(encoder, EXAMPLES[:1], epoch)) for epoch in range(20)}) > 5


def test_with_0_segmentations_every_epoch_has_the_fixed_one():
    encoder = encoder_of(segmentations=0)
    assert len({str(drawn(encoder, EXAMPLES, epoch)) for epoch in range(5)}) == 1
    fixed = encoder.pieces.segment_fixed(encoder.features_Nm[[0, 1, 2, 3]])
    assert (encoder.encode_history([0, 1, 2, 3]) - encoder.start).tolist() == fixed
    assert (encoder_of().encode_history([0, 1, 2, 3]) == encoder.encode_history([0, 1, 2, 3])).all(), (
        "without generators"
    )


def test_the_last_token_is_of_the_last_item():
    encoder = encoder_of()
    rngs = [np.random.default_rng(seed) for seed in range(2)]
    prompts = encoder.encode_prompts([4], np.array([0, 1, 2, 7, 8]), [3, 2], rngs=rngs)
    ends = np.cumsum(prompts.lengths) - 1
    assert prompts.items[ends].tolist() == [2, 4] and (np.diff(prompts.items[prompts.items >= 0]) >= 0).all()
    assert not prompts.is_answer.any()


def test_two_targets_are_refused():
    with pytest.raises(ValueError, match="2 targets, but pieces run across items"):
        drawn(encoder_of(), [EXAMPLES[0] | {"num_context": 3}])


def test_a_table_without_pieces_is_refused():
    table = piece_table()
    vocabulary = SidVocabulary.add_to(word_tokenizer(), table.level_sizes, segmentations=5)
    with pytest.raises(ValueError, match="of pieces, the SID table has none"):
        make_history_encoder(SidTable(table.item_ids, table.all_codes, level_sizes=table.level_sizes), vocabulary)


def test_first_vectors():
    """A merged piece begins near its features, at the scale of the old vectors, and no two begin alike."""
    table, tokenizer = piece_table(num_merges=40), word_tokenizer()
    pieces, model = table.pieces, tiny_llm(len(word_tokenizer()), hidden_size=256)
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes, segmentations=5)
    old = model.get_input_embeddings().weight[: vocabulary.starts[0]].detach().clone()
    generator = torch.Generator().manual_seed(0)
    lean = [InitialVectors(torch.arange(size), torch.randn(size, 256, generator=generator)) for size in KIND_SIZES]
    add_rows(model, vocabulary, 0, lambda _: lean, pieces)
    rows = model.get_input_embeddings().weight.detach()[vocabulary.starts[0] :][: len(pieces)] - old.mean(dim=0)
    means = torch.stack([rows[pieces.features_of([piece])].mean(dim=0) for piece in range(18 - 4, len(pieces))])
    cosines = torch.cosine_similarity(rows[14:], means)
    assert cosines.min() > 0.85 and cosines.max() < 0.99
    assert rows[14:].norm(dim=1).mean() == pytest.approx(float(old.std(dim=0).norm()), rel=0.2)
    assert len(rows.unique(dim=0)) == len(pieces)


def test_features_of_a_table():
    table = piece_table()
    features = feature_table(table)
    assert features.level_sizes == list(KIND_SIZES)
    assert (table.pieces.answers(table.pieces.features(features.all_codes)) == table.all_codes).all()
