"""Recommender: a checkpoint that answers, with external item ids in and out.

Every answer is an item: decoding runs under the trie of the SID table, and filters (seen items, exclusions,
allow-lists) are masks over that trie at request time.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from huggingface_hub import HfApi
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.decoding.ranker import SidRanker
from llmrec.decoding.trie.allow_list import resolve_allow_lists
from llmrec.evaluation.ranking import UNFILLED
from llmrec.model.backbone import check_rows
from llmrec.model.card import write_card
from llmrec.model.checkpoint import SidConfig, load_model, load_tokenizer, resolve, save_model
from llmrec.runtime.device import resolve_device, resolve_dtype
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.table import SidTable


class Recommender:
    """Model, tokenizer and SID table of a checkpoint.

    Args:
        model: Extended causal LM, on the device that it shall run on.
        tokenizer: Its tokenizer.
        table: Semantic IDs of the catalogue.
        sid_config: Vocabulary, prompt and scoring that belong to the weights.
        details: How the checkpoint was made; for the model card.
        compiled: Whether `torch.compile` fuses the model's layers; see `llmrec.decoding.decoder`.

    Raises:
        ValueError: If the tokenizer, table or model do not belong together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        table: SidTable,
        sid_config: SidConfig,
        details: JsonObject | None = None,
        compiled: bool = False,
    ):
        sid_config.vocabulary.check(tokenizer)
        check_rows(model, sid_config.vocabulary.token_range.stop)
        self.model, self.tokenizer, self.table = model.eval(), tokenizer, table
        self.sid_config, self.details = sid_config, details or {}
        self.ranker = SidRanker(self.model, table, sid_config, sid_config.prompt.prefix(tokenizer), compiled)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: str = "auto",
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        compiled: bool = False,
    ) -> Recommender:
        """Load a checkpoint directory or Hub id.

        Args:
            source: What `llmrec sft`, `save_pretrained` or `push_to_hub` wrote.
            device: auto, cpu or cuda.
            precision: Type of the weights; auto is bfloat16 on a GPU that has it.
            compiled: Whether `torch.compile` fuses the model's layers; worth its first 20 seconds where thousands of
                users follow.

        Raises:
            ValueError: If it cannot be found, was changed, its parts do not belong together, or the device or precision
                is unknown.
        """
        path = resolve(source)
        sid_config, table, details = SidConfig.load(path)
        where = resolve_device(device)
        model = load_model(path, dtype=resolve_dtype(precision, where)).to(where)
        return cls(model, load_tokenizer(path), table, sid_config, details, compiled)

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        exclude: Sequence[Sequence[str] | None] | Literal["seen"] | None = "seen",
        allow: Sequence[str] | Sequence[Sequence[str] | None] | None = None,
        num_beams: int | None = None,
        batch_size: int = 32,
    ) -> tuple[list[list[str]], list[list[float]]]:
        """The k most likely next items of each history.

        Args:
            histories: item_ids of each user, oldest first, at least one; the latest `max_history` are read.
            k: Items per user.
            exclude: item_ids barred for each user (None: none), `seen` for the items of the history, or None.
            allow: item_ids that answers are restricted to: one list for all users, or one per user (None: any).
            num_beams: Beam width; min(items, max(50, 5k)) when left out.
            batch_size: Users decoded together.

        Returns:
            item_ids and scores (log-probabilities) of each user, best first. A list is shorter than k where fewer
            items are allowed. Items that share a SID share its score and follow one another.

        Raises:
            ValueError: If a history is empty, an item is unknown, or the lists differ in length.
        """
        history_rows = self.table.find_items({f"history {i}": ids for i, ids in enumerate(histories)})
        excluded = history_rows if exclude == "seen" else self._lists(exclude, "exclude", len(histories))
        if excluded is not None:
            excluded = [np.empty(0, np.int64) if rows is None else rows for rows in excluded]
        shared = allow is not None and all(isinstance(item, str) for item in allow)
        if shared and not allow:
            raise ValueError("allow is empty, so that no item can be recommended; leave it out to allow every item.")
        allowed = self._lists([allow] * len(histories) if shared else allow, "allow", len(histories))
        allowed = allowed and resolve_allow_lists(self.ranker.trie, allowed)
        parts = [slice(start, start + batch_size) for start in range(0, len(histories), batch_size)]
        batches = ((history_rows[part], excluded and excluded[part], allowed and allowed[part]) for part in parts)
        item_ids, scores = [], []
        for ranking in self.ranker.rank_batches(batches, k, num_beams):
            for items, found in zip(ranking.items[:, :k], ranking.scores[:, :k], strict=True):
                item_ids.append([self.table.item_ids[item] for item in items if item != UNFILLED])
                scores.append(found[items != UNFILLED].tolist())
        return item_ids, scores

    def save_pretrained(self, directory: str | Path, metrics: str | Path | None = None) -> None:
        """Write a checkpoint that `from_pretrained` and plain transformers load.

        Args:
            directory: Where to; created if absent.
            metrics: metrics.json of `llmrec evaluate`, for the model card.
        """
        self._save(directory, Path(directory).name, metrics)

    def push_to_hub(self, repo_id: str, metrics: str | Path | None = None, private: bool = False) -> str:
        """Upload weights, tokenizer, SID table, llmrec.json and model card as one commit.

        Args:
            repo_id: owner/name on the Hub.
            metrics: metrics.json of `llmrec evaluate`, for the model card.
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

    def _lists(self, lists: Sequence[Sequence[str] | None] | None, what: str, count: int) -> list | None:
        """Item rows of each user's list; one array for all users who were given the same list."""
        if lists is None:
            return None
        if isinstance(lists, str) or len(lists) != count:
            raise ValueError(f"{what} needs one list of item_ids for each of the {count} histories.")
        distinct: dict[int, tuple[str, Sequence[str]]] = {}
        for i, ids in enumerate(lists):
            if ids is not None:
                distinct.setdefault(id(ids), (f"{what} {i}", ids))
        rows = dict(zip(distinct, self.table.find_items(dict(distinct.values())), strict=True))
        return [None if ids is None else rows[id(ids)] for ids in lists]
