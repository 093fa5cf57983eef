"""SidTrieProcessor for the V2 model runner of vLLM, which is the default on GPUs since 0.32.

    vllm serve EXPORTED --logits-processors llmrec.serve.engines.vllm_v2:SidTrieProcessor

`llmrec.serve.engines.vllm_v1` says when vLLM runs which. Here all tokens are on the device already, so nothing waits
for it.

Source: interface of vLLM 0.32.0, `vllm/v1/worker/gpu/sample/logits_processor/interface.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState

from llmrec.serve.engines.mask import SidMask
from llmrec.serve.engines.switch import check_switch, prefix_length

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

OFF = -1


class SidTrieProcessor(LogitsProcessor):
    """Mask the rows of requests whose switch is on.

    Args:
        vllm_config: Its model is a folder that `llmrec export --to vllm` wrote.
        req_states: Tokens of all requests, on the device.

    Attributes:
        begun: For each slot, the number of tokens that its prompt begins the answer with; -1 if its mask is off.

    Raises:
        ValueError: If a file of the folder is absent or damaged, or speculative decoding is on.
    """

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState):
        if vllm_config.speculative_config is not None:
            raise ValueError("SidTrieProcessor masks one token at a time; turn speculative decoding off.")
        self.mask = SidMask.load(vllm_config.model_config.model, req_states.device)
        self.req_states = req_states
        self.begun = np.full(req_states.max_num_reqs, OFF)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request; see `check_switch`."""
        check_switch(sampling_params)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Fill a slot, which another request may have had before; tell whether its logits are masked."""
        begun = prefix_length(sampling_params)
        self.begun[req_idx] = OFF if begun is None else begun
        return begun is not None

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        """Mask (B, V) logits in place, of which each row is a request's."""
        begun = self.begun[ctx.idx_mapping_np]
        rows = np.flatnonzero(begun != OFF)
        if not len(rows):
            return logits
        on = torch.from_numpy(np.stack([rows, begun[rows]])).to(logits.device, non_blocking=True)
        slots = ctx.idx_mapping[on[0]].long()
        starts = self.req_states.prompt_len.gpu[slots] - on[1]
        lengths = (self.req_states.total_len.gpu[slots] - starts).clamp(0, self.mask.trie.num_levels)
        places = starts.unsqueeze(1) + torch.arange(self.mask.trie.num_levels, device=logits.device)
        tokens = self.req_states.all_token_ids.gpu
        answers = tokens[slots.unsqueeze(1), places.clamp(0, tokens.shape[1] - 1)]
        self.mask.apply(logits, on[0], answers.long(), lengths.long())
        return logits
