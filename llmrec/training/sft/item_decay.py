"""Weight decay of item rows alone.

Item rows share a parameter with other tokens: the whole embedding, or with an adapter the rows that `extend` added. An
optimiser decays parameters as a whole, so the decay of these rows is applied behind its step, decoupled as in AdamW
(arXiv:1711.05101): each step multiplies them by 1 - learning rate * decay.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmrec.model.backbone import causal_lm
from llmrec.model.trained_rows import matrix_of, trained_block
from llmrec.sid.item_tokens import ItemTokens


class ItemDecay(TrainerCallback):
    """Decays item rows after every optimiser step.

    Args:
        items: Tokens of the items.
        decay: Weight decay.
    """

    def __init__(self, items: ItemTokens, decay: float):
        self.items, self.decay = items, decay

    @torch.no_grad()
    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: object,
    ) -> None:
        """Decay the rows at the learning rate of the step."""
        assert model is not None and optimizer is not None, "the Trainer gives both"
        parameter, rows = self._rows(model)
        rate = next(group["lr"] for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
        parameter[rows] *= 1 - rate * self.decay

    def _rows(self, model: nn.Module) -> tuple[Tensor, slice]:
        """The parameter that holds the item rows, and their place in it."""
        embedding, block = causal_lm(model).get_input_embeddings(), self.items.block
        trained = trained_block(embedding)
        if trained is None:
            return matrix_of(embedding), block
        return trained[1], slice(block.start - trained[0].start, block.stop - trained[0].start)
