"""Recommender: a checkpoint that answers, with external item ids in and out.

Every answer is an item: decoding runs under the trie of the SID table, and filters (seen items, exclusions,
allow-lists) are masks over that trie at request time.

Shapes: B histories.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.configs.recommend import RankBy
from llmrec.decoding.ranker import SidRanker
from llmrec.decoding.requests import read_requests, whole_number
from llmrec.decoding.trie.allow_list import resolve_allow_lists
from llmrec.evaluation.ranking import UNFILLED
from llmrec.model.backbone import check_rows, moved
from llmrec.model.card import write_card
from llmrec.model.checkpoint import SidConfig, load_model, load_tokenizer, resolve, save_model
from llmrec.runtime.device import resolve_device, resolve_dtype
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.item_tokens import ItemTokens
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
    ):
        sid_config.vocabulary.check(tokenizer)
        check_rows(model, sid_config.vocabulary.added_range.stop)
        self.model, self.tokenizer, self.table = model.eval(), tokenizer, table
        self.sid_config, self.details = sid_config, details or {}
        prefix_ids = sid_config.prompt.prefix(tokenizer)
        self.ranker = SidRanker(self.model, table, sid_config, prefix_ids, compiled, rank=rank)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: str = "auto",
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        compiled: bool = False,
        rank: RankBy = "sid",
    ) -> Recommender:
        """Load a checkpoint from a directory or the Hub.

        Args:
            source: Path or Hub id of a checkpoint that `llmrec sft`, `save_pretrained` or `push_to_hub` wrote.
            device: auto, cpu or cuda.
            precision: Type of the weights; auto is bfloat16 on a GPU that has it, and float32 elsewhere.
            compiled: Fuse the model's layers by `torch.compile`; its first 20 seconds pay off if thousands of users
                follow.
            rank: Scores to rank by: sid, items or mixture.

        Raises:
            ValueError: If the checkpoint cannot be found, was changed, or its parts do not belong together, the device
                or precision is unknown, or `rank` needs item rows that are absent.

        Examples:
            Here `directory` is a checkpoint that `llmrec sft` wrote.

            >>> from llmrec import Recommender
            >>> recommender = Recommender.from_pretrained(directory, device="cpu")
            >>> recommender.table.num_items
            6
        """
        path = resolve(source)
        sid_config, table, details = SidConfig.load(path)
        if rank != "sid":
            ItemTokens.required(sid_config.vocabulary.items)  # before the weights are read
        where = resolve_device(device)
        model = moved(load_model(path, dtype=resolve_dtype(precision, where)), where)
        return cls(model, load_tokenizer(path), table, sid_config, details, compiled, rank)

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        exclude: Sequence[str] | Sequence[Sequence[str] | None] | Literal["seen"] | None = "seen",
        allow: Sequence[str] | Sequence[Sequence[str] | None] | None = None,
        num_beams: int | None = None,
        batch_size: int = 32,
    ) -> tuple[list[list[str]], list[list[float]]]:
        """Recommend the k most likely next items of each history.

        Lists may be tuples, arrays, or columns of pandas, polars or pyarrow.

        Args:
            histories: B lists of item_ids, oldest first, of at least one item; the latest `max_history` are read.
            k: Number of items per user, at least 1.
            exclude: "seen" bars the items of each history, one list of item_ids bars these beside them for all users,
                B lists bar exactly these (None: nothing), and None bars nothing.
            allow: item_ids that answers are restricted to: one list for all users, or B lists, None for a user without
                a restriction.
            num_beams: Beam width, at least k; min(items, max(50, 5k)) when left out, and more if items have several
                SIDs. Ranking by `items` has no beams.
            batch_size: Number of users decoded together.

        Returns:
            B lists of item_ids and B lists of scores (log-probabilities), best first. A list is shorter than k if fewer
            items are allowed. Items that share a SID share its score and follow one another.

        Raises:
            ValueError: If a history is empty, an item is unknown, the lists differ in length, or a value is not of its
                kind; before the model runs.

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
        k, batch_size = whole_number("k", k, 1), whole_number("batch_size", batch_size, 1)
        num_beams = None if num_beams is None else whole_number("num_beams", num_beams, 0)
        asked = read_requests(self.table, histories, exclude, allow, "error")
        allowed = resolve_allow_lists(self.ranker.trie, asked.allow)
        parts = [slice(start, start + batch_size) for start in range(0, len(asked.histories), batch_size)]
        batches = ((asked.histories[part], asked.exclude[part], allowed[part]) for part in parts)
        item_ids, scores = [], []
        for ranking in self.ranker.rank_batches(batches, k, num_beams):
            for items, item_scores in zip(ranking.items[:, :k], ranking.scores[:, :k], strict=True):
                item_ids.append([self.table.item_ids[item] for item in items if item != UNFILLED])
                scores.append(item_scores[items != UNFILLED].tolist())
        return item_ids, scores

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
        self._save(directory, Path(directory).name, metrics)

    def push_to_hub(self, repo_id: str, metrics: str | Path | None = None, private: bool = False) -> str:
        """Upload weights, tokenizer, SID table, llmrec.json and model card as one commit.

        Args:
            repo_id: owner/name on the Hub.
            metrics: Path of metrics.json of `llmrec evaluate`, for the model card.
            private: Visibility of a repository that is created.

        Returns:
            Address of the commit.
        """
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as directory:
            self._save(directory, repo_id, metrics)
            return str(api.upload_folder(repo_id=repo_id, folder_path=directory, commit_message="Upload with llmrec"))

    def _save(self, directory: str | Path, name: str, metrics: str | Path | None) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        save_model(self.model, self.tokenizer, directory)
        self.sid_config.save(directory, self.table, self.details)
        write_card(directory, name, None if metrics is None else json.loads(Path(metrics).read_text(encoding="utf-8")))
