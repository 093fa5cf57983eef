"""Memory of a machine or a container, and what would not fit into it."""

from __future__ import annotations

import pytest
import torch

from llmrec.runtime import device

CPU = torch.device("cpu")


def test_a_container_has_what_its_limit_says(tmp_path, monkeypatch):
    machine = device.memory_of(CPU)
    assert machine > 2**28
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(device, "LIMITS", (limit, tmp_path / "absent"))
    for text, expected in (("max\n", None), ("1000000000\n", 10**9), (f"{2**62}\n", None)):
        limit.write_text(text)
        unlimited = device.memory_of(CPU)
        assert unlimited == expected if expected else unlimited >= machine


def test_what_does_not_fit_is_refused_with_both_sizes(monkeypatch):
    monkeypatch.setattr(device, "memory_of", lambda _: 16 * 10**9)
    device.refuse_beyond(16 * 10**9, CPU, "vectors take", "Take fewer.")
    with pytest.raises(ValueError, match=r"^vectors take 16.0 GB \(16,000,000,001 bytes\) of memory, and this machine "
                                         r"has 16.0 GB \(16,000,000,000 bytes\). Take fewer.$"):  # fmt: skip
        device.refuse_beyond(16 * 10**9 + 1, CPU, "vectors take", "Take fewer.")
