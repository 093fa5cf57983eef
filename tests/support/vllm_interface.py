"""A stand-in for the two interfaces of vLLM 0.32.0 that the processors derive from, for environments without vLLM.

It has the names and signatures that `tests/serve/engines/in_vllm.py` compares with the wheel's, and no behaviour.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum, auto
from types import ModuleType, SimpleNamespace

import numpy as np
import torch


class MoveDirectionality(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


@dataclass(frozen=True)
class BatchUpdate:
    batch_size: int
    removed: list
    added: list
    moved: list


class V1LogitsProcessor:
    @classmethod
    def validate_params(cls, sampling_params): ...

    def __init__(self, vllm_config, device, is_pin_memory): ...

    def apply(self, logits): ...

    def is_argmax_invariant(self): ...

    def update_state(self, batch_update): ...


@dataclass(frozen=True)
class LogitsProcRequestState:
    device: torch.device
    max_num_reqs: int
    vocab_size: int
    all_token_ids: object
    prompt_len: object
    prefill_len: object
    total_len: object


@dataclass(frozen=True)
class LogitsContext:
    expanded_idx_mapping: torch.Tensor
    idx_mapping: torch.Tensor
    idx_mapping_np: np.ndarray
    expanded_local_pos: torch.Tensor
    input_ids: torch.Tensor
    pos: torch.Tensor
    seq_lens_upper_bound_np: np.ndarray


class V2LogitsProcessor:
    def __init__(self, vllm_config, req_states): ...

    @classmethod
    def validate_params(cls, sampling_params): ...

    def add_request(self, req_idx, sampling_params): ...

    def apply_staged_writes(self): ...

    def apply(self, logits, ctx): ...


V1 = "vllm.v1.sample.logits_processor"
V2 = "vllm.v1.worker.gpu.sample.logits_processor"
NAMES = {
    V1: {"BatchUpdate": BatchUpdate, "LogitsProcessor": V1LogitsProcessor, "MoveDirectionality": MoveDirectionality},
    V2: {"LogitsContext": LogitsContext, "LogitsProcessor": V2LogitsProcessor,
         "LogitsProcRequestState": LogitsProcRequestState},
}  # fmt: skip


def install(monkeypatch) -> None:
    """Make both modules importable for a test; the packages above them are empty."""
    for module, names in NAMES.items():
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            if name not in sys.modules:
                monkeypatch.setitem(sys.modules, name, ModuleType(name))
        vars(sys.modules[module]).update(names)


def params(**extra_args) -> SimpleNamespace:
    """SamplingParams with these `extra_args`, or with none."""
    return SimpleNamespace(extra_args=extra_args or None)


def config_of(folder) -> SimpleNamespace:
    """VllmConfig of an engine whose model is a folder."""
    return SimpleNamespace(model_config=SimpleNamespace(model=str(folder)), speculative_config=None)
