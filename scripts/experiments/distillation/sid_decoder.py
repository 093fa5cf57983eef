"""The decoder of semantic IDs: Llama-like, trained on packed histories, answering by a beam over the prefix tree."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from data import DEVICE, WINDOW, Data, K
from packing import Packing
from torch import nn

EPS = 1e-6  # of RMSNorm


def queries_keys_values(
    x: torch.Tensor, norm: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int
) -> torch.Tensor:
    """Norm, then queries, keys and values with rotary positions.

    Args:
        x: (..., H) states.
        norm: (H,) weight of the norm.
        weight: (3 H, H) projection.
        cos: (..., 1, H / heads) cosines of the positions.
        sin: Their sines.
        heads: Number of heads.

    Returns:
        (..., 3, heads, H / heads).
    """
    z = F.linear(F.rms_norm(x, x.shape[-1:], norm, EPS), weight).unflatten(-1, (3, heads, -1))
    values, z = z[..., 2:, :, :], z[..., :2, :, :]
    half = z.shape[-1] // 2
    turned = torch.cat([-z[..., half:], z[..., :half]], -1)
    return torch.cat([z * cos[..., None, :, :] + turned * sin[..., None, :, :], values], -3)


def output_and_feed(
    x: torch.Tensor,
    mixed: torch.Tensor,
    out: torch.Tensor,
    norm: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    dropout: float,
    training: bool,
) -> torch.Tensor:
    """Output of attention, then SwiGLU; each is dropped and added to the stream."""
    x = x + F.dropout(F.linear(mixed, out), dropout, training)
    a, b = F.linear(F.rms_norm(x, x.shape[-1:], norm, EPS), up).chunk(2, -1)
    return x + F.dropout(F.linear(F.silu(a) * b, down), dropout, training)


@functools.cache
def _compiled() -> tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]:
    """Compile both functions, once in a process."""
    return torch.compile(queries_keys_values), torch.compile(output_and_feed)


class Layer(nn.Module):
    """The weights of one decoder layer, and its two halves around attention."""

    def __init__(self, dim: int, heads: int, dropout: float, fused: bool):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self._training_halves = _compiled() if fused else (queries_keys_values, output_and_feed)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 8 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)
        self.norm1, self.norm2 = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))

    def first_half(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Everything before attention."""
        half = self._training_halves[0] if self.training else queries_keys_values
        return half(x, self.norm1, self.qkv.weight, cos, sin, self.heads)

    def second_half(self, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """Everything after attention."""
        half = self._training_halves[1] if self.training else output_and_feed
        weights = (self.out.weight, self.norm2, self.up.weight, self.down.weight)
        return half(x, mixed, *weights, self.dropout, self.training)


class Decoder(nn.Module):
    """Llama-like decoder (RMSNorm, RoPE, SwiGLU, tied embeddings) over SID tokens.

    Token 0 starts a history, and token 1 + l K + c is code c of level l.

    Args:
        data: The dataset.
        dim: Hidden size H.
        layers: Number of layers.
        heads: Number of attention heads.
        dropout: Share of dropped activations of the embedding and of each residual branch.
        item_rows: Whether every item has a vector, its row in the output matrix of the softmax over items. In the
            history it is added to the embedding of the item's last SID token.
        item_tokens: Whether it is a token of its own after the SID instead, which is never predicted.
        hidden_rows: Share of the vectors that training hides in the histories. A shared vector stands in for a token.
        fused: Whether to compile the layers for training.
    """

    attention_dropout = 0.1

    def __init__(
        self,
        data: Data,
        dim: int = 256,
        layers: int = 4,
        heads: int = 4,
        dropout: float = 0.3,
        item_rows: bool = False,
        item_tokens: bool = False,
        hidden_rows: float = 0.0,
        fused: bool = False,
    ):
        super().__init__()
        self.data, self.num_levels, self.dim, self.heads, self.fused = data, data.num_levels, dim, heads, fused
        self.item_tokens, self.hidden_rows = item_rows and item_tokens, hidden_rows
        self.per_item = self.num_levels + self.item_tokens  # tokens of an item in a history
        self.tokens = nn.Embedding(1 + self.num_levels * K, dim)
        self.layers = nn.ModuleList(Layer(dim, heads, dropout, fused) for _ in range(layers))
        self.norm, self.drop = nn.Parameter(torch.ones(dim)), nn.Dropout(dropout)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        self.items = nn.Embedding(data.num_columns, dim) if item_rows else None
        if self.items is not None:
            nn.init.normal_(self.items.weight, std=0.02)
        frequencies = 10000 ** (-torch.arange(0, dim // heads, 2).float() / (dim // heads))
        angles = torch.arange((WINDOW + 1) * self.per_item + 1).float()[:, None] * frequencies
        angles = torch.cat([angles, angles], -1)
        self.register_buffer("cos", angles.cos()[:, None], persistent=False)
        self.register_buffer("sin", angles.sin()[:, None], persistent=False)
        self.register_buffer("base", 1 + torch.arange(self.num_levels) * K, persistent=False)

    def rotation(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of positions."""
        return self.cos[positions].to(torch.bfloat16), self.sin[positions].to(torch.bfloat16)

    def final_norm(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the norm at the end of the stream."""
        return F.rms_norm(x, x.shape[-1:], self.norm, EPS)

    def level_weights(self) -> torch.Tensor:
        """(L, K, H) embeddings of the codes, which are the output matrices too."""
        return self.tokens.weight[1:].view(self.num_levels, K, self.dim)

    def level_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Turn states (P, L, H) into logits of the codes (P, L, K)."""
        return torch.einsum("plh,lkh->plk", hidden.float(), self.level_weights())

    def item_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Turn states (P, H) that predict a first code into logits of the items (P, N2)."""
        return F.linear(hidden.float(), self.items.weight, self.data.no_item)

    def hidden(self, packing: Packing, codes: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """Compute the states that predict each code.

        Args:
            packing: Where the positions lie.
            codes: (P, L) codes of each position's item.
            previous: (P,) the item before it, or -1.

        Returns:
            (P, L, H).
        """
        x = self.drop(self._embed(codes, previous)).flatten(0, 1)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            cos, sin = self.rotation(packing.positions)
            for layer in self.layers:
                self._mark_dynamic(x, cos, sin)
                mixed = self._attend(layer.first_half(x, cos, sin), packing)
                self._mark_dynamic(mixed)
                x = layer.second_half(x, mixed)
            x = self.final_norm(x)
        return x.view(-1, self.per_item, self.dim)[:, : self.num_levels]

    def _embed(self, codes: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """Embed the tokens (P, per_item) of each position: the last one of the item before, then the item's own."""
        is_first = previous < 0
        shown = ~is_first
        if self.items is not None and self.training and self.hidden_rows:
            shown = shown & (torch.rand(len(previous), device=DEVICE) >= self.hidden_rows)
        if self.item_tokens:
            vectors = self.items(torch.where(shown, previous, torch.full_like(previous, self.data.num_items)))
            vectors = torch.where(is_first[:, None], self.tokens.weight[:1], vectors)
            return torch.cat([vectors[:, None], self.tokens(codes + self.base)], 1)
        last = self.base[-1] + self.data.codes[previous.clamp(min=0), -1]
        first = torch.where(is_first, torch.zeros_like(previous), last)
        x = self.tokens(torch.cat([first[:, None], codes[:, :-1] + self.base[:-1]], 1))
        if self.items is not None:
            vectors = self.items(previous.clamp(min=0)) * shown[:, None]
            x = torch.cat([x[:, :1] + vectors[:, None], x[:, 1:]], 1)
        return x

    def _mark_dynamic(self, *tensors: torch.Tensor) -> None:
        """Tell the compiler that the number of tokens changes from batch to batch."""
        if self.fused and self.training:
            for tensor in tensors:
                torch._dynamo.mark_dynamic(tensor, 0)

    def _attend(self, qkv: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Causal attention within each history; histories of like length are padded to the longest of their group."""
        dropout, outs = self.attention_dropout if self.training else 0.0, []
        for group in packing.groups:
            padded = qkv.new_zeros(group.rows * group.tokens, *qkv.shape[1:])
            padded = padded.index_copy(0, group.places, qkv[group.start : group.end])
            q, k, v = padded.view(group.rows, group.tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
            outs.append(mixed.transpose(1, 2).reshape(group.rows * group.tokens, self.dim)[group.places])
        return torch.cat(outs) if len(outs) > 1 else outs[0]

    @torch.inference_mode()
    def answer(self, histories: list[np.ndarray], beams: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Answer histories of one length.

        Returns:
            (B, N2) probabilities of the beam, 0 outside it, and (B, N2) of the item rows or None.
        """
        hidden, cache = self._prefill(torch.as_tensor(np.stack(histories), device=DEVICE))
        dense = self.item_logits(hidden[:, 0]).softmax(-1) if self.items is not None else None
        length, batch = cache[0][0].shape[2], len(histories)
        score, ancestors = torch.zeros(batch, 1, device=DEVICE), None
        node = torch.zeros(batch, 1, dtype=torch.long, device=DEVICE)
        for level, weights in enumerate(self.level_weights()):
            child = self.data.child[level][node]
            logits = (hidden.float() @ weights.T).masked_fill(child < 0, -torch.inf).log_softmax(-1)
            total = (score[..., None] + logits).masked_fill(child < 0, -torch.inf).flatten(1)
            width = min(beams, total.shape[1])
            score, best = total.topk(width, 1)
            parent, code = best // K, best % K
            node = child.flatten(1).gather(1, best).clamp(min=0)
            if level == self.num_levels - 1:
                break
            own = torch.eye(width, dtype=torch.bool, device=DEVICE).expand(batch, width, width)
            if ancestors is None:
                ancestors = own
            else:
                ancestors = ancestors.gather(1, parent[..., None].expand(-1, -1, ancestors.shape[-1]))
                ancestors = torch.cat([ancestors, own], -1)
            prompt = torch.ones(batch, width, length, dtype=torch.bool, device=DEVICE)
            hidden = self._step(level, code, length, torch.cat([prompt, ancestors], -1)[:, None], cache)
        reached = torch.isfinite(score)
        item = torch.where(reached, self.data.leaf[node], torch.zeros_like(node))
        empty = torch.zeros(batch, self.data.num_columns, device=DEVICE)
        return empty.scatter_add_(1, item, score.exp() * reached), dense

    def _prefill(self, x: torch.Tensor) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        """Encode (B, T) histories: the last state (B, 1, H), and keys and values of each layer."""
        batch, length = len(x), x.shape[1] * self.per_item + 1
        z = self.tokens(self.data.codes[x] + self.base)
        if self.item_tokens:
            z = torch.cat([z, self.items(x)[:, :, None]], 2)
        elif self.items is not None:
            z[:, :, -1] += self.items(x)
        z = torch.cat([self.tokens.weight[:1].expand(batch, 1, -1), z.flatten(1, 2)], 1)
        cache = []
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            cos, sin = self.rotation(torch.arange(length, device=DEVICE))
            for layer in self.layers:
                q, k, v = (part.transpose(1, 2) for part in layer.first_half(z, cos, sin).unbind(-3))
                cache.append([k, v])
                mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                z = layer.second_half(z, mixed.transpose(1, 2).reshape(batch, length, self.dim))
            return self.final_norm(z[:, -1:]), cache

    def _step(
        self, level: int, code: torch.Tensor, length: int, mask: torch.Tensor, cache: list[list[torch.Tensor]]
    ) -> torch.Tensor:
        """Run the codes (B, beams) of a level, each seeing the prompt and its ancestors, and extend the cache."""
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            z = self.tokens(self.base[level] + code)
            cos, sin = self.rotation(torch.full((1,), length + level, device=DEVICE))
            for i, layer in enumerate(self.layers):
                q, k, v = (part.transpose(1, 2) for part in layer.first_half(z, cos, sin).unbind(-3))
                cache[i] = [torch.cat([cache[i][0], k], 2), torch.cat([cache[i][1], v], 2)]
                mixed = F.scaled_dot_product_attention(q, *cache[i], attn_mask=mask)
                z = layer.second_half(z, mixed.transpose(1, 2).reshape(*code.shape, self.dim))
            return self.final_norm(z)
