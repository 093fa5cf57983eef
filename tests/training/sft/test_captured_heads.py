"""Captured steps of heads: losses and gradients equal those of eager steps, also by real CUDA graphs on a GPU."""

from __future__ import annotations

import pytest
import torch

from llmrec.model.heads.choice import make_head
from llmrec.training.sft.captured_step import CapturedLoss
from llmrec.training.sft.item_loss import ItemLoss
from llmrec.training.sft.losses import IGNORED
from tests.model.test_heads import KINDS, scene
from tests.support.extended import sft_config
from tests.training.distil.test_distillation import collator_of, examples_of
from tests.training.sft.test_captured_step import assert_equal, gradients, no_graphs  # noqa: F401 (a fixture)


def losses_of(kind: str, captured: bool, device: str = "cpu", loss_by: str = "softmax"):
    """Losses and gradients of two batches, each taken twice, and the captured steps if there are any."""
    one = scene(kind)
    one.model.to(device)
    head = make_head(one.model, one.encoder, one.vocabulary, torch.device(device), loss_by)
    item_loss = ItemLoss.of(sft_config("", "", ""), one.vocabulary, head)
    collate, batches = collator_of(one.table, one.vocabulary, packing=True), []
    for targets in ("every_item", "last_item"):
        batch = collate(examples_of(targets=targets))
        queries = {name: tensor.to(device) for name, tensor in batch.pop("queries").items()}
        rest = {name: part.to(device) if isinstance(part, torch.Tensor) else part for name, part in batch.items()}
        batches.append({**rest, "queries": queries})
    labels_per_item = 1 if one.vocabulary.head.by_codes else one.vocabulary.num_levels
    steps = CapturedLoss(one.model, labels_per_item, (0, 0, IGNORED)) if captured else None
    torch.manual_seed(0)
    return gradients(one.model, one.vocabulary, batches * 2, steps, item_loss=item_loss), steps


@pytest.mark.parametrize("kind", KINDS)
def test_captured_steps_have_the_gradients_of_eager_ones(no_graphs, kind):  # noqa: F811 (the fixture)
    found, steps = losses_of(kind, captured=True)
    assert len(steps.graphs.shapes) == 4
    assert_equal(found, losses_of(kind, captured=False)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_replays_have_the_gradients_of_eager_calls(kind):
    found, steps = losses_of(kind, captured=True, device="cuda")
    assert steps.graphs.graphs
    assert_equal(found, losses_of(kind, captured=False, device="cuda")[0], tolerance=1e-4)


@pytest.mark.gpu
def test_replays_of_the_cosine_loss_draw_other_items():
    (curve, _), _ = losses_of("projection", captured=True, device="cuda", loss_by="cosine")
    assert curve == losses_of("projection", captured=True, device="cuda", loss_by="cosine")[0][0]
    assert len(set(curve)) == 4, "each batch comes twice"
