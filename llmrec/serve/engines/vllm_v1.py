"""SidTrieProcessor for the V1 model runner of vLLM: answers are semantic IDs of the trie, request by request.

    vllm serve EXPORTED --logits-processors llmrec.serve.engines.vllm_v1:SidTrieProcessor

vLLM runs V1 on the CPU, and where VLLM_USE_V2_MODEL_RUNNER is 0 or V2 lacks a feature; else V2, whose class stands in
`llmrec.serve.engines.vllm_v2`. No entry point is registered, since it would load one class into every vLLM of the
environment.

Source: interface of vLLM 0.32.0, `vllm/v1/sample/logits_processor/interface.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from llmrec.serve.engines.mask import SidMask, rectangle
from llmrec.serve.engines.switch import check_switch, prefix_length

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig


class SidTrieProcessor(LogitsProcessor):
    """Mask the rows of requests whose switch is on.

    Args:
        vllm_config: Its model is a folder that `llmrec export --to vllm` wrote.
        device: Device of the logits.
        is_pin_memory: Not used.

    Attributes:
        answers: For each row with a mask, the tokens that its prompt begins the answer with, and vLLM's own list of
            the tokens that follow, which grows.

    Raises:
        ValueError: If a file of the folder is absent or damaged.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool):
        self.mask, self.device = SidMask.load(vllm_config.model_config.model, device), device
        self.answers: dict[int, tuple[list[int], list[int]]] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request; see `check_switch`."""
        check_switch(sampling_params)

    def is_argmax_invariant(self) -> bool:
        """Greedy requests are masked too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the rows that vLLM frees, fills and moves, in this order."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self.answers.pop(row, None)
        for row, params, prompt, output in batch_update.added:
            self.answers.pop(row, None)  # of the request that had the row before
            begun = prefix_length(params)
            if begun is not None:
                self.answers[row] = (prompt[len(prompt) - begun :] if prompt else [], output)
        for source, target, way in batch_update.moved:
            moved, replaced = self.answers.pop(source, None), self.answers.pop(target, None)
            if moved is not None:
                self.answers[target] = moved
            if replaced is not None and way == MoveDirectionality.SWAP:
                self.answers[source] = replaced

    def apply(self, logits: Tensor) -> Tensor:
        """Mask (B, V) logits in place. The lists of tokens are read here: vLLM completes them just before."""
        if self.answers:
            levels = self.mask.trie.num_levels
            written = [[*prefix, *output[:levels]] for prefix, output in self.answers.values()]
            rows = torch.tensor(list(self.answers), device=self.device)
            self.mask.apply(logits, rows, *rectangle(written, levels, self.device))
        return logits
