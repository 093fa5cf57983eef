"""The part of a batch that a teacher is asked, and the part that it answers.

The collator asks (`query_collator.py`), the teacher answers (`distillation.py`), and the loss of `llmrec sft` reads it.

Shapes: S windows, H items of the longest, Q queries and their answers, D drawn answers, N items, R rows of the batch, T
tokens, P positions, L levels, K codes of a level.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NO_QUERY = -1
UNKNOWN = -1  # answer that is not drawn yet


class BatchQueries(NamedTuple):
    """Queries of a batch, those of drawn answers last.

    Attributes:
        items: (S, H) int64 item rows of each window that any query may have before its answer, 0 beyond the end.
        sequence: (Q,) int64 window of each query.
        length: (Q,) int64 number of items of the window before the answer.
        user: (S,) int64 training sequence of each window.
        start: (S,) int64 place of the window's first item in that sequence.
        answers: (Q,) int64 item rows, UNKNOWN for an answer to draw.
        query_of: (R, T) int64 query whose answer a token belongs to, or NO_QUERY.
        drawn_places: (D, L) int64 places, in the flattened batch, of the tokens of each answer to draw.
        alias: (Q,) int64 alias that the window and the answer are written in.
        places: (Q,) int64 place, in the flattened batch, of the first token of each answer.
    """

    items: Tensor
    sequence: Tensor
    length: Tensor
    user: Tensor
    start: Tensor
    answers: Tensor
    query_of: Tensor
    drawn_places: Tensor
    alias: Tensor
    places: Tensor


class TaughtCodes(NamedTuple):
    """Distributions of a teacher over the codes of the answers of a batch.

    Attributes:
        query_of: (R, T) int64 answer that a token belongs to, or -1. Tokens of no answer learn their label alone.
        is_drawn: (Q,) bool, True for answers that the teacher drew, whose own codes are not learned.
        levels: For each level, (Q, K) distributions over its codes, multiplied by the teacher's weight; 0 throughout
            where the teacher says nothing, so that the label alone is learned.
    """

    query_of: Tensor
    is_drawn: Tensor
    levels: list[Tensor]

    def levels_of_tokens(self) -> Tensor:
        """(P,) level of each token within its answer, by its place; -1 for tokens of no answer."""
        query_P = self.query_of.flatten()
        place_P = torch.arange(len(query_P), device=query_P.device)
        begins_P = torch.ones_like(query_P, dtype=torch.bool)
        begins_P[1:] = query_P[1:] != query_P[:-1]
        first_P = torch.where(begins_P, place_P, 0).cummax(dim=0).values
        return (place_P - first_P).masked_fill(query_P < 0, -1)

    def at(self, level: int, places_P: Tensor, chosen_P: Tensor) -> tuple[Tensor, Tensor]:
        """Look up what the tokens at some positions learn.

        Args:
            level: Level of the tokens.
            places_P: (P,) int64 positions in the flattened batch.
            chosen_P: (P,) bool, False for positions to leave out.

        Returns:
            (P, K) weighted distributions, and (P,) weights of the tokens themselves.
        """
        query_P = self.query_of.flatten()[places_P]
        is_taught_P, query_P = (query_P >= 0) & chosen_P, query_P.clamp(min=0)
        taught_PK = self.levels[level][query_P] * is_taught_P.unsqueeze(1)
        is_own_P = chosen_P & ~(is_taught_P & self.is_drawn[query_P])
        return taught_PK, (1 - taught_PK.sum(dim=1)) * is_own_P


class TaughtBatch(NamedTuple):
    """A batch with its drawn answers, and what the teacher says about it.

    Attributes:
        input_ids: (R, T) int64.
        labels: (R, T) int64, with those of the drawn answers.
        codes: Distributions over codes.
        answers: (Q,) int64 item rows, drawn ones last.
        probabilities: (Q, N) float32 the teacher's.
    """

    input_ids: Tensor
    labels: Tensor
    codes: TaughtCodes
    answers: Tensor
    probabilities: Tensor
