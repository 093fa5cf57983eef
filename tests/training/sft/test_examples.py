"""Training examples: windows, laws 1, 2 and 9, and padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.windows import windows as all_windows
from llmrec.model.backbone import causal_lm
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.model.prompts import Prompt
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.sft.examples import HistoryCollator, add_draws, build_dataset, fill_last_batch, masked, num_targets
from llmrec.training.sft.losses import sid_loss_in_forward
from llmrec.training.weights import add_adapter
from tests.conftest import tiny_llm
from tests.support.extended import sft_config, write_toy_catalog

property_test = settings(derandomize=True, max_examples=25, deadline=None)
lengths = st.integers(1, 60)
caps = st.integers(1, 12)


def windows(length, max_history):
    """Windows of one sequence, one by one: the slow way."""
    size, stride = max_history + 1, max_history // 2 + 1
    end = min(size, length)
    yield 0, end, 0
    while end < length:
        first_target, end = end, min(end + stride, length)
        yield max(0, end - size), end, first_target


@property_test
@given(st.lists(st.integers(0, 60), max_size=5), caps)
def test_windows_of_all_sequences_are_those_of_each(sizes, max_history):
    expected = [(place, *window) for place, size in enumerate(sizes) for window in windows(size, max_history)]
    found = all_windows(np.array(sizes, dtype=np.int64), max_history)
    assert list(zip(*(column.tolist() for column in found), strict=True)) == expected


@property_test
@given(lengths, caps)
def test_windows_score_every_item_once_with_enough_context(length, max_history):
    targets = []
    for start, end, first_target in windows(length, max_history):
        assert 0 <= start <= first_target < end <= min(length, start + max_history + 1)
        targets += range(first_target, end)
        if start > 0:
            assert first_target - start >= max_history / 2
    assert targets == list(range(length))


def test_windows_by_hand():
    """Cap 4: windows of 5 items that step by 3, so that each new target has at least 2 items before it."""
    assert list(windows(5, 4)) == [(0, 5, 0)]
    assert list(windows(12, 4)) == [(0, 5, 0), (3, 8, 5), (6, 11, 8), (7, 12, 11)]


@property_test
@given(st.lists(lengths, min_size=1, max_size=5), caps)
def test_both_ways_to_cut_have_the_same_targets_in_the_same_context(sizes, max_history):
    sequences = [np.arange(size) + 100 * i for i, size in enumerate(sizes)]
    whole = build_dataset(sequences, max_history, "every_item")
    single = build_dataset(sequences, max_history, "last_item")
    cut = [
        rows[: target + 1]
        for rows, num_context in zip(whole["rows"], whole["num_context"], strict=True)
        for target in range(num_context, len(rows))
    ]
    assert cut == single["rows"]
    assert [len(rows) - 1 for rows in single["rows"]] == single["num_context"]
    assert sorted(rows[-1] for rows in single["rows"]) == sorted(np.concatenate(sequences))


def test_law_2_the_dataset_holds_item_rows_only():
    dataset = build_dataset([np.array([7, 3, 11])], 5, "every_item")
    assert dataset.column_names == ["rows", "num_context", "user", "start"]
    assert dataset[0] == {"rows": [7, 3, 11], "num_context": 0, "user": 0, "start": 0}
    drawn = add_draws(dataset, {"title_to_sid": 2}).to_list()
    assert drawn == [
        {"rows": [7, 3, 11], "num_context": 0, "user": 0, "start": 0, "task": "", "index": 0},
        {"rows": [], "num_context": 0, "user": 0, "start": 0, "task": "title_to_sid", "index": 0},
        {"rows": [], "num_context": 0, "user": 0, "start": 0, "task": "title_to_sid", "index": 1},
    ]


def test_law_1_no_held_out_target_beyond_the_users_training_history(tmp_path):
    """Every example is a part of one user's training history, so it holds none of the later items."""
    catalog = write_toy_catalog(tmp_path / "catalog")
    by_user = dict(zip(catalog.train.user_ids, catalog.train.sequences(), strict=True))
    for targets in ("every_item", "last_item"):
        for user, sequence in by_user.items():
            rows = build_dataset([sequence], 3, targets)["rows"]
            held_out = {
                t
                for s in ("valid", "test")
                for u, t in zip(catalog.examples(s).user_ids, catalog.examples(s).targets, strict=True)
                if u == user
            }
            assert set().union(*rows) == set(sequence.tolist())
            assert not held_out & set().union(*rows), user


