"""Batches of `llmrec sft` in which each target is also a query: which item comes next, and what would a teacher answer?

A query is a window of a training sequence and the number of its items that come before the answer. Drawn answers add
sequences to the batch: the window of an example up to a random place, and room for an answer that the teacher draws on
the device (`llmrec.training.distil.distillation`).

Shapes: S windows, H items of the longest, Q queries, D drawn answers, R rows of the batch, T tokens, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmrec.sid.table import EMPTY
from llmrec.training.distil.batch import NO_QUERY, UNKNOWN
from llmrec.training.sft.examples import Example, HistoryCollator, flatten
from llmrec.training.sft.losses import IGNORED


@dataclass
class QueryCollator(HistoryCollator):
    """HistoryCollator whose batches have a key `queries`, the fields of BatchQueries.

    Args:
        drawn_answers: Add one answer to draw for each example with a target that has an item before it.
    """

    drawn_answers: bool = False

    def __call__(self, examples: list[Example]) -> dict[str, Any]:  # as transformers types batches
        """Make a batch; see `HistoryCollator.__call__`. The labels of answers to draw are IGNORED."""
        examples = self.shown(examples)
        is_window = np.array([not each.get("task") for each in examples])
        windows = [each for each in examples if not each.get("task")]
        items, is_target, num_items = flatten(windows)
        window = np.repeat(np.arange(len(windows)), num_items)
        place = np.arange(len(items)) - np.repeat(np.cumsum(num_items) - num_items, num_items)
        targets = np.flatnonzero(is_target)
        cuts = self._draw_cuts(examples, targets[place[targets] > 0], window)
        cut_windows = [windows[each] for each in window[cuts]]
        sequences = [*self.draw(examples), *self._with_room(cut_windows, items, cuts, place[cuts])]
        batch: dict[str, Any] = {**self.batch(sequences)}

        lengths = np.array([len(ids) for ids, _ in sequences])
        starts = self.starts(lengths.tolist())
        num_levels = self.encoder.tokens_NL.shape[1]
        alias = self.encoder.draw_aliases(len(windows), self.rngs(windows))[window]
        room = (starts + lengths)[len(examples) :, np.newaxis] + np.arange(-num_levels, 0)
        query_of = np.full(batch["labels"].numel(), NO_QUERY)
        answers = items[targets]
        own_tokens = (self.encoder.tokens_ANL[alias[targets], answers] != EMPTY).sum(axis=1)
        label_places = _label_places(sequences, starts, is_window)
        query_of[label_places] = np.repeat(np.arange(len(targets)), own_tokens)
        query_of[room] = np.arange(len(targets), len(targets) + len(cuts))[:, np.newaxis]
        queries = np.append(targets, cuts)
        padded = np.zeros((len(windows), max(1, place[queries].max(initial=0))), np.int64)  # without last answers
        is_before = place < padded.shape[1]
        padded[window[is_before], place[is_before]] = items[is_before]
        arrays = {
            "items": padded,
            "sequence": window[queries],
            "length": place[queries],
            "user": np.array([each["user"] for each in windows], np.int64),
            "start": np.array([each["start"] for each in windows], np.int64),
            "answers": np.append(answers, np.full(len(cuts), UNKNOWN)),
            "query_of": query_of.reshape(tuple(batch["labels"].shape)),
            "drawn_places": room,
            "alias": alias[queries],
            "places": np.append(label_places[np.cumsum(own_tokens) - own_tokens], room[:, 0]),
        }
        return {**batch, "queries": {name: torch.from_numpy(array) for name, array in arrays.items()}}

    def _draw_cuts(self, examples: list[Example], candidates: np.ndarray, window: np.ndarray) -> np.ndarray:
        """Draw one of the candidate items of each window, whose place an answer to draw will take."""
        if not self.drawn_answers or len(candidates) == 0:
            return candidates[:0]
        rng = np.random.default_rng((self.seed, self.epoch, *(each["user"] for each in examples[:2])))
        shuffled = rng.permutation(candidates)
        return shuffled[np.unique(window[shuffled], return_index=True)[1]]

    def _with_room(
        self, windows: list[Example], items: np.ndarray, cuts: np.ndarray, sizes: np.ndarray
    ) -> list[tuple[Tensor, Tensor]]:
        """Token ids and labels of the window before each cut, with room for the longest semantic ID."""
        if len(cuts) == 0:
            return []
        before = np.concatenate([items[cut - size : cut] for cut, size in zip(cuts, sizes, strict=True)])
        prompts = self.encode_prompts(windows, before, sizes)
        room = torch.full((self.encoder.tokens_NL.shape[1],), self.pad_token_id)
        ids = [torch.cat([each, room]) for each in torch.from_numpy(prompts.tokens).split(prompts.lengths.tolist())]
        return [(each, torch.full_like(each, IGNORED)) for each in ids]


def _label_places(sequences: list[tuple[Tensor, Tensor]], starts: np.ndarray, is_window: np.ndarray) -> np.ndarray:
    """Places, in the flattened batch, of the labels of those sequences that are windows of histories, in order."""
    chosen = np.flatnonzero(is_window)
    places = [np.flatnonzero(sequences[i][1].numpy() != IGNORED) + starts[i] for i in chosen]
    return np.concatenate([np.empty(0, np.int64), *places])
