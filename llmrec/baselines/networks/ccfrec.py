"""CCFRec: a sequence model whose items are semantic codes that ask the item's texts (arXiv:2503.12183).

    outputs = fusion(rows of the item's codes, vectors of its texts)       self-attention, cross-attention, feed-forward
    item    = mean of the outputs                                          as a history reads it
    item'   = mean of the outputs + mean of the rows of its codes          as it is scored
    score   = cos(state, item') / temperature

Beside the next item it learns, from histories in which half of the codes are masked, which codes they were, and that
masked and whole histories end in the same state (InfoNCE within the batch):

    loss = next item + code_weight * masked codes + contrast_weight * contrast

Source: the paper and notes on the released code. Departures: the sequence model is the SASRec of this package, whose
layer norms come first and which predicts at every place in one pass; the softmax is over all items, where the code
draws some 25,000 of them anew on the host; a masked code is predicted among the codes of its level, where the code
scores those of all levels, which takes as many times the memory; whole histories and scored items share one fusion,
with one draw of dropout; the mask has a row that learns. The codes come from any tokenizer: the paper's are those of
opq with 20 levels of 256 codes.

Shapes: B histories, T items of the longest, N items, C codes of an item, F texts of an item, D hidden, S states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrec.baselines.networks.examples import Batch
from llmrec.baselines.networks.network import head_problems
from llmrec.baselines.networks.sasrec import SASRec
from llmrec.baselines.networks.training_options import TrainingOptions
from llmrec.configs.options import option
from llmrec.data.catalog import Catalog

IGNORED = -100
REPLACED, RANDOM = 0.8, 0.1  # shares of the masked codes that the mask, and any other code, takes the place of
CHUNK = 4096  # items fused at once


@dataclass(kw_only=True)
class CCFRecOptions(TrainingOptions):
    """Options of CCFRec; sizes, dropout, batch and temperature are the paper's."""

    block: ClassVar[str] = "transformer"

    batch_size: int = option(
        "Windows per step; fewer if an epoch would otherwise have less than 32 steps.", 400, least=1
    )
    hidden: int = option("Size of states and vectors; a multiple of `heads`.", 128, least=1)
    layers: int = option("Number of blocks over the history.", 2, least=1)
    heads: int = option("Attention heads of a block, and of a layer of the fusion.", 2, least=1)
    dropout: float = option("Dropout of the blocks over the history.", 0.5, least=0, most=1)
    fusion_layers: int = option("Number of layers in which codes ask the texts.", 2, least=1)
    fusion_dropout: float = option("Dropout in these layers.", 0.3, least=0, most=1)
    temperature: float = option("Divisor of all cosines.", 0.07, above=0)
    masked_share: float = option("Share of the codes that are masked.", 0.5, above=0, most=1)
    # .3 and .5 in two of the paper's four datasets; .6 and .4, .2 and .4 in the others.
    code_weight: float = option("Weight of the loss of masked codes.", 0.3, least=0)
    contrast_weight: float = option("Weight of the contrast of masked and whole histories.", 0.5, least=0)

    def problems(self) -> list[str]:
        return [*super().problems(), *head_problems(self.hidden, self.heads)]