def test_blank_examples_fill_the_last_batch():
    dataset = build_dataset([np.arange(3)] * 5, 4, "every_item")
    assert len(fill_last_batch(dataset, 5)) == 5
    filled = fill_last_batch(dataset, 4)
    assert filled["rows"] == [[0, 1, 2]] * 5 + [[]] * 3
    filled = fill_last_batch(add_draws(dataset, {"title_to_sid": 2}), 8)
    assert filled["task"] == [""] * 5 + ["title_to_sid"] * 2 + [""]


def test_masked_histories_keep_their_last_item_as_the_only_target():
    window = {"rows": list(range(40)), "num_context": 10, "user": 3, "start": 0}
    shares = []
    for epoch in range(300):
        shown = masked(window, 0, epoch)
        assert shown["rows"][-1] == 39 and shown["num_context"] == len(shown["rows"]) - 1
        assert shown["rows"] == sorted(set(shown["rows"])), "in their order"
        shares.append(1 - shown["num_context"] / 39)
    assert np.mean(shares) == pytest.approx(0.25, abs=0.02) and np.quantile(shares, 0.05) < 0.1 < 0.4 < max(shares)
    assert masked(window, 0, 7) == masked(window, 0, 7) != masked(window, 1, 7)
    assert window["num_context"] == 10, "the example itself is whole"
    for other in ({"rows": [], "task": "title_to_sid", "index": 4}, {"rows": []}):
        assert masked(other, 0, 0) == other
    assert masked({**window, "rows": [5], "num_context": 0}, 0, 0)["rows"] == [5]


def test_only_the_last_epochs_are_masked(tokenizer, sid_table, vocabulary):
    collator = make_collator(tokenizer, sid_table, vocabulary)
    collator.masked_from = 2
    examples = [{"rows": list(range(12)), "num_context": 0, "user": 0, "start": 0}]
    for epoch, count in ((0, 12), (1, 12), (2, 1), (3, 1)):
        collator.epoch = epoch
        assert (collator(examples)["labels"] != -100).sum() == 3 * count


def make_collator(tokenizer, sid_table, vocabulary) -> HistoryCollator:
    return HistoryCollator(Prompt().prefix(tokenizer), SidHistoryEncoder(sid_table, vocabulary), tokenizer.pad_token_id)


def test_a_batch_by_hand(tokenizer, sid_table, vocabulary):
    """Item 1 is (0, 0, 1), item 3 (0, 3, 2), item 7 (2, 0, 0); a level is a block of four tokens."""
    collator, first = make_collator(tokenizer, sid_table, vocabulary), vocabulary.starts[0]
    prefix = collator.prefix
    batch = collator(
        [{"rows": [1, 3, 7], "num_context": 1}, {"rows": [3], "num_context": 0}, {"rows": [], "num_context": 0}]
    )
    one, three, seven = (
        [first + c + 4 * level for level, c in enumerate(codes)] for codes in ((0, 0, 1), (0, 3, 2), (2, 0, 0))
    )
    assert batch["input_ids"].tolist() == [prefix + one + three + seven, prefix + three + [0] * 6, prefix + [0] * 9]
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(prefix) + n for n in (9, 3, 0)]
    ignored = [-100] * len(prefix)
    assert batch["labels"].tolist() == [
        ignored + [-100] * 3 + three + seven, ignored + three + [-100] * 6, ignored + [-100] * 9
    ]  # fmt: skip


