"""Averages of log entries; two processes are covered by the stages' own tests."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from llmrec.training.preference.averages import Averages


def test_a_weighted_mean_per_micro_batch_then_a_plain_one_over_them():
    averages = Averages(Accelerator(cpu=True))
    averages.add("kl", torch.tensor([1.0, 4.0]), torch.tensor([3.0, 1.0]))
    averages.add("kl", torch.tensor([[2.0], [6.0]]), torch.tensor([[True], [False]]))
    averages.add("share", torch.tensor([0.0, 1.0]), torch.ones(1))
    assert averages.take() == {"kl": pytest.approx((1.75 + 2) / 2), "share": 0.5}
    assert averages.take() == {}
