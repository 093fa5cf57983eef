"""The model of the probe: codes given the codes before them and those of the history's items.

Shapes: B rows, M items of a history, N items, S SIDs, L levels, K codes of a level, V codes of all levels, P prefixes
of one length, D dim.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmrec.sid.table import EMPTY

DIM = 64


class LogLinear(torch.nn.Module):
    """Item row -1 of a history is none, and has no codes."""

    def __init__(self, codes_NL: np.ndarray, prefixes: np.ndarray, level_sizes: list[int], generator: torch.Generator):
        super().__init__()
        device, num_codes = generator.device, sum(level_sizes)
        self.num_levels = len(level_sizes)
        first = np.cumsum([0, *level_sizes])
        self.rows = [slice(*pair) for pair in pairwise(first)]  # of each level among the V codes
        tokens = np.where(codes_NL == EMPTY, num_codes, codes_NL + first[:-1])
        nothing = np.full((1, self.num_levels), num_codes)  # the last row, so that -1 finds it
        self.codes = torch.from_numpy(codes_NL).to(device)  # (N, L)
        self.tokens = torch.from_numpy(np.concatenate([tokens, nothing])).to(device)  # (N + 1, L)
        self.prefixes = torch.from_numpy(prefixes).to(device)  # (N, L + 1)
        owners = [np.unique(column, return_index=True)[1] for column in prefixes.T]
        self.owners = [torch.from_numpy(items).to(device) for items in owners]  # (P,) each, an item of each prefix

        def random(rows: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(rows, DIM, generator=generator, device=device) / DIM**0.5)

        self.recent, self.last, self.earlier = (random(num_codes + 1) for _ in range(3))
        self.prefix = torch.nn.ParameterList(random(len(items)) for items in owners[:-1])
        # Zeros make every code equally likely at first.
        self.weight = torch.nn.Parameter(torch.zeros(num_codes, DIM, device=device))
        self.bias = torch.nn.Parameter(torch.zeros(num_codes, device=device))

    def history_vector(self, histories: Tensor) -> Tensor:
        """(B, D) of (B, M) item rows, latest first."""
        tokens, known = self.tokens[histories], (histories >= 0).sum(dim=1, keepdim=True)
        return _sum_of(self.recent, tokens.flatten(1)) / known.clamp(min=1) + _sum_of(self.last, tokens[:, 0])

    def prefix_vector(self, items: Tensor, level: int) -> Tensor:
        """(B, D) of the first `level` codes of (B,) item rows."""
        vector = F.embedding(self.prefixes[items, level], self.prefix[level])
        return vector + _sum_of(self.earlier, self.tokens[items, :level]) if level else vector

    def log_probs(self, history_vector: Tensor, items: Tensor) -> Tensor:
        """(B, L) log-probability of each code of (B,) items given its prefix; 0 beyond the end of a SID."""
        found = []
        for level, rows in enumerate(self.rows):
            vector = history_vector + self.prefix_vector(items, level)
            logits = F.linear(vector, self.weight[rows], self.bias[rows])  # (B, K)
            found.append(_pick(logits.log_softmax(dim=1), self.codes[items, level]))
        return torch.stack(found, dim=1)

    def sid_scores(self, history_vector: Tensor, prefix_logits: list[Tensor]) -> Tensor:
        """(B, S) log-probability of every SID, S the numbers in the last column of `prefixes`.

        Args:
            history_vector: (B, D).
            prefix_logits: What `prefix_logits` returns.
        """
        owners = self.owners[-1]
        total = torch.zeros(len(history_vector), len(owners), dtype=torch.double, device=history_vector.device)
        for level, (rows, of_prefix) in enumerate(zip(self.rows, prefix_logits, strict=True)):
            of_history = history_vector.double() @ self.weight[rows].double().T  # (B, K)
            codes, prefixes = self.codes[owners, level], self.prefixes[owners, level]  # (S,)
            normaliser = log_sum_exp_of_sums(of_history, of_prefix)  # (B, P)
            logits = of_history[:, codes.clamp(min=0)] + of_prefix[prefixes, codes.clamp(min=0)]  # (B, S)
            total = total + torch.where(codes != EMPTY, logits - normaliser[:, prefixes], 0.0)
        return total

    def prefix_logits(self) -> list[Tensor]:
        """Per level (P, K) what each prefix adds to the logits, in double precision."""
        found = []
        for level, rows in enumerate(self.rows):
            vector = self.prefix_vector(self.owners[level], level)
            found.append(vector.double() @ self.weight[rows].double().T + self.bias[rows].double())
        return found


def _sum_of(table: Tensor, tokens: Tensor) -> Tensor:
    """(B, D) sum of the rows of `table` that (B, …) tokens name; its last row stands for nothing."""
    return F.embedding_bag(tokens, table, mode="sum", padding_idx=len(table) - 1)


def _pick(log_probs: Tensor, codes: Tensor) -> Tensor:
    """(B,) entry of each row that its code names, 0 for none."""
    picked = log_probs.gather(1, codes.clamp(min=0)[:, None])[:, 0]
    return torch.where(codes != EMPTY, picked, 0.0)


def log_sum_exp_of_sums(of_history: Tensor, of_prefix: Tensor) -> Tensor:
    """(B, P) log sum over k of exp(of_history[b, k] + of_prefix[p, k]), as a product of matrices.

    Both are (…, K) doubles: the largest terms of the two may be at different codes, where floats would vanish.
    """
    high_B, high_P = of_history.amax(dim=1, keepdim=True), of_prefix.amax(dim=1, keepdim=True)
    return ((of_history - high_B).exp() @ (of_prefix - high_P).exp().T).log() + high_B + high_P.T
