"""TableRecommender: a Recommender whose requests and answers are tables, a row per user.

Users stay in Arrow's columns from the file of requests to the file of answers; only item rows pass through the model.
A shard of `llmrec recommend --users`, a batch of Ray Data and a frame of Spark are answered by the same call.

Shapes: B users, n items of all answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from llmrec.configs.recommend import RecommendConfig
from llmrec.data.catalog import Catalog
from llmrec.data.columns import ALLOW, EXCLUDE, FALLBACK, HISTORY, HISTORY_TITLES, ITEMS, UNKNOWN
from llmrec.data.item_ids import TextOf
from llmrec.data.requests.answer_file import ITEM, POPULARITY
from llmrec.data.requests.id_lists import lists_of
from llmrec.data.requests.item_lists import complaint
from llmrec.data.requests.user_table import UserTable
from llmrec.decoding.answering import AnswerSize, BestItems
from llmrec.decoding.requests import NO_ROWS, ItemRequests
from llmrec.recommender import Recommender
from llmrec.serve.batch.permitted import REMEDY, permitted_by


class TableRecommender:
    """Answers to tables of users, by the options of `llmrec recommend`.

    Args:
        config: Checkpoint and options. Its `history`, `user`, `input`, `users` and `out` are not read.

    Raises:
        ValueError: If the checkpoint is not usable, the catalogue is of other items, a condition is malformed, or no
            item is left to recommend.

    Examples:
        Here `directory` is a checkpoint that `llmrec sft` wrote.

        >>> import pyarrow as pa
        >>> from llmrec import TableRecommender
        >>> from llmrec.configs import RecommendConfig
        >>> recommend = TableRecommender(RecommendConfig(model=directory, k=3, device="cpu"))
        >>> answers = recommend(pa.table({"user_id": [7, 8], "history": [["red"], ["red", "blue"]]}))
        >>> answers.column_names
        ['user_id', 'history', 'items', 'unknown', 'fallback']
        >>> [len(items) for items in answers["items"]]
        [3, 3]
    """

    def __init__(self, config: RecommendConfig):
        self.config = config
        self.size = AnswerSize.read(config.k, config.min_new, None, config.batch_size)
        catalog = None if config.catalog is None else Catalog.load(config.catalog)
        self.recommender = Recommender.from_pretrained(
            config.model, device=config.device, rank=config.rank, catalog=catalog
        )
        self.table = self.recommender.table
        permitted, _ = permitted_by(config, self.table, catalog)
        self.permitted = None if permitted is None else self.table.row_of.rows(permitted)
        self.item_ids = pa.array(self.table.item_ids, pa.string())
        self.title_of = None if catalog is None else catalog.title_of

    def __call__(self, users: pa.Table) -> pa.Table:
        """Answer the users of a table.

        Args:
            users: B rows with the columns of `llmrec recommend --users`.

        Returns:
            B rows: the further columns as they are, `history`, `history_titles` if there is a catalogue, `items`,
            `unknown` and `fallback`.

        Raises:
            ValueError: If it is no table, its columns are not those of requests, or a list names unknown items that are
                not skipped.
        """
        if not isinstance(users, pa.Table):
            raise ValueError(
                f"The table of users is a {type(users).__name__}; a pyarrow.Table is needed, which Ray Data gives with "
                'batch_format="pyarrow", and pyarrow.Table.from_pandas makes of a frame.'
            )
        try:
            asked = UserTable.of(users, self.table.row_of)
        except ValueError as error:
            raise ValueError(f"The table of users {error}.") from None
        count, problems = asked.problems(self.config.unknown)
        if count:
            places = [f"row {row + 1}, {problem}" for row, problem in problems]
            raise ValueError(f"{complaint(places, count, self.table.row_of)} {REMEDY}")
        order = np.argsort(-asked.history.lengths, kind="stable")  # a batch of equal lengths has the least padding
        best = self.recommender.answerer.answer(self._requests(asked, order), self.size)
        answers = [best[place] for place in np.argsort(order)]
        history, entries = asked.history, asked.history.ids.flatten()
        titles = {} if self.title_of is None else {HISTORY_TITLES: self._titles_of(self.title_of, entries)}
        own = {
            HISTORY: lists_of(history.lengths, entries),
            **{name: lists_of(history.lengths, of) for name, of in titles.items()},
            ITEMS: self._items(answers),
            UNKNOWN: history.unknown,
            FALLBACK: pa.array([POPULARITY if is_cold else None for is_cold in asked.is_cold], pa.string()),
        }
        return pa.table(dict(zip(asked.carried.column_names, asked.carried.columns, strict=True)) | own)

    def _requests(self, asked: UserTable, order: np.ndarray) -> ItemRequests:
        """Requests in item rows, in an order."""
        nobody = [NO_ROWS] * len(order)
        history = asked.history.known
        own = asked.lists[EXCLUDE].known if EXCLUDE in asked.lists else nobody
        seen = history if self.config.exclude_seen else nobody
        exclude = [np.concatenate(pair) for pair in zip(own, seen, strict=True)] if own is not nobody else seen
        allow: list[np.ndarray | None] = [self.permitted] * len(order)  # one object, which is resolved once
        if ALLOW in asked.lists:
            is_permitted = np.zeros(self.table.num_items, bool)
            is_permitted[slice(None) if self.permitted is None else self.permitted] = True
            lists = asked.lists[ALLOW]
            for user in np.flatnonzero(lists.is_given):
                allow[user] = lists.known[user][is_permitted[lists.known[user]]]
        parts = ([values[user] for user in order.tolist()] for values in (history, exclude, allow))
        return ItemRequests(next(parts), next(parts), NO_ROWS, next(parts), [], [])

    def _items(self, answers: Sequence[BestItems]) -> pa.ListArray:
        """Column of the answers."""
        rows = np.concatenate([answer.rows for answer in answers] or [NO_ROWS])
        scores = np.concatenate([answer.scores for answer in answers] or [NO_ROWS]).astype(np.float64)
        item_ids = self.item_ids.take(pa.array(rows))
        titles = self._titles_of(self.title_of, item_ids) if self.title_of else pa.nulls(len(rows), pa.string())
        items = pa.StructArray.from_arrays([item_ids, pa.array(scores), titles], fields=list(ITEM))
        return lists_of(np.array([len(answer.rows) for answer in answers], dtype=np.int64), items)

    @staticmethod
    def _titles_of(title_of: TextOf, item_ids: pa.StringArray) -> pa.StringArray:
        """Title of each item, null if the catalogue does not have it."""
        encoded = item_ids.dictionary_encode()
        titles = pa.array(title_of.of(encoded.dictionary.to_pylist()), pa.string())
        return titles.take(encoded.indices)
