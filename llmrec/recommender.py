"""Recommender: a checkpoint that answers, with external item ids in and out.

Every answer is an item: decoding runs under the trie of the SID table, and filters (seen items, exclusions,
allow-lists, a given catalogue) are masks over that trie at request time.

Shapes: B histories.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.configs.recommend import RankBy
from llmrec.data.catalog import Catalog
from llmrec.data.requests.item_lists import Unknown
from llmrec.decoding.answering import Answerer, Answers, AnswerSize
from llmrec.decoding.grounding.ranker import GroundedRanker
from llmrec.decoding.paths.explanation import Explainer, Explanation
from llmrec.decoding.ranker import SidRanker
from llmrec.decoding.requests import read_requests, whole_number
from llmrec.model.backbone import check_rows, moved
from llmrec.model.card import write_card
from llmrec.model.checkpoint import SidConfig, load_model, load_tokenizer, resolve, save_model
from llmrec.model.sharing.metadata import read_metrics
from llmrec.model.sharing.push import push_checkpoint
from llmrec.runtime import disk
from llmrec.runtime.device import resolve_device, resolve_dtype
from llmrec.runtime.hub.repository import check_repo_id
from llmrec.runtime.manifest import JsonObject
from llmrec.runtime.model_files import check_prompt
from llmrec.sid.catalogs.catalog_record import CatalogRecord
from llmrec.sid.catalogs.given_catalog import GivenCatalog, match_catalog
from llmrec.sid.table import SidTable


class Recommender:
    """Model, tokenizer and SID table of a checkpoint, which answer histories.

    Args:
        model: Extended causal LM, on the device that it runs on.
        tokenizer: Tokenizer of the model.
        table: Semantic IDs of the catalogue.
        sid_config: Vocabulary, prompt and scoring that belong to the weights.
        details: Facts about the making of the checkpoint, for the model card.
        compiled: Fuse the model's layers by `torch.compile`; see `llmrec.decoding.decoder`.
        rank: Rank by `sid` (under a beam), or, if the model has item rows, by `items` (one pass) or a `mixture`.
        record: Record of the catalogue that the model was trained on, which users without a history need.
        given: Catalogue that says which items may be shown, as `match_catalog` returns it; all when left out.

    Attributes:
        directory: Directory that `from_pretrained` has read the checkpoint from; None otherwise.

    Raises:
        ValueError: If the tokenizer, table or model do not belong together, or `rank` needs item rows that are absent.

    Examples:
        `model`, `tokenizer`, `table` and `sid_config` belong to a checkpoint; `from_pretrained` reads all of them.

        >>> from llmrec import Recommender
        >>> recommender = Recommender(model, tokenizer, table, sid_config)
        >>> item_ids, scores = recommender.recommend([["red"], ["red", "blue"]], k=3)
        >>> [len(answer) for answer in item_ids]
        [3, 3]
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        table: SidTable,
        sid_config: SidConfig,
        details: JsonObject | None = None,
        compiled: bool = False,
        rank: RankBy = "sid",
        record: CatalogRecord | None = None,
        given: GivenCatalog | None = None,
    ):
        sid_config.vocabulary.check(tokenizer)
        check_rows(model, sid_config.vocabulary.num_rows)
        self.model, self.tokenizer, self.table = model.eval(), tokenizer, table
        self.sid_config, self.details = sid_config, details or {}
        self.record, self.given = record, given
        self.directory: Path | None = None
        prefix_ids = sid_config.prompt.prefix(tokenizer)
        if rank == "ground":
            popularity = None if record is None else record.train_counts
            self.ranker: SidRanker = GroundedRanker(self.model, table, sid_config, prefix_ids, popularity)
        else:
            self.ranker = SidRanker(self.model, table, sid_config, prefix_ids, compiled, rank=rank)
        self.answerer = Answerer(self.ranker, record, None if given is None else given.is_shown)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: str = "auto",
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        compiled: bool = False,
        rank: RankBy = "sid",
        catalog: str | Path | Catalog | None = None,
        length_penalty: float | None = None,
    ) -> Recommender:
        """Load a checkpoint from a directory or the Hub.

        Args:
            source: Path or Hub id of a checkpoint that `llmrec sft`, `save_pretrained` or `push_to_hub` wrote; on the
                Hub, `owner/name@revision` is the state of a branch, tag or commit.
            device: auto, cpu or cuda.
            precision: Type of the weights; auto is bfloat16 on a GPU that has it, and float32 elsewhere.
            compiled: Fuse the model's layers by `torch.compile`; its first 20 seconds pay off if thousands of users
                follow.
            rank: Scores to rank by: sid, items, mixture or ground.
            catalog: Catalogue of today, or its directory: only items that it has are recommended. `given` tells what
                it has in common with the checkpoint.
            length_penalty: Power of its number of tokens that the score of an item is divided by; the checkpoint's own
                when left out.

        Raises:
            ValueError: If the checkpoint cannot be found, was changed, or its parts do not belong together, the device
                or precision is unknown, `rank` needs item rows that are absent, or `catalog` is of other items.

        Examples:
            Here `directory` is a checkpoint that `llmrec sft` wrote.

            >>> from llmrec import Recommender
            >>> recommender = Recommender.from_pretrained(directory, device="cpu")
            >>> recommender.table.num_items
            6
        """
        path = resolve(source)
        sid_config, table, details = SidConfig.load(path)
        if length_penalty is not None:
            sid_config = dataclasses.replace(sid_config, length_penalty=length_penalty)
        sid_config.vocabulary.check_rank(rank)  # before the weights are read
        record, given = CatalogRecord.load(path, details, table.num_items), None
        if catalog is not None:
            catalog = catalog if isinstance(catalog, Catalog) else Catalog.load(catalog)
            given = match_catalog(catalog, table, record, details)
            record = record or given.record
        where = resolve_device(device)
        model = moved(load_model(path, dtype=resolve_dtype(precision, where)), where)
        tokenizer = load_tokenizer(path)
        check_prompt(path, sid_config.prompt.prefix(tokenizer))
        recommender = cls(model, tokenizer, table, sid_config, details, compiled, rank, record, given)
        recommender.directory = path
        return recommender

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        exclude: Sequence[str] | Sequence[Sequence[str] | None] | Literal["seen"] | None = "seen",
        allow: Sequence[str] | Sequence[Sequence[str] | None] | None = None,
        num_beams: int | None = None,
        batch_size: int = 32,
        unknown: Unknown = "error",
        min_new: int = 0,
    ) -> Answers:
        """Recommend the k most likely next items of each history.

        Lists may be tuples, arrays, or columns of pandas, polars or pyarrow.

        Args:
            histories: B lists of item_ids, oldest first; the latest `max_history` are read. A user without any is given
                the items with most training interactions, scored by the log of their share.
            k: Number of items per user, at least 1.
            exclude: "seen" bars the items of each history, one list of item_ids bars these beside them for all users,
                B lists bar exactly these (None: nothing), and None bars nothing.
            allow: item_ids that answers are restricted to: one list for all users, or B lists, None for a user without
                a restriction.
            num_beams: Beam width, at least k; min(items, max(50, 5k)) when left out, and more if items have several
                SIDs. Ranking by `items` has no beams.
            batch_size: Number of users decoded together.
            unknown: `error` refuses item_ids that the checkpoint does not know, `skip` leaves them out.
            min_new: Least number of the k items that have no training interactions, if as many are allowed; they take
                the last places.

        Returns:
            B lists of item_ids and B lists of scores (log-probabilities), best first, which unpack as a pair; beside
            them, which users got popular items and which item_ids were unknown (see `Answers`). A list is shorter than
            k if fewer items are allowed. Items that share a SID share its score and follow one another.

        Raises:
            ValueError: If an item is unknown, the lists differ in length, or a value is not of its kind; before the
                model runs.

        Examples:
            `recommender` is a Recommender of six items.

            >>> item_ids, scores = recommender.recommend([["red", "green"]], k=10)
            >>> sorted(item_ids[0])  # without the items of the history
            ['blue', 'gold', 'grey', 'pink']
            >>> sorted(recommender.recommend([["red", "green"]], k=10, exclude=["pink"])[0][0])
            ['blue', 'gold', 'grey']
            >>> recommender.recommend([["red"]], k=2, exclude=None, allow=["red"])[0]
            [['red']]
        """
        size = AnswerSize.read(k, min_new, num_beams, batch_size)
        asked = read_requests(self.table, histories, exclude, allow, unknown)
        return Answers.of(self.answerer.answer(asked, size), asked, self.table)

    def explain(
        self,
        history: Sequence[str],
        item_id: str,
        exclude: Sequence[str] | Literal["seen"] | None = "seen",
        allow: Sequence[str] | None = None,
        num_branches: int = 4,
        unknown: Unknown = "error",
    ) -> Explanation:
        """Explain why an item is recommended to one user.

        Args:
            history: item_ids, oldest first.
            item_id: The item; it need not be among the best.
            exclude: As `recommend` takes it for all users, and so are `allow` and `unknown`.
            allow: item_ids that answers are restricted to.
            num_branches: Number of other codes that are listed beside each code of the item.
            unknown: `error` refuses unknown item_ids, `skip` leaves them out.

        Returns:
            Scores of the item, its path through the trie, and the change that each item of the history makes.

        Raises:
            ValueError: If an item is unknown or could not be recommended, or the history is empty.

        Examples:
            `recommender` is a Recommender of six items.

            >>> why = recommender.explain(["red", "green"], "gold")
            >>> [influence.item_id for influence in why.history], len(why.path)
            (['red', 'green'], 3)
        """
        asked = read_requests(self.table, [history], exclude, allow, unknown)
        return Explainer(self.answerer).explain(asked, item_id, whole_number("num_branches", num_branches, 0))

    def save_pretrained(self, directory: str | Path, metrics: str | Path | None = None) -> None:
        """Write a checkpoint that `from_pretrained` and plain transformers load.

        Args:
            directory: Directory to write; created if absent.
            metrics: Path of metrics.json of `llmrec evaluate`, for the model card.

        Examples:
            `recommender` is a Recommender.

            >>> import os, tempfile
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     recommender.save_pretrained(directory)
            ...     sorted(name for name in os.listdir(directory) if "config" not in name and "token" not in name)
            ['README.md', 'llmrec.json', 'model.safetensors', 'sid_table.parquet']
        """
        measured = None if metrics is None else read_metrics(metrics)
        self._save(directory)
        write_card(directory, Path(directory).name, measured)

    def push_to_hub(
        self, repo_id: str, metrics: str | Path | None = None, private: bool = True, license: str | None = None
    ) -> str:
        """Upload weights, tokenizer, SID table, llmrec.json and model card as one commit.

        Args:
            repo_id: owner/name on the Hub.
            metrics: Path of metrics.json of `llmrec evaluate`, for the model card.
            private: Visibility of a repository that is created; False shows the item ids and the model to everybody. A
                repository that exists keeps its own.
            license: Id of a licence that the model card claims, such as apache-2.0; none when left out.

        Returns:
            Address of the commit.

        Raises:
            ConnectionError: If the Hub cannot be reached, or refuses.
            OSError: If the disk for temporary files is full.
            ValueError: If `repo_id` is no name of a repository, metrics.json cannot be read, or the Hub does not know
                the licence.
        """
        check_repo_id(repo_id)
        measured = None if metrics is None else read_metrics(metrics)
        with tempfile.TemporaryDirectory() as directory, disk.naming(Path(directory)):
            self._save(directory)
            return push_checkpoint(Path(directory), repo_id, measured, private, license).address

    def _save(self, directory: str | Path) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        save_model(self.model, self.tokenizer, directory)
        details = self.details | (self.record.save(directory) if self.record else {})
        self.sid_config.save(directory, self.table, details, self.tokenizer)
