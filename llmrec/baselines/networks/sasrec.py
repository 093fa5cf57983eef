"""SASRec: a causal transformer over the items of a history (Kang and McAuley, arXiv:1808.09781).

Departures: the loss is the trainer's softmax over all items instead of one sampled negative, which alone lifts SASRec
above BERT4Rec (Klenitskiy and Vasilev, arXiv:2309.07602); the feed-forward layer is four times as wide as the state, as
in RecBole, with GELU; histories are padded on the right, so positions count from the oldest item of the cut history.

eSASRec (arXiv:2508.06450) is this network with `block` ligr and sampled negatives; as published for Beauty it has a
hidden size of 64, one block, one head and a dropout of .2.

Shapes: B histories, T items of the longest, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrec.baselines.networks.ligr import LiGRBlock
from llmrec.baselines.networks.network import INITIAL_STD, Network, head_problems
from llmrec.baselines.networks.training_options import TrainingOptions
from llmrec.configs.options import option


def transformer_block(hidden: int, heads: int, dropout: float) -> nn.Module:
    """Block of torch, with a layer norm before each of its two layers."""
    return nn.TransformerEncoderLayer(
        hidden, heads, 4 * hidden, dropout, functional.gelu, batch_first=True, norm_first=True
    )


BLOCKS: dict[str, Callable[[int, int, float], nn.Module]] = {"transformer": transformer_block, "ligr": LiGRBlock}


@dataclass(kw_only=True)
class SASRecOptions(TrainingOptions):
    """Options of SASRec; those of the trainer are as in the form that was measured best.

    On Beauty, three seeds, test ndcg@10 plain and seen excluded: .0435 .0584 in scripts/experiments/distillation, where
    batches, decay, second moment and activation are as here; .0395 .0531 here with batches of 128 windows of similar
    lengths, a decay of .01, .999 and ReLU. On MovieTweetings (seed 0, valid) random batches make the difference: .1121
    .1325 with similar lengths, .1195 .1463 with these, .1159 .1425 in the experiment.
    """

    batch_size: int = option(
        "Windows per step; fewer if an epoch would otherwise have less than 32 steps.", 256, least=1
    )
    weight_decay: float = option("Weight decay of AdamW.", 1e-4, least=0)
    # Twice that of the other networks: an epoch has half as many steps.
    patience: int = option("Training stops after so many epochs without a new best one.", 20, least=1)
    # The paper has 50. Best validation ndcg@10 on Beauty: .0468 with 128, .0464 with 64 (dropout .5, seed 0).
    hidden: int = option("Size of states and item vectors; a multiple of `heads`.", 128, least=1)
    # as in the paper, "Implementation Details"
    layers: int = option("Number of blocks.", 2, least=1)
    # RecBole's; the paper has 1, slightly better there than 2
    heads: int = option("Attention heads of a block.", 2, least=1)
    # The paper's for its sparse sets; it has .2 for MovieLens-1M. Best validation ndcg@10 on MovieTweetings: .1108 with
    # .5, .1083 with .2 (hidden 64, seed 0); on Beauty .0464 with .5, .0450 with .3 (hidden 64, seed 0).
    dropout: float = option(
        "Dropout on the input, the attention weights and the output of each layer.", 0.5, least=0, most=1
    )

    block: Literal["transformer", "ligr"] = option(
        "Kind of block: with plain residuals, or with gated ones and SwiGLU as in eSASRec.", "transformer"
    )

    def problems(self) -> list[str]:
        return [*super().problems(), *head_problems(self.hidden, self.heads)]


class SASRec(Network):
    """Blocks of self-attention and feed-forward, each after a layer norm, over items with learned positions.

    Args:
        num_items: Number of items of the catalogue.
        max_history: Number of positions to learn.
        options: Fields of SASRecOptions.
    """

    name = "sasrec"
    options: ClassVar[type[TrainingOptions]] = SASRecOptions
    future: Tensor

    def __init__(self, num_items: int, max_history: int, **options: Any):  # SASRecOptions checks them
        chosen: Any = self.options(**options)  # SASRecOptions, or those of a subclass, which have the same sizes
        hidden, dropout = chosen.hidden, chosen.dropout
        super().__init__(num_items, hidden)
        self.positions = nn.Parameter(torch.empty(max_history, hidden))
        nn.init.normal_(self.positions, std=INITIAL_STD)
        self.dropout = nn.Dropout(dropout)
        block = BLOCKS[chosen.block]
        self.blocks = nn.ModuleList(block(hidden, chosen.heads, dropout) for _ in range(chosen.layers))
        self.norm = nn.LayerNorm(hidden)
        self.register_buffer("future", nn.Transformer.generate_square_subsequent_mask(max_history), persistent=False)

    def forward(self, history: Tensor, vectors: Tensor) -> Tensor:
        """(B, T, D) state at every place."""
        return self.encode(functional.embedding(history, vectors))

    def encode(self, items: Tensor) -> Tensor:
        """(B, T, D) vectors of the items of histories -> (B, T, D) state at every place."""
        length = items.shape[1]
        # Scaled as in the authors' code. On Beauty (hidden 64, dropout .5, seed 0) validation ndcg@10 was .0433 after
        # 12 epochs with it and .0256 without; at the end .0462 (epoch 46) and .0476 (epoch 72).
        states = self.dropout(items * items.shape[2] ** 0.5 + self.positions[:length])  # (B, T, D)
        for block in self.blocks:
            states = block(states, self.future[:length, :length], is_causal=True)
        return self.norm(states)
