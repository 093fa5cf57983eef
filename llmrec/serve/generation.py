"""Generation: a loaded model with its catalogue, which never changes; the service answers with one after the other."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmrec.configs.serve import ServeConfig
from llmrec.data.catalog import Catalog
from llmrec.model.checkpoint import FILE
from llmrec.recommender import Recommender
from llmrec.runtime.manifest import sha256_file

_numbers = itertools.count(1)


@dataclass(frozen=True, eq=False)
class Generation:
    """Model, catalogue and titles that answer a request. Two of them are equal only if they are one.

    Attributes:
        recommender: Answers histories.
        model: Directory or Hub id that the checkpoint was loaded from.
        model_sha256: Hash of llmrec.json, which holds the hashes of weights, tokenizer and SID table.
        catalog: Catalogue that says what may be shown; None if every item may.
        titles: Title of each item_id of the catalogue.
        removed: item_ids that are not shown although the catalogue has them.
        number: 1 for the first generation of this process, and so on.
        loaded_at: Seconds since 1970.
    """

    recommender: Recommender
    model: str
    model_sha256: str
    catalog: Catalog | None = None
    titles: Mapping[str, str] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()
    number: int = field(default_factory=lambda: next(_numbers))
    loaded_at: float = field(default_factory=time.time)

    @classmethod
    def load(cls, config: ServeConfig) -> Generation:
        """Load a checkpoint and its catalogue.

        Args:
            config: Options of the service, of which those of the model are read.

        Raises:
            ValueError: If either is not usable, or they do not belong together.
        """
        catalog = None if config.catalog is None else Catalog.load(config.catalog)
        recommender = Recommender.from_pretrained(
            config.model, config.device, config.precision, rank=config.rank, catalog=catalog
        )
        titles = {} if catalog is None else dict(zip(catalog.item_ids, catalog.titles, strict=True))
        assert recommender.directory is not None, "it was loaded from one"
        return cls(recommender, config.model, sha256_file(Path(recommender.directory) / FILE), catalog, titles)

    @property
    def sid_table_sha256(self) -> str:
        """Hash of the SID table."""
        return self.recommender.table.sha256

    def described_items(self, item_ids: Sequence[str], scores: Sequence[float]) -> list[dict[str, object]]:
        """Items of an answer, with their scores and titles."""
        return [
            {"item_id": item_id, "score": score, "title": self.titles.get(item_id)}
            for item_id, score in zip(item_ids, scores, strict=True)
        ]