class CCFRec(SASRec):
    """SASRec over items that are fused of their codes and texts.

    Args:
        codes: (N, C) int64 codes of each item, level by level.
        level_sizes: (C,) int64 number of codes of each level.
        texts: (F, N, D) float32 vectors of each item's texts; F may be 0, and then an item is the mean of its codes.
        max_history: Number of positions to learn.
        options: Fields of CCFRecOptions.
    """

    name = "ccfrec"
    options = CCFRecOptions
    features = ("codes", "level_sizes", "texts")
    contrasts = True
    codes: Tensor
    level_sizes: Tensor
    texts: Tensor

    def __init__(self, codes: Tensor, level_sizes: Tensor, texts: Tensor, max_history: int, **options: Any):
        super().__init__(int(level_sizes.sum()) + 1, max_history, **options)  # `items` has the rows of codes and mask
        self.chosen = CCFRecOptions(**options)
        needed = (len(codes), self.chosen.hidden)
        if texts.shape[1:] != needed:
            raise ValueError(f"texts are (F, N, hidden), here {tuple(texts.shape)}; N and hidden are {needed}.")
        for name, tensor in (("codes", codes), ("level_sizes", level_sizes), ("texts", texts)):
            self.register_buffer(name, tensor)
        hidden, heads, dropout = self.chosen.hidden, self.chosen.heads, self.chosen.fusion_dropout
        self.fusion = nn.ModuleList(
            nn.TransformerDecoderLayer(hidden, heads, 4 * hidden, dropout, functional.gelu, batch_first=True)
            for _ in range(self.chosen.fusion_layers if len(texts) else 0)
        )

    @classmethod
    def of(
        cls, catalog: Catalog, max_history: int, features: Mapping[str, Tensor] | None = None, **options: Any
    ) -> Self:  # CCFRecOptions checks them
        """Build an untrained network for the items of a catalogue, of which `features` has codes and texts."""
        if features is None:
            raise ValueError("ccfrec reads codes and texts of the items; run `llmrec teach --ranker ccfrec --sid DIR`.")
        return cls(**{name: features[name] for name in cls.features}, max_history=max_history, **options)

    @property
    def num_items(self) -> int:
        """N; `items` has the rows of codes."""
        return len(self.codes)

    @property
    def mask(self) -> int:
        """Row that stands for a masked code, behind those of all codes."""
        return self.items.num_embeddings - 1

    def code_rows(self) -> Tensor:
        """(N, C) int64 row of each code of each item."""
        return self.codes + (self.level_sizes.cumsum(0) - self.level_sizes)

    def fused(self, rows_nC: Tensor, items_n: Tensor) -> Tensor:
        """Let codes ask the texts.

        Args:
            rows_nC: (n, C) int64 rows of codes, some of which may be masked.
            items_n: (n,) int64 item rows, whose texts are asked.

        Returns:
            (n, C, D), the output of each code.
        """
        outputs = self.items(rows_nC)
        for layer in self.fusion:
            outputs = layer(outputs, self.texts[:, items_n].transpose(0, 1))
        return outputs

    def vectors(self) -> Tensor:
        """(N, 2D) vectors: as a history reads an item, and as it is scored."""
        every_item = torch.arange(len(self.codes), device=self.codes.device)
        parts = zip(self.code_rows().split(CHUNK), every_item.split(CHUNK), strict=True)
        read = torch.cat([self.fused(rows, items).mean(dim=1) for rows, items in parts])
        return torch.cat([read, read + self.items(self.code_rows()).mean(dim=1)], dim=1)

    def forward(self, history: Tensor, vectors: Tensor) -> Tensor:
        """(B, T, D) state at every place."""
        return self.encode(functional.embedding(history, vectors[:, : vectors.shape[1] // 2]))

    def scores(self, states: Tensor, vectors: Tensor) -> Tensor:
        """(S, N) cosines divided by the temperature."""
        return self.cosines(states, vectors[:, vectors.shape[1] // 2 :])

    def scores_of(self, states: Tensor, vectors: Tensor, items: Tensor) -> Tensor:
        """(S, K) cosines with K items after each state, divided by the temperature."""
        scored = functional.normalize(vectors[:, vectors.shape[1] // 2 :], dim=1)
        return super().scores_of(functional.normalize(states, dim=1), scored, items) / self.chosen.temperature

    def cosines(self, states: Tensor, rows: Tensor) -> Tensor:
        """(S, D) and (R, D) -> (S, R), divided by the temperature."""
        return functional.normalize(states, dim=1) @ functional.normalize(rows, dim=1).T / self.chosen.temperature

    def auxiliary_loss(self, batch: Batch, states: Tensor) -> Tensor | float:
        """Weighted losses of masked codes and of the contrast; see `Network.auxiliary_loss`."""
        chosen = self.chosen
        if chosen.code_weight == 0 and chosen.contrast_weight == 0:
            return 0.0
        (num_windows, length), device = batch.history.shape, batch.history.device
        window, place = batch.places // length, batch.places % length
        last = torch.zeros(num_windows, dtype=torch.int64, device=device).scatter_reduce(0, window, place, "amax")
        is_real = torch.arange(length, device=device) <= last[:, None]
        masked, labels = self.masked_codes(self.code_rows()[batch.history], is_real)
        outputs = self.fused(masked.flatten(0, 1), batch.history.flatten())  # (B x T, C, D)
        loss = chosen.code_weight * self.code_loss(outputs, labels.flatten(0, 1))
        ends = torch.arange(num_windows, device=device), last
        masked_states = self.encode(outputs.mean(dim=1).view(num_windows, length, -1))
        return loss + chosen.contrast_weight * self.contrast(states[ends], masked_states[ends])

    def masked_codes(self, rows_BTC: Tensor, is_real: Tensor) -> tuple[Tensor, Tensor]:
        """Mask codes at random.

        Args:
            rows_BTC: (B, T, C) rows of the codes of histories.
            is_real: (B, T) bool, False at padding.

        Returns:
            (B, T, C) rows, and (B, T, C) the rows that were masked, IGNORED elsewhere.
        """
        is_masked = (torch.rand(rows_BTC.shape, device=rows_BTC.device) < self.chosen.masked_share) & is_real[..., None]
        how = torch.rand(rows_BTC.shape, device=rows_BTC.device)
        others = torch.randint_like(rows_BTC, self.mask)
        instead = torch.where(how < REPLACED, self.mask, torch.where(how < REPLACED + RANDOM, others, rows_BTC))
        return torch.where(is_masked, instead, rows_BTC), torch.where(is_masked, rows_BTC, IGNORED)

    def code_loss(self, outputs_nCD: Tensor, labels_nC: Tensor) -> Tensor:
        """Mean cross-entropy of the masked codes, each among the codes of its level."""
        losses, sizes = [], self.level_sizes.tolist()
        for level, rows in enumerate(self.items.weight[: self.mask].split(sizes)):
            is_masked = labels_nC[:, level] != IGNORED
            targets = labels_nC[is_masked, level] - sum(sizes[:level])
            logits = self.cosines(outputs_nCD[is_masked, level], rows)
            losses.append(functional.cross_entropy(logits, targets, reduction="sum"))
        return torch.stack(losses).sum() / (labels_nC != IGNORED).sum().clamp_min(1)

    def contrast(self, states: Tensor, masked_states: Tensor) -> Tensor:
        """Symmetric InfoNCE of the last states of whole and masked histories, (B, D) each."""
        logits, own = self.cosines(states, masked_states), torch.arange(len(states), device=states.device)
        return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
