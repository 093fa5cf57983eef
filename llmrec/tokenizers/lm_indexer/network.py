"""Networks of LMIndexer: of each level a decoder that reads an item's tokens, its codebook, and a reconstructor.

A level's decoder has the queries of all levels up to its own. Behind each stands the code that the item got there, and
the state at the last one is quantised:

    input   query_0,  query_1 + code of level 0,  …,  query_l + code of level l - 1
    state   of the last place, which attends to these and to the token states of the frozen encoder

The codes of earlier levels come from levels that are finished, so nothing that trains moves them.

Shapes: B items, T tokens, l levels before this one, K codes of a level, D dimension of a token state, E latent
dimension, V distinct tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from llmrec.tokenizers.lm_indexer.token_states import TokenBatch
from llmrec.tokenizers.shared.kmeans import nearest, squared_distances

LAYERS, HEADS, DROPOUT = 2, 4, 0.1  # the dropout makes the two views of the contrast
WARMEST, COLDEST = 0.9, 0.3  # temperature of the Gumbel-softmax, from the start of training to its end
START_STD = 0.02


class Codebook(nn.Module):
    """Codes of one level, drawn by a straight-through Gumbel-softmax in training.

    Logits are -|state - code|^2 / (2 sqrt(E)): the dot product over sqrt(E), less what favours long codes.

    Args:
        size: K.
        dim: E.
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(size, dim))
        self.temperature = WARMEST

    def draw(self, states_BE: Tensor) -> Tensor:
        """(B, E) drawn codes, whose gradient is that of the softmax over all codes."""
        logits_BK = -squared_distances(states_BE, self.codes) / (2 * states_BE.shape[1] ** 0.5)
        noise_BK = -torch.empty_like(logits_BK).exponential_().clamp_(min=torch.finfo(logits_BK.dtype).tiny).log()
        shares_BK = ((logits_BK + noise_BK) / self.temperature).softmax(1)
        drawn_BK = torch.zeros_like(shares_BK).scatter_(1, shares_BK.argmax(1, keepdim=True), 1)
        return (shares_BK + (drawn_BK - shares_BK).detach()) @ self.codes

    def commitment(self, states_BE: Tensor) -> Tensor:
        """Mean squared distance of states to their nearest codes, which do not move by it."""
        return mse_loss(states_BE, self.codes.detach()[nearest(states_BE.detach(), self.codes.detach())[0]])


class LevelIndexer(nn.Module):
    """Decoder and codebook of one level.

    Args:
        level: l.
        state_dim: D.
        dim: E.
        codebook_size: K.
    """

    def __init__(self, level: int, state_dim: int, dim: int, codebook_size: int):
        super().__init__()
        self.level = level
        self.project = nn.Linear(state_dim, dim)
        self.queries = nn.Parameter(START_STD * torch.randn(level + 1, dim))
        layer = nn.TransformerDecoderLayer(dim, HEADS, 4 * dim, DROPOUT, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, LAYERS, nn.LayerNorm(dim, elementwise_affine=False))
        self.book = Codebook(codebook_size, dim)

    def states(self, batch: TokenBatch, earlier_BlE: Tensor, views: int = 1) -> Tensor:
        """Compute the states that are quantised.

        Args:
            batch: Texts of the items.
            earlier_BlE: (B, l, E) their codes of the levels before.
            views: Number of states of each item, each under other dropout while it trains.

        Returns:
            (views, B, E).
        """
        inputs = torch.cat([torch.zeros_like(self.queries[:1]).expand(len(earlier_BlE), 1, -1), earlier_BlE], dim=1)
        mask = nn.Transformer.generate_square_subsequent_mask(self.level + 1, device=inputs.device)
        found = self.decoder(
            (inputs + self.queries).repeat(views, 1, 1),
            self.project(batch.states).repeat(views, 1, 1),
            tgt_mask=mask,
            memory_key_padding_mask=torch.where(batch.is_token, 0.0, -torch.inf).repeat(views, 1),
        )
        return found[:, -1].unflatten(0, (views, -1))

    def continue_from(self, before: LevelIndexer) -> None:
        """Start with the decoder of the level before, and with its queries; the last query and the codes are new."""
        self.project.load_state_dict(before.project.state_dict())
        self.decoder.load_state_dict(before.decoder.state_dict())
        with torch.no_grad():
            self.queries[:-1] = before.queries


class Reconstructor(nn.Module):
    """Finds the hidden tokens of a text from the others and the item's codes, in one layer.

    It sees tokens without context, because a state of the frozen encoder knows its neighbours.

    Args:
        word_vectors_VD: (V, D) vectors of the distinct tokens; they do not train.
        dim: E.
        longest: Largest number of tokens of a text.
    """

    words: Tensor

    def __init__(self, word_vectors_VD: Tensor, dim: int, longest: int):
        super().__init__()
        self.register_buffer("words", nn.functional.normalize(word_vectors_VD, dim=1), persistent=False)
        self.read = nn.Linear(word_vectors_VD.shape[1], dim)
        self.positions = nn.Parameter(START_STD * torch.randn(longest, dim))
        self.hidden = nn.Parameter(START_STD * torch.randn(dim))
        self.layer = nn.TransformerEncoderLayer(dim, HEADS, 4 * dim, DROPOUT, batch_first=True, norm_first=True)
        self.write = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, word_vectors_VD.shape[1]))
        self.bias = nn.Parameter(torch.zeros(len(word_vectors_VD)))

    def forward(
        self, batch: TokenBatch, is_hidden_BT: Tensor, codes_BE: Tensor, wanted: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Predict tokens.

        Args:
            batch: Texts of the items.
            is_hidden_BT: (B, T) bool, tokens that it does not see.
            codes_BE: (B, E) sums of the items' codes, which every place gets.
            wanted: Items (P,) and places (P,) of the tokens to predict.

        Returns:
            (P, V) logits.
        """
        seen_BTE = torch.where(is_hidden_BT[:, :, None], self.hidden, self.read(self.words[batch.places]))
        inputs = seen_BTE + self.positions[: seen_BTE.shape[1]] + codes_BE[:, None]
        padding = torch.where(batch.is_token, 0.0, -torch.inf)
        return self.write(self.layer(inputs, src_key_padding_mask=padding)[wanted]) @ self.words.T + self.bias
