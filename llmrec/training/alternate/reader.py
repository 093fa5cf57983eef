"""Reading of histories by the LLM, while the tokenizer trains.

The vectors of a history do not change within a pass, because the LLM is frozen. They are still computed for each batch
right before the step that needs them: to keep all of them would take a vector for every training interaction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmrec.model.backbone import causal_lm, run_backbone
from llmrec.training.alternate.alignment import Adapters, HistoryVectors
from llmrec.training.alternate.pools import PoolingCollator, Pools
from llmrec.training.sft.examples import Example


@dataclass(frozen=True)
class HistoryReader:
    """The LLM with its adapters, which turns examples into targets and vectors of the histories before them.

    Attributes:
        model: LLM, with its LoRA if it has one.
        adapters: Adapters, on the device of the LLM.
        collator: Collator that makes batches and their pools.
        dtype: Type of matrix products.
    """

    model: nn.Module
    adapters: Adapters
    collator: PoolingCollator
    dtype: torch.dtype

    @torch.no_grad()
    def read(self, examples: list[Example], with_vectors: bool) -> tuple[Tensor, HistoryVectors | None]:
        """Read examples without gradients.

        Args:
            examples: Examples of histories.
            with_vectors: Compute the vectors; otherwise the LLM is not run.

        Returns:
            (U,) int64 distinct targets, and the vectors of the histories before them.
        """
        base = causal_lm(self.model)
        pools = Pools(*(part.to(base.device) for part in self.collator.pools(examples)))
        if not with_vectors or not len(pools.targets):
            return pools.targets, None
        batch = self.collator.histories(examples)
        inputs = {n: part.to(base.device) for n, part in batch.items() if isinstance(part, Tensor) and n != "labels"}
        with torch.autocast(base.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            states = run_backbone(base, **inputs, use_cache=False).last_hidden_state
        return pools.targets, self.adapters(states, pools)
