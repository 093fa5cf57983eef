"""Losses of a level of LMIndexer: reconstruction of hidden tokens, contrast within a prefix, commitment.

Shapes: N items, B of a batch, l levels before this one, T tokens, E latent dimension, P tokens to predict.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from llmrec.tokenizers.lm_indexer.network import COLDEST, WARMEST, LevelIndexer, Reconstructor
from llmrec.tokenizers.lm_indexer.token_states import TokenBatch, TokenStates
from llmrec.tokenizers.shared.kmeans import nearest
from llmrec.tokenizers.shared.training_loop import Objective

PREDICTED = 16  # most hidden tokens of an item that a step predicts; all are hidden still


def prefix_contrast(one_BE: Tensor, other_BE: Tensor, prefixes_B: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each item's other view among those of the items that share its codes so far.

    Args:
        one_BE: (B, E) states of one view.
        other_BE: (B, E) states of another, under other dropout.
        prefixes_B: (B,) number of the codes of the levels before; equal for items that share them.
        temperature: Divides the cosines.

    Returns:
        Scalar. An item that shares its prefix with no other adds 0.

    Source: LMIndexer (arXiv:2310.07815), its contrastive objective; negatives of the batch where the code draws four.
    """
    logits_BB = normalize(one_BE, dim=1) @ normalize(other_BE, dim=1).T / temperature
    logits_BB = logits_BB.masked_fill(prefixes_B[:, None] != prefixes_B, -torch.inf)
    return cross_entropy(logits_BB, torch.arange(len(one_BE), device=one_BE.device))


def hide(batch: TokenBatch, share: float, generator: torch.Generator) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Hide a share of each text's tokens.

    Args:
        batch: Texts of the items.
        share: Share of hidden tokens.
        generator: On the device.

    Returns:
        (B, T) bool, hidden tokens; then items (P,) and places (P,) of those to predict, at most PREDICTED of an item.
    """
    draw_BT = torch.rand(batch.is_token.shape, generator=generator, device=batch.is_token.device)
    draw_BT = draw_BT.masked_fill(~batch.is_token, 1.0)
    is_hidden_BT = draw_BT < share
    least = draw_BT.topk(min(PREDICTED, draw_BT.shape[1]), dim=1, largest=False)
    items, ranks = (least.values < share).nonzero(as_tuple=True)
    return is_hidden_BT, (items, least.indices[items, ranks])


class LevelObjective(Objective):
    """Losses of one level; the levels before it are finished.

    Args:
        texts: Of the items, on one device.
        rows_N: (N,) item rows to learn from; the rows of the training loop are places in it.
        earlier_NlE: (N, l, E) codes of these items at the levels before.
        prefixes_N: (N,) number of these codes; equal for items that share them.
        indexer: Level that trains.
        reconstructor: It trains, too.
        masking: Share of hidden tokens.
        commitment: Weight of the commitment.
        contrast: Weight of the contrast; 0 leaves it out, and so does the first level.
        contrast_temperature: Divides its cosines.
        seed: Of the hidden tokens.
    """

    def __init__(
        self,
        texts: TokenStates,
        rows_N: Tensor,
        earlier_NlE: Tensor,
        prefixes_N: Tensor,
        indexer: LevelIndexer,
        reconstructor: Reconstructor,
        masking: float,
        commitment: float,
        contrast: float,
        contrast_temperature: float,
        seed: int,
    ):
        super().__init__()
        self.texts, self.rows, self.earlier, self.prefixes = texts, rows_N, earlier_NlE, prefixes_N
        self.indexer, self.reconstructor, self.masking, self.commitment = indexer, reconstructor, masking, commitment
        self.contrast, self.contrast_temperature, self.seed = contrast, contrast_temperature, seed
        self.generator = torch.Generator(rows_N.device).manual_seed(seed)
        self.quantizes, self.progress = False, 0.0

    def start_quantizing(self) -> None:
        """Go on with codes, from the warmest temperature."""
        self.quantizes, self.progress = True, 0.0
        self.indexer.book.temperature = WARMEST

    def order(self, rows_N: Tensor) -> Tensor:
        """Bring items of one prefix together, the prefixes in random order: a batch then has negatives of each."""
        prefixes_N, places_N = self.prefixes[rows_N], torch.arange(len(rows_N), device=rows_N.device)
        nowhere = torch.full_like(self.prefixes, len(rows_N))  # held-out items have prefixes, too
        first = nowhere.scatter_reduce(0, prefixes_N, places_N, "amin")
        return rows_N[first[prefixes_N].argsort(stable=True)]

    def loss(self, rows_B: Tensor) -> Tensor:
        batch, earlier_BlE = self.texts.of(self.rows[rows_B]), self.earlier[rows_B]
        has_contrast = self.contrast > 0 and self.indexer.level > 0
        states_VBE = self.indexer.states(batch, earlier_BlE, views=2 if has_contrast else 1)
        loss = self.reconstruction(batch, earlier_BlE, states_VBE[0], self.generator)
        if has_contrast:
            contrast = prefix_contrast(states_VBE[0], states_VBE[1], self.prefixes[rows_B], self.contrast_temperature)
            loss = loss + self.contrast * contrast
        return loss + self.commitment * self.indexer.book.commitment(states_VBE[0]) if self.quantizes else loss

    def validation_loss(self, rows_B: Tensor) -> Tensor:
        batch, earlier_BlE = self.texts.of(self.rows[rows_B]), self.earlier[rows_B]
        same_tokens = torch.Generator(rows_B.device).manual_seed(self.seed)
        return self.reconstruction(batch, earlier_BlE, self.indexer.states(batch, earlier_BlE)[0], same_tokens)

    def reconstruction(
        self, batch: TokenBatch, earlier_BlE: Tensor, states_BE: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Mean cross-entropy of the tokens to predict, from the sum of the item's codes.

        The code of this level is drawn in training and the nearest otherwise; before there are codes it is the state.
        """
        code_BE = states_BE
        if self.quantizes and self.training:
            code_BE = self.indexer.book.draw(states_BE)
        elif self.quantizes:
            code_BE = self.indexer.book.codes[nearest(states_BE, self.indexer.book.codes)[0]]
        is_hidden_BT, wanted = hide(batch, self.masking, generator)
        logits_PV = self.reconstructor(batch, is_hidden_BT, earlier_BlE.sum(1) + code_BE, wanted)
        return cross_entropy(logits_PV, batch.places[wanted])

    def after_step(self, step: int, rows_B: Tensor, optimizer: torch.optim.Optimizer, progress: float) -> None:
        self.progress = max(self.progress, progress)
        self.indexer.book.temperature = WARMEST * (COLDEST / WARMEST) ** self.progress
