"""Generation: a loaded model with its catalogue, which never changes; the service answers with one after the other."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from llmrec.configs.recommend import RankBy
from llmrec.configs.serve import ServeConfig
from llmrec.data.catalog import Catalog
from llmrec.data.item_ids import UNKNOWN_ROW, ItemIds, TextOf, Texts
from llmrec.decoding.answering import Answerer
from llmrec.decoding.ranker import SidRanker
from llmrec.model.checkpoint import FILE
from llmrec.recommender import Recommender
from llmrec.runtime.manifest import sha256_file
from llmrec.serve.page.item_index import ItemIndex

NO_TITLES = TextOf(ItemIds([]), Texts([]))
_numbers = itertools.count(1)


@dataclass(frozen=True, eq=False)
class Generation:
    """Model, catalogue and titles that answer a request. Two of them are equal only if they are one.

    Attributes:
        config: Options that it was loaded with.
        recommender: Answers histories.
        items: What a person is told of the items, and by which conditions they are filtered.
        model_sha256: Hash of llmrec.json, which holds the hashes of weights, tokenizer and SID table.
        catalog: Catalogue that says what may be shown; None if every item may.
        removed: item_ids that are not shown although the catalogue has them.
        number: Grows from one generation of a process to the next.
    """

    config: ServeConfig
    recommender: Recommender
    items: ItemIndex
    model_sha256: str
    catalog: Catalog | None = None
    removed: frozenset[str] = frozenset()
    number: int = field(default_factory=lambda: next(_numbers))

    @classmethod
    def load(cls, config: ServeConfig, removed: Collection[str] = ()) -> Generation:
        """Load a checkpoint and its catalogue.

        Args:
            config: Options of the service, of which those of the model are read.
            removed: item_ids that are not to be shown.

        Raises:
            ValueError: If either is not usable, they do not belong together, or nothing is left to be shown.
        """
        catalog = None if config.catalog is None else Catalog.load(config.catalog)
        recommender = Recommender.from_pretrained(
            config.model, config.device, config.precision, config.compile, rank=config.rank, catalog=catalog
        )
        assert recommender.directory is not None, "it was loaded from one"
        items = ItemIndex(recommender, catalog, config.pictures)
        sha256 = sha256_file(Path(recommender.directory) / FILE)
        whole = cls(config, recommender, items, sha256, catalog)
        return whole.without(removed) if removed else whole

    def without(self, item_ids: Collection[str]) -> Generation:
        """Make the generation that does not show some items; it shares the model.

        Raises:
            ValueError: If nothing is left to be shown.
        """
        recommender, removed = copy.copy(self.recommender), self.removed | set(item_ids)
        is_shown = recommender.answerer.is_shown.copy()
        rows = recommender.table.row_of.rows(list(removed))
        is_shown[rows[rows != UNKNOWN_ROW]] = False
        if not is_shown.any():
            raise ValueError("nothing would be left to recommend; remove fewer items, or stop the service.")
        recommender.answerer = Answerer(recommender.ranker, recommender.record, is_shown)
        return dataclasses.replace(self, recommender=recommender, removed=removed, number=next(_numbers))

    @property
    def sid_table_sha256(self) -> str:
        """Hash of the SID table."""
        return self.recommender.table.sha256

    @property
    def titles(self) -> TextOf:
        """Title of each item_id of the catalogue."""
        return NO_TITLES if self.catalog is None else self.catalog.title_of

    @cached_property
    def num_shown(self) -> int:
        """Number of items that may be shown."""
        return int(self.recommender.answerer.is_shown.sum())

    def ranked_by(self, rank: RankBy | None) -> Recommender:
        """Recommender that ranks by other scores of the same model; to be called on the thread of the model."""
        if rank is None or rank == self.recommender.ranker.rank_by:
            return self.recommender
        if rank not in self._by_rank:
            other, ranker = copy.copy(self.recommender), self.recommender.ranker
            other.ranker = SidRanker(
                ranker.model, ranker.table, ranker.sid_config, ranker.prefix_ids.tolist(), ranker.compiled, rank=rank
            )
            other.answerer = Answerer(other.ranker, other.record, self.recommender.answerer.is_shown)
            self._by_rank[rank] = other
        return self._by_rank[rank]

    @cached_property
    def _by_rank(self) -> dict[RankBy, Recommender]:
        return {}
