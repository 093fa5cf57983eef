"""Explanation of one recommended item: its path through the trie, and what each item of the history does to its score.

The path shows, level by level, how probable the code of the item was and which other codes it was chosen among. What an
item of the history does is measured, not estimated: the model scores the recommended item once more without it. Both
come from one batch, in which every row is a history with one item left out.

Shapes: B histories, C semantic IDs of the item, N items, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmrec.configs.recommend import RankBy
from llmrec.data.requests.item_lists import find_rows
from llmrec.decoding.answering import Answerer
from llmrec.decoding.paths.exact_scores import follow
from llmrec.decoding.paths.forks import Fork, ForkReader
from llmrec.decoding.requests import ItemRequests
from llmrec.decoding.search import SearchProblem
from llmrec.decoding.tree_forward import pad_right
from llmrec.decoding.trie.allow_list import AllowList
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.evaluation.ranking import check_scores
from llmrec.model.backbone import causal_lm
from llmrec.model.heads.item_rows import ItemRows
from llmrec.model.history.aliases import AliasHistoryEncoder
from llmrec.runtime.device import from_host
from llmrec.sid.codes import EMPTY
from llmrec.sid.item_tokens import ItemTokens

HISTORIES_AT_ONCE = 64
Scores = dict[RankBy, float]


@dataclass(frozen=True)
class Influence:
    """Change that one item of the history makes to the score of the recommended item.

    Attributes:
        item_id: Item of the history.
        shared_levels: Number of codes, from the first, that both items have in common.
        changes: Score with this item minus the score without it, so that a positive number speaks for the
            recommendation; None if the history has no other item.
    """

    item_id: str
    shared_levels: int
    changes: Scores | None


@dataclass(frozen=True)
class Explanation:
    """Reasons why an item was recommended.

    Attributes:
        item_id: The recommended item.
        rank: The scores that the recommender ranks by.
        scores: Log-probabilities of the item: `sid`, and, if the model has item rows, `items` and `mixture`. Of a model
            that writes no codes, the score of `rank` alone.
        path: A fork for each code of the item's semantic ID, from the root; empty if the model writes no codes. The
            probabilities of the codes multiply to exp(scores["sid"]), unless the model has a length penalty.
        history: Influence of each item that the model has read, in the order of the history.
    """

    item_id: str
    rank: RankBy
    scores: Scores
    path: list[Fork]
    history: list[Influence]


def permitted_items(asked: ItemRequests, is_shown: np.ndarray) -> np.ndarray:
    """(N,) bool, items that the filters of one user leave of those that may be shown."""
    is_permitted = is_shown.copy()
    if asked.allow[0] is not None:
        is_permitted[:] = False
        is_permitted[asked.allow[0]] = is_shown[asked.allow[0]]
    is_permitted[asked.exclude_all] = False
    is_permitted[asked.exclude[0]] = False
    return is_permitted


class Explainer:
    """Explanations of answers.

    Args:
        answerer: Answers, within the items that may be shown.

    Raises:
        ValueError: If its ranker merges rankings, so that an item has no score of its own.
    """

    def __init__(self, answerer: Answerer):
        ranker, self.is_shown = answerer.ranker, answerer.is_shown
        self.ranker, config = ranker, ranker.sid_config
        counts = None if answerer.record is None else answerer.record.train_counts
        self.forks = ForkReader(ranker.trie, ranker.table, config.vocabulary, counts)
        if config.vocabulary.segmentations:
            raise ValueError(
                "This model ranks by the ranks that several ways of writing a history give, so an item has no score "
                "that could be explained. Extend with `--segmentations 0` for a model with one way."
            )
        has_aliases = isinstance(ranker.encoder, AliasHistoryEncoder)
        self.writes_codes = config.vocabulary.head is None and ranker.rank_by != "ground" and not has_aliases
        if self.writes_codes:
            self._problem = SearchProblem(
                ranker.model, ranker.trie, config.vocabulary, config.normalize_over,
                length_penalty=config.length_penalty,
            )  # fmt: skip
        has_rows = self.writes_codes and config.vocabulary.items is not None
        self._rows = ItemRows(ItemTokens.required(config.vocabulary.items)) if has_rows else None

    def explain(self, asked: ItemRequests, item_id: str, num_branches: int) -> Explanation:
        """Explain the score of an item.

        Args:
            asked: Request of one user.
            item_id: The recommended item.
            num_branches: Largest number of other codes that are listed at each level.

        Raises:
            ValueError: If the user has no history, or the item is unknown or could not be recommended.
            ScoresNotFinite: If a score is NaN.
        """
        item = int(find_rows({"item_id": [item_id]}, self.ranker.table.row_of)[0][0][0])
        history = asked.histories[0]
        if not len(history):
            raise ValueError(
                "No known item is in the history, so popular items are recommended to this user, without the model."
            )
        is_permitted = permitted_items(asked, self.is_shown)
        if not is_permitted[item]:
            reason = "is excluded, as it is in the history" if item in history else "is excluded, or not allowed"
            raise ValueError(
                f"item '{item_id}' {reason}, so it cannot be recommended; give other filters to explain it."
            )
        read = list(dict.fromkeys(self.ranker.shown([history])[0].tolist()))
        without = [history[history != row] for row in read]
        histories = [history, *(rows for rows in without if len(rows))]
        path: list[Fork] = []
        if self.writes_codes:
            scores, path = self._follow(histories, item, is_permitted, num_branches)
        else:
            allow = [AllowList(self.ranker.trie, [item])] * len(histories)
            scores = {self.ranker.rank_by: self.ranker.rank(histories, 1, allow=allow).scores[:, 0]}
        for values in scores.values():
            check_scores(values[:, None], np.ones((len(values), 1), bool))
        changes: list[Scores | None] = [
            {rank: float(values[0] - values[place]) for rank, values in scores.items()}
            for place in range(1, len(histories))
        ]
        influences = [
            Influence(self.ranker.table.item_ids[row], levels, change)
            for row, levels, change in zip(read, self._shared_levels(item, read), changes or [None], strict=True)
        ]
        full = {rank: float(values[0]) for rank, values in scores.items()}
        return Explanation(item_id, self.ranker.rank_by, full, path, influences)

    @torch.no_grad()
    def _follow(
        self, histories: Sequence[np.ndarray], item: int, is_permitted: np.ndarray, num_branches: int
    ) -> tuple[dict[RankBy, np.ndarray], list[Fork]]:
        """Scores of the item after each history, (B,) each, and its path after the first."""
        ranker = self.ranker
        codes_CL = self._codes_of(item)
        divisor_C = from_host((codes_CL != EMPTY).sum(axis=1).astype(np.float32), ranker.model.device)
        divisor_C = divisor_C**ranker.sid_config.length_penalty
        allow = None if is_permitted.all() else AllowList(ranker.trie, np.flatnonzero(is_permitted))
        parts: list[dict[RankBy, Tensor]] = []
        path: list[Fork] = []
        for start in range(0, len(histories), HISTORIES_AT_ONCE):
            part = histories[start : start + HISTORIES_AT_ONCE]
            leaf_filter = LeafFilter.of(ranker.trie, None, None if allow is None else [allow] * len(part))
            codes_BCL = from_host(codes_CL, ranker.model.device).expand(len(part), -1, -1)
            mask = None if leaf_filter is None else leaf_filter.mask
            with ranker.one_at_a_time:
                prompts = pad_right(*ranker.encode(part))
                steps = list(follow(self._problem, *prompts, codes_BCL, ranker.prefix_ids, mask))
                scores_BC = steps[-1].scores / divisor_C
                parts.append(self._scores(scores_BC.amax(dim=1), steps[0].hidden.squeeze(1), item))
            if not path:
                best = int(scores_BC[0].argmax())
                path = self.forks.read(steps, codes_CL[best], best, is_permitted, num_branches)
        return {rank: torch.cat([part[rank] for part in parts]).cpu().numpy() for rank in parts[0]}, path

    def _scores(self, sid: Tensor, states: Tensor, item: int) -> dict[RankBy, Tensor]:
        """Complete the (B,) scores by the semantic ID by those by the item's row and by the mixture, if it has one."""
        if self._rows is None:
            return {"sid": sid}
        by_row = self._rows.log_probs(causal_lm(self.ranker.model), states)[:, item]
        weight = self.ranker.sid_config.mixture_weight
        return {"sid": sid, "items": by_row, "mixture": ((1 - weight) * sid.exp() + weight * by_row.exp()).log()}

    def _codes_of(self, item: int) -> np.ndarray:
        """(C, L) codes of the semantic IDs of an item."""
        table = self.ranker.table
        return table.all_codes[slice(*np.searchsorted(table.item_rows, [item, item + 1]))]

    def _shared_levels(self, item: int, others: Sequence[int]) -> list[int]:
        """Most codes, from the first, that a semantic ID of an item has in common with one of each other item."""
        own, shared = self._codes_of(item)[:, None], []
        for other in others:
            is_same = (own == self._codes_of(other)) & (own != EMPTY)
            shared.append(int(is_same.cumprod(axis=2).sum(axis=2).max()))
        return shared