def test_labels_begin_with_the_first_target_where_semantic_ids_differ_in_length(tokenizer):
    """Items have 2, 3 and 1 codes: behind one item of context, targets begin after 5 tokens and after 6."""
    table = SidTable(["x", "y", "z"], np.array([[0, 0, -1], [0, 1, 0], [1, -1, -1]]), level_sizes=[2, 2, 1])
    encoder = SidHistoryEncoder(table, SidVocabulary.add_to(tokenizer, table.level_sizes))
    collator = HistoryCollator([4, 5, 6], encoder, tokenizer.pad_token_id)
    examples = [{"rows": [0, 1, 2], "num_context": 1}, {"rows": [1, 2], "num_context": 1}]
    for (ids, labels), rows, ignored in zip(collator.draw(examples), ([0, 1, 2], [1, 2]), (5, 6), strict=True):
        assert ids.tolist() == [4, 5, 6, *encoder.encode_history(rows)]
        assert labels.tolist() == [-100] * ignored + ids[ignored:].tolist()
    blank = {"rows": [], "num_context": 0}
    assert collator.num_tokens(Dataset.from_list([*examples, blank])) == 3 + 6 + 3 + 4


def summed_loss(model, vocabulary, collator, dataset, normalize_over, batch_size=None) -> float:
    """Loss over all examples, not averaged, in batches of any size."""
    examples = list(dataset)
    with torch.no_grad(), sid_loss_in_forward(model, vocabulary, normalize_over):
        return sum(
            float(model(**collator(examples[i : i + (batch_size or len(examples))]), num_items_in_batch=1).loss)
            for i in range(0, len(examples), batch_size or len(examples))
        )


@pytest.mark.parametrize("normalize_over", ["level", "vocabulary"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("max_history", [30, 4])
def test_law_9_one_pass_equals_one_row_per_target(
    tokenizer, sid_table, vocabulary, normalize_over, tied, lora, max_history
):
    model = tiny_llm(len(tokenizer), tied=tied)
    if lora:
        model = add_adapter(model, sft_config("", "", "", lora_rank=4), vocabulary).eval()
        for parameter in model.parameters():  # LoRA starts as a no-op; give it something to do
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    sequences = [np.random.default_rng(i).integers(0, 12, size) for i, size in enumerate((1, 3, 9, 14))]
    collator = make_collator(tokenizer, sid_table, vocabulary)
    one_pass, per_target = (
        summed_loss(
            model, vocabulary, collator, build_dataset(sequences, max_history, targets), normalize_over, batch_size
        )
        for targets, batch_size in (("every_item", None), ("last_item", 5))
    )
    assert one_pass == pytest.approx(per_target, rel=1e-5)
    assert "forward" not in vars(causal_lm(model))


def test_padding_changes_nothing(llm, tokenizer, sid_table, vocabulary):
    dataset = build_dataset([np.arange(size) for size in (1, 4, 12)], 20, "every_item")
    collator = make_collator(tokenizer, sid_table, vocabulary)
    together = summed_loss(llm, vocabulary, collator, dataset, "level")
    assert together == pytest.approx(summed_loss(llm, vocabulary, collator, dataset, "level", 1), rel=1e-5)
    filled = fill_last_batch(dataset, 7)
    assert together == pytest.approx(summed_loss(llm, vocabulary, collator, filled, "level"), rel=1e-6)
    assert summed_loss(llm, vocabulary, collator, filled.select([3]), "level") == 0


@pytest.mark.parametrize("targets", ["every_item", "last_item"])
def test_the_table_of_all_windows_is_that_of_a_loop(targets, monkeypatch):
    """Sequences of all lengths around the window, cut in several parts, against windows one by one."""
    monkeypatch.setattr("llmrec.training.sft.cutting.SEQUENCES_AT_ONCE", 7)
    for max_history in (1, 2, 5):
        sequences = [np.arange(length) + 100 * length for length in (1, 2, *range(30), 0, 9)]
        expected = []
        for user, sequence in enumerate(sequences):
            for start, end, first_target in windows(len(sequence), max_history):
                stops = [end] if targets == "every_item" else range(first_target + 1, end + 1)
                for stop in stops:
                    target = first_target if targets == "every_item" else stop - 1
                    rows = sequence[start:stop].tolist()
                    expected.append({"rows": rows, "num_context": target - start, "user": user, "start": start})
        dataset = build_dataset(sequences, max_history, targets)
        assert dataset.to_list() == expected
        assert num_targets(dataset) == sum(len(each["rows"]) - each["num_context"] for each in expected)
