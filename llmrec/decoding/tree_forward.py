"""Forward passes of a search over the trie: each prompt once, then one block of tokens per level.

Shapes: B prompts, T prompt tokens, P prefix tokens, M beams, S columns written so far.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.decoding.tree_attention import TreeCache
from llmrec.model.backbone import run_backbone


def pad_right(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Move the padding of prompts to the right.

    Returns:
        (B, T) ids and (B,) lengths.
    """
    if attention_mask is None:
        return input_ids, torch.full((len(input_ids),), input_ids.shape[1], device=input_ids.device)
    order = attention_mask.argsort(dim=1, descending=True, stable=True)
    return input_ids.gather(1, order), attention_mask.sum(dim=1)


class TreeForward:
    """Hidden states of prompts, then of the beams that grow from them.

    Args:
        model: Causal LM.
        num_beam_tokens: Number of tokens per prompt that the levels will add.
        prefix_ids: (P,) tokens that stand before every prompt; they are run once for all prompts.
    """

    def __init__(self, model: PreTrainedModel, num_beam_tokens: int, prefix_ids: Tensor | None = None):
        self.model, self.num_beam_tokens, self.prefix_ids = model, num_beam_tokens, prefix_ids
        self.offset = 0 if prefix_ids is None else len(prefix_ids)

    def prefill(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Run the prompts.

        Args:
            input_ids: (B, T), padded on the right.
            lengths: (B,) number of tokens of each prompt, at least 1.

        Returns:
            (B, 1, hidden) state of each prompt's last token.
        """
        prefix = None
        if self.prefix_ids is not None:
            prefix = TreeCache(self.offset)
            self._run(prefix, self.prefix_ids.unsqueeze(0), torch.arange(self.offset, device=input_ids.device)[None])
        num_tokens = input_ids.shape[1]
        self.cache = TreeCache(self.offset + num_tokens + self.num_beam_tokens, prefix)
        columns = torch.arange(self.offset + num_tokens, device=input_ids.device)
        self.positions = (self.offset + lengths).unsqueeze(1)  # (B, 1) of the next token
        # Padding takes the last token's position: its own may lie beyond a table of learned positions.
        hidden = self._run(self.cache, input_ids, columns[self.offset :].minimum(self.positions - 1))
        self.visible = (columns < self.positions).unsqueeze(1)  # (B, 1, S)
        return hidden.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, hidden.shape[2]))

    def advance(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Run one more token of every beam.

        Args:
            tokens: (B, M) token of each beam.
            parents: (B, M) place of the beam's parent in the previous block; 0 after the prompt.

        Returns:
            (B, M, hidden) states.
        """
        inherited = self.visible.gather(1, parents.unsqueeze(-1).expand(-1, -1, self.visible.shape[2]))
        itself = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device).expand(len(tokens), -1, -1)
        self.visible = torch.cat([inherited, itself], dim=2)
        hidden = self._run(self.cache, tokens, self.positions.expand_as(tokens), self.visible)
        self.positions = self.positions + 1
        return hidden

    def _run(self, cache: TreeCache, tokens: Tensor, positions: Tensor, visible: Tensor | None = None) -> Tensor:
        positions = positions.contiguous()  # the compiler makes code of its own for an expanded one
        with cache.block(self.model, tokens.shape[1], visible):
            output = run_backbone(self.model, input_ids=tokens, position_ids=positions, use_cache=False)
        return output.last_hidden_state
