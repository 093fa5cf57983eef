"""Parts of LMIndexer by hand: contrast within a prefix, hidden tokens, drawn codes, order of a pass, token states."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llmrec.tokenizers.lm_indexer.network import Codebook, LevelIndexer, Reconstructor
from llmrec.tokenizers.lm_indexer.objective import PREDICTED, LevelObjective, hide, prefix_contrast
from llmrec.tokenizers.lm_indexer.token_states import TextSource, TokenBatch, TokenStates
from tests.tokenizers.lm_indexer.planted import catalog_of, text_view, write_encoder


def batch_of(lengths: list[int], dim: int = 6) -> TokenBatch:
    is_token = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return TokenBatch(
        torch.randn(*is_token.shape, dim) * is_token[:, :, None], torch.zeros_like(is_token).long(), is_token
    )


def test_the_contrast_knows_the_items_of_a_prefix_alone():
    """Two orthogonal items of one prefix: -log e^10 / (e^10 + 1) each. The third shares its prefix with none: 0."""
    states = torch.tensor([[2.0, 0], [0, 3], [1, 0]])
    found = prefix_contrast(states, states, torch.tensor([5, 5, 0]), temperature=0.1)
    assert found.item() == pytest.approx(2 * math.log(1 + math.exp(-10)) / 3, abs=1e-6)
    together = prefix_contrast(states, states, torch.tensor([5, 5, 5]), temperature=0.1)
    assert float(together) == pytest.approx(math.log(2) * 2 / 3, abs=1e-3), "the first and the third are one direction"


def test_hidden_tokens_are_those_of_the_text_and_few_of_them_are_predicted():
    batch = batch_of([3, 60, 60])
    is_hidden, (items, places) = hide(batch, 0.5, torch.Generator().manual_seed(0))
    assert not is_hidden[0, 3:].any() and 15 < int(is_hidden[1].sum()) < 45
    assert is_hidden[items, places].all() and len({*zip(items.tolist(), places.tolist(), strict=True)}) == len(items)
    counts = torch.bincount(items, minlength=3).tolist()
    assert counts == [int(is_hidden[0].sum()), PREDICTED, PREDICTED]
    everything, _ = hide(batch, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(everything, batch.is_token)


def test_drawn_codes_are_codes_and_their_gradient_is_that_of_the_softmax():
    torch.manual_seed(0)
    book, states = Codebook(5, 8), torch.randn(400, 8, requires_grad=True)
    torch.nn.init.normal_(book.codes)
    drawn = book.draw(states)
    distance = torch.cdist(drawn, book.codes)
    assert distance.min(1).values.max().item() < 1e-3
    nearest = torch.cdist(states, book.codes).argmin(1)
    share = float((distance.argmin(1) == nearest).float().mean())
    assert 0.3 < share < 0.95, "the noise is drawn, and the nearest code still leads"
    drawn.sum().backward()
    assert states.grad.abs().sum() > 0 and book.codes.grad.abs().sum() > 0


def test_the_commitment_moves_states_and_no_code():
    book, states = Codebook(3, 2), torch.tensor([[1.0, 2.0]], requires_grad=True)  # the nearest code is the first
    with torch.no_grad():
        book.codes.copy_(torch.tensor([[1.0, 0], [9, 9], [-9, 9]]))
    found = book.commitment(states)
    found.backward()
    assert found.item() == pytest.approx((0 + 4) / 2) and states.grad.tolist() == [[0.0, 2.0]]
    assert book.codes.grad is None


def test_a_pass_brings_prefixes_together_and_loses_no_item():
    rows, prefixes = torch.randperm(60), torch.arange(60) % 7
    nothing = TokenStates(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(61).long(), torch.zeros(1, 4))
    learner = LevelObjective(nothing, torch.arange(60), torch.zeros(60, 1, 4), prefixes, LevelIndexer(1, 4, 4, 2),
                             Reconstructor(nothing.word_vectors, 4, 2), 0.5, 0.25, 1.0, 0.1, seed=0)  # fmt: skip
    order = learner.order(rows)
    assert sorted(order.tolist()) == list(range(60))
    runs = prefixes[order]
    assert int((runs[1:] != runs[:-1]).sum()) == 6, "seven runs, one of each prefix"
    assert runs[0] == prefixes[rows[0]], "in the order in which they were drawn"


def test_a_pass_over_some_items_may_have_prefixes_of_any_number():
    """Deep levels have almost as many prefixes as items, so numbers of prefixes pass the number of training items."""
    nothing = TokenStates(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(11).long(), torch.zeros(1, 4))
    prefixes = torch.tensor([9, 8, 7, 6, 5, 4, 3, 2, 1, 1])
    learner = LevelObjective(nothing, torch.arange(10), torch.zeros(10, 1, 4), prefixes, LevelIndexer(1, 4, 4, 2),
                             Reconstructor(nothing.word_vectors, 4, 2), 0.5, 0.25, 1.0, 0.1, seed=0)  # fmt: skip
    assert learner.order(torch.tensor([8, 0, 9, 2])).tolist() == [8, 9, 0, 2]


def test_states_read_the_codes_of_earlier_levels_and_the_whole_text_but_no_padding():
    torch.manual_seed(0)
    level = LevelIndexer(2, 6, 8, 4).eval()
    batch, earlier = batch_of([5, 3]), torch.randn(2, 2, 8)
    states = level.states(batch, earlier)[0]
    padded = batch_of([3])._replace(states=batch.states[1:, :3])
    torch.testing.assert_close(level.states(padded, earlier[1:])[0], states[1:], atol=1e-5, rtol=1e-5)
    for changed in (earlier * torch.tensor([2.0, 1])[:, None], earlier * torch.tensor([1.0, 2])[:, None]):
        assert not torch.allclose(level.states(batch, changed)[0], states, atol=1e-3)
    assert not torch.allclose(level.states(batch._replace(states=batch.states * 2), earlier)[0], states, atol=1e-3)
    level.train()
    one, other = level.states(batch, earlier, views=2)
    assert not torch.allclose(one, other, atol=1e-3), "two views under other dropout"


def test_the_reconstructor_does_not_see_hidden_tokens():
    torch.manual_seed(0)
    words = torch.randn(9, 6)
    reader = Reconstructor(words, 8, 5).eval()
    batch = batch_of([4, 4])._replace(places=torch.tensor([[1, 2, 3, 4], [1, 8, 3, 4]]))
    hidden, codes = torch.tensor([[False, True, False, False]] * 2), torch.zeros(2, 8)
    wanted = (torch.tensor([0, 1]), torch.tensor([1, 1]))
    logits = reader(batch, hidden, codes, wanted)
    assert logits.shape == (2, 9)
    torch.testing.assert_close(logits[0], logits[1])
    assert not torch.allclose(*reader(batch, ~hidden & False, codes, wanted), atol=1e-3)
    assert not torch.allclose(reader(batch, hidden, torch.randn(2, 8), wanted), logits, atol=1e-3)


def test_token_states_are_those_of_the_encoder_without_what_it_puts_around(tmp_path):
    lines = ["red apple pie", "", "green tea red"]
    encoder, catalog = write_encoder(tmp_path / "encoder", lines), catalog_of(lines)
    source = TextSource.of(text_view(catalog, encoder, tmp_path / "scratch"))
    found = TokenStates.read(catalog, source, 16, "cpu")
    assert found.first.tolist() == [0, 3, 3, 6] and found.has_text.tolist() == [True, False, True]
    assert len(found.word_vectors) == 5 and found.places[0] == found.places[5], "red is one word"
    batch = found.of(torch.tensor([0, 1]))
    assert batch.states.shape == (2, 3, 64) and batch.is_token.tolist() == [[True] * 3, [True, False, False]]
    assert not batch.states[1].any()
    short = TokenStates.read(catalog, source, 4, "cpu")
    assert int(np.diff(short.first).max()) < 4, "the two around a text count"
