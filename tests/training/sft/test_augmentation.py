"""Augmentation: what each change does, and which targets stay honest under it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.model.prompts import HistoryEncoder
from llmrec.training.sft.augmentation import Augmentation, honest_targets
from llmrec.training.sft.examples import HistoryCollator, add_draws, build_dataset
from tests.support.extended import sft_config

property_test = settings(derandomize=True, max_examples=200, deadline=None)
ratios = st.floats(0, 1)
seeds = st.integers(0, 2**32 - 1)


def only(**options) -> Augmentation:
    return Augmentation.of(sft_config("", "", "", **options))


@pytest.mark.parametrize(
    ("places", "num_context", "targets"),
    [
        ([0, 1, 2, 3], 0, [0, 1, 2, 3]),
        ([0, 1, 2, 3], 2, [2, 3]),
        ([2, 3, 4], 0, [3, 4]),  # a crop: what came before item 2 is not shown
        ([2, 3, 4], 4, [4]),
        ([0, 2, 3, 6, 7], 0, [0, 3, 7]),  # items behind a gap did not come next
        ([0, 1, 4, 3, 2, 5, 6], 0, [0, 1, 5, 6]),  # 2 to 4 are shuffled; 5 came next after all of them
        ([0, 2, 1, 3], 0, [0, 3]),
    ],
)
def test_honest_targets_by_hand(places, num_context, targets):
    places = np.array(places)
    assert places[honest_targets(places, num_context)].tolist() == targets


@property_test
@given(st.integers(1, 30), st.data(), st.tuples(ratios, ratios, ratios), seeds)
def test_targets_are_real_next_items_and_never_run_out(length, data, shares, seed):
    """A target is shown with the item that came right before it, after nothing that came later."""
    num_context = data.draw(st.integers(0, length - 1))
    ratio = dict(zip(("crop_ratio", "mask_ratio", "reorder_ratio"), shares, strict=True))
    places = only(crop=0.7, mask=0.7, reorder=0.7, **ratio).draw(length, num_context, np.random.default_rng(seed))
    targets = np.flatnonzero(honest_targets(places, num_context))
    assert len(targets) > 0 and len(set(places.tolist())) == len(places)
    for target in targets:
        before = set(places[:target].tolist())
        assert places[target] >= num_context and max(before, default=-1) == places[target] - 1


@property_test
@given(st.integers(2, 30), seeds)
def test_each_change_alone(length, seed):
    rng = np.random.default_rng(seed)
    cropped = only(crop=1.0, crop_ratio=0.5).draw(length, 0, rng)
    assert len(cropped) == max(2, length // 2) and (np.diff(cropped) == 1).all()
    masked = only(mask=1.0, mask_ratio=0.5).draw(length, 0, rng)
    assert len(masked) == length - min(length // 2, length - 2) and (np.diff(masked) >= 1).all()
    assert masked[-2:].tolist() == [length - 2, length - 1]
    shuffled = only(reorder=1.0, reorder_ratio=0.5).draw(length, 0, rng)
    assert sorted(shuffled) == list(range(length)) and shuffled[-1] == length - 1
    moved = np.flatnonzero(shuffled != np.arange(length))
    assert len(moved) == 0 or np.ptp(moved) < length // 2


def test_each_change_comes_as_often_as_asked():
    rng = np.random.default_rng(0)
    augmentation = only(crop=0.25, crop_ratio=0.5)
    cropped = sum(len(augmentation.draw(10, 0, rng)) == 5 for _ in range(2000))
    assert 420 < cropped < 580  # 500, within four standard deviations


def test_a_row_with_one_target_keeps_it():
    """`last_item`: a crop moves its start only, and the target and the item before it are always shown."""
    rng = np.random.default_rng(0)
    augmentation = only(crop=1.0, crop_ratio=0.5, mask=1.0, reorder=0.5)
    for _ in range(100):
        places = augmentation.draw(8, 7, rng)
        assert np.flatnonzero(honest_targets(places, 7)).tolist() == [len(places) - 1] and places[-1] == 7


def test_off_is_none():
    assert only() is None and only(crop_ratio=0.1) is None


def test_a_history_is_drawn_by_seed_epoch_and_index(tokenizer, sid_table, vocabulary):
    histories = add_draws(build_dataset([np.arange(12)] * 6, 20, "every_item"), {})
    encoder = HistoryEncoder(sid_table, vocabulary)

    def drawn(seed: int, epoch: int, examples: list) -> list:
        collator = HistoryCollator([4, 5], encoder, 0, augmentation=only(crop=1.0), seed=seed, epoch=epoch)
        return [ids.tolist() for ids, _ in collator.draw(examples)]

    first, *others = (drawn(seed, epoch, list(histories)) for seed, epoch in ((0, 0), (1, 0), (0, 1)))
    assert drawn(0, 0, list(histories)[::-1]) == first[::-1]
    assert all(other != first for other in others) and len(set(map(str, first))) > 1


def test_labels_of_an_augmented_history(tokenizer, sid_table, vocabulary):
    """The first item of a crop is shown and not scored; items 4 and 5 would look alike."""
    sequence = np.delete(np.arange(12), 5)
    histories = add_draws(build_dataset([sequence], 20, "every_item"), {})
    collator = HistoryCollator([4, 5], HistoryEncoder(sid_table, vocabulary), 0, augmentation=only(crop=1.0))
    tokens = collator.encoder.encode_history(sequence).tolist()
    starts = set()
    for collator.epoch in range(20):
        ((ids, labels),) = collator.draw(list(histories))
        start = next(i for i in range(0, 33, 3) if tokens[i : i + 3] == ids[2:5].tolist())
        assert ids.tolist() == [4, 5, *tokens[start : start + 18]]  # 6 of 11 items
        ignored = 5 if start else 2
        assert labels.tolist() == [-100] * ignored + ids[ignored:].tolist()
        starts.add(start)
    assert len(starts) > 3
