"""Another SidTable for a model in training, law 2: token rows and optimiser state move with the codes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.alternate.swap_table import swap_table
from llmrec.training.sft.examples import HistoryCollator, build_dataset
from llmrec.training.sft.losses import sid_loss_in_forward
from llmrec.training.trainer import build_optimizer
from llmrec.training.weights import add_adapter
from tests.conftest import tiny_llm
from tests.support.extended import sft_config
from tests.training.sft.test_examples import make_collator

EXAMPLES = list(build_dataset([np.arange(7), np.arange(5, 12), np.arange(3)], 20, "every_item"))


def train(model, optimizer, collator, vocabulary, steps: int, normalize_over: str) -> list[float]:
    losses = []
    with sid_loss_in_forward(model, vocabulary, normalize_over):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(**collator(EXAMPLES)).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def renamed(table: SidTable, seed: int) -> tuple[SidTable, list[np.ndarray]]:
    """Rename the codes of a table; also return the old code of each new one."""
    rng = np.random.default_rng(seed)
    old_codes = [rng.permutation(size) for size in table.level_sizes]
    codes = np.stack(
        [np.argsort(old)[column] for old, column in zip(old_codes, table.all_codes.T, strict=True)], axis=1
    )
    return SidTable(table.item_ids, codes, level_sizes=table.level_sizes), old_codes


def start(tokenizer, vocabulary, tied: bool, lora: bool):
    model = tiny_llm(len(tokenizer), tied=tied).train()
    config = sft_config("", "", "", train="lora" if lora else "full", learning_rate=1e-2)
    model = add_adapter(model, config, vocabulary) if lora else model
    return model, build_optimizer(model, config)


@pytest.mark.parametrize("normalize_over", ["level", "vocabulary"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [False, True])
def test_training_with_renamed_codes_has_the_same_losses(tokenizer, sid_table, vocabulary, tied, lora, normalize_over):
    collator = make_collator(tokenizer, sid_table, vocabulary)
    model, optimizer = start(tokenizer, vocabulary, tied, lora)
    train(model, optimizer, collator, vocabulary, 2, normalize_over)
    model, optimizer = copy.deepcopy((model, optimizer))  # together, so that the optimiser keeps its parameters
    undisturbed = train(*copy.deepcopy((model, optimizer)), collator, vocabulary, 3, normalize_over)

    table, old_codes = renamed(sid_table, seed=7)
    encoder = swap_table(model, optimizer, vocabulary, table, old_codes)
    swapped = HistoryCollator(collator.prefix, encoder, collator.pad_token_id)
    assert train(model, optimizer, swapped, vocabulary, 3, normalize_over) == pytest.approx(undisturbed, rel=1e-5)
    head, embedding = (get().weight for get in (_lm(model).get_output_embeddings, _lm(model).get_input_embeddings))
    assert torch.equal(head, embedding) == tied


def _lm(model):
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def test_rows_by_hand_split_dropped_and_new(tokenizer, sid_table, vocabulary):
    """Level 1: code 2 is split into 0 and 1, code 0 becomes 3, code 2 is new; the other levels stay."""
    model, optimizer = start(tokenizer, vocabulary, tied=True, lora=False)
    train(model, optimizer, make_collator(tokenizer, sid_table, vocabulary), vocabulary, 1, "level")
    weight = model.get_input_embeddings().weight
    before, moment = weight.detach().clone(), optimizer.state[weight]["exp_avg"].clone()
    level_1 = vocabulary.block(1)
    swap_table(model, optimizer, vocabulary, sid_table, [range(4), [2, 2, -1, 0], range(4)])
    after, moved = weight.detach(), optimizer.state[weight]["exp_avg"]
    assert torch.equal(after[level_1][[0, 1, 3]], before[level_1][[2, 2, 0]])
    assert torch.equal(moved[level_1][[0, 1, 3]], moment[level_1][[2, 2, 0]])
    assert moved[level_1][2].eq(0).all() and optimizer.state[weight]["exp_avg_sq"][level_1][2].eq(0).all()
    assert not torch.isclose(after[level_1][2], before[level_1]).any(dim=0).all()
    assert 0.5 < after[level_1][2].norm() / before[: vocabulary.starts[0]].norm(dim=1).mean() < 2
    others = [row for row in range(len(before)) if not level_1.start <= row < level_1.stop]
    assert torch.equal(after[others], before[others]) and torch.equal(moved[others], moment[others])


def test_spare_rows_can_be_used(tokenizer, sid_table):
    """A vocabulary with more codes in use than before, over the same blocks."""
    vocabulary = SidVocabulary.add_to(tokenizer, [4, 4, 4], spare_codes=2)
    grown = SidVocabulary(**{**vocabulary.to_dict(), "level_sizes": (6, 4, 4)})
    codes = sid_table.all_codes.copy()
    codes[11, 0] = 5
    table = SidTable(sid_table.item_ids, codes, level_sizes=[6, 4, 4])
    model, optimizer = start(tokenizer, vocabulary, tied=False, lora=False)
    head = model.get_output_embeddings().weight
    before = head.detach().clone()
    encoder = swap_table(model, optimizer, grown, table, [[0, 1, 2, 3, -1, 3], range(4), range(4)])
    assert torch.equal(head[grown.block(0)][5], before[grown.block(0)][3])
    assert encoder.encode_history([11]).tolist() == [
        vocabulary.starts[0] + 5,
        vocabulary.starts[1] + 3,
        vocabulary.starts[2] + 3,
    ]


@pytest.mark.parametrize(
    ("old_codes", "message"),
    [
        ([range(4), range(4)], "entries per level"),
        ([range(4), range(3), range(4)], "give one entry for each code"),
        ([range(4), [0, 1, 2, 4], range(4)], r"old_codes\[1\] must lie in \[-1, 4\)"),
        ([[-2, 0, 0, 0], range(4), range(4)], r"old_codes\[0\] must lie in"),
    ],
)
def test_wrong_old_codes_are_refused_before_anything_moves(tokenizer, sid_table, vocabulary, old_codes, message):
    model, optimizer = start(tokenizer, vocabulary, tied=True, lora=False)
    before = model.get_input_embeddings().weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        swap_table(model, optimizer, vocabulary, sid_table, old_codes)
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_a_table_that_needs_more_tokens_is_refused(tokenizer, sid_table, vocabulary):
    model, optimizer = start(tokenizer, vocabulary, tied=True, lora=False)
    larger = SidTable(sid_table.item_ids, sid_table.all_codes, level_sizes=[5, 4, 4])
    with pytest.raises(ValueError, match=r"Run `llmrec extend` on the new table"):
        swap_table(model, optimizer, vocabulary, larger, [range(4)] * 3)
