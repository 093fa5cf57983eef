"""Recommender: a checkpoint that answers, with external item ids in and out.

Every answer is an item: decoding runs under the trie of the SID table, and filters (seen items, exclusions,
allow-lists) are masks over that trie at request time.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import HfApi
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.backbone import check_rows
from llmrec.card import write_card
from llmrec.checkpoint import Binding, load_model, load_tokenizer, resolve, save_model
from llmrec.decoder import SidDecoder
from llmrec.device import from_host, resolve_device, resolve_dtype, to_host
from llmrec.leaf_filter import AllowList, LeafFilter, resolved
from llmrec.prompts import HistoryEncoder
from llmrec.ranking import UNFILLED, Ranking, default_num_beams
from llmrec.sid import SidTable
from llmrec.trie import SidTrie

# Item rows of histories, what is barred for each user, and what each is restricted to; the last two may be left out.
Batch = Sequence[Sequence[np.ndarray] | None]


class Recommender:
    """Model, tokenizer and SID table of a checkpoint.

    Args:
        model: Extended causal LM, on the device that it shall run on.
        tokenizer: Its tokenizer.
        table: Semantic IDs of the catalogue.
        binding: Vocabulary, prompt and scoring that belong to the weights.
        details: How the checkpoint was made; for the model card.
        compiled: Whether `torch.compile` fuses the model's layers; see `llmrec.decoder`.

    Raises:
        ValueError: If the tokenizer, table or model do not belong together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        table: SidTable,
        binding: Binding,
        details: dict[str, Any] | None = None,
        compiled: bool = False,
    ):
        binding.vocabulary.check(tokenizer)
        check_rows(model, binding.vocabulary.token_range.stop)
        self.model, self.tokenizer, self.table = model.eval(), tokenizer, table
        self.binding, self.details = binding, details or {}
        self.encoder = HistoryEncoder(table, binding.vocabulary)
        self.trie = SidTrie(table, device=model.device)
        self._prefix_ids = torch.tensor(binding.prompt.prefix(tokenizer), device=model.device)
        self._compiled = compiled
        self._decoders: dict[int, SidDecoder] = {}  # by num_beams
        self._is_one_to_one = self.trie.leaf_starts is None and self.trie.num_leaves == table.num_items

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
        binding, table, details = Binding.load(path)
        where = resolve_device(device)
        model = load_model(path, dtype=resolve_dtype(precision, where)).to(where)
        return cls(model, load_tokenizer(path), table, binding, details, compiled)

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
        allowed = allowed and resolved(self.trie, allowed)
        parts = [slice(start, start + batch_size) for start in range(0, len(histories), batch_size)]
        batches = ((history_rows[part], excluded and excluded[part], allowed and allowed[part]) for part in parts)
        item_ids, scores = [], []
        for ranking in self.rank_batches(batches, k, num_beams):
            for items, found in zip(ranking.items[:, :k], ranking.scores[:, :k], strict=True):
                item_ids.append([self.table.item_ids[item] for item in items if item != UNFILLED])
                scores.append(found[items != UNFILLED].tolist())
        return item_ids, scores

    def rank(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        exclude: Sequence[np.ndarray] | None = None,
        allow: Sequence[np.ndarray | AllowList | None] | None = None,
        num_beams: int | None = None,
    ) -> Ranking:
        """`recommend` for item rows, as one batch and with tie groups.

        Args:
            histories: Item rows of each user, oldest first.
            k: Items wanted; sets the default beam width.
            exclude: Item rows barred for each user.
            allow: Item rows that each user is restricted to; None for any.
            num_beams: Beam width; min(items, max(50, 5k)) when left out.

        Returns:
            Ranking of B rows; all items of every beam are listed.

        Raises:
            ValueError: If `k` is not positive or exceeds `num_beams`, or a history is empty.
        """
        return next(self.rank_batches([(histories, exclude, allow)], k, num_beams))

    def rank_batches(self, batches: Iterable[Batch], k: int, num_beams: int | None = None) -> Iterator[Ranking]:
        """`rank` for batch after batch; the next one is under way on the device while an answer is read.

        Args:
            batches: Histories, what to exclude and what to allow, as `rank` takes them; the last two may be left out.
            k: Items wanted; sets the default beam width.
            num_beams: Beam width; min(items, max(50, 5k)) when left out.

        Yields:
            Rankings in the order of the batches.

        Raises:
            ValueError: As `rank` does.
        """
        if k < 1:
            raise ValueError(f"k is {k}; at least 1 is needed.")
        if num_beams is not None and num_beams < min(k, self.trie.num_leaves):
            raise ValueError(f"num_beams is {num_beams}, fewer than k = {k}; give {k} or more, or leave it out.")
        num_beams = num_beams or default_num_beams(self.table.num_items, [k])
        decoder = self._decoder(min(num_beams, self.trie.num_leaves))
        answer = None
        for batch in batches:
            following = self._start(decoder, *batch)
            if answer is not None:
                yield answer()
            answer = following
        if answer is not None:
            yield answer()

    def _decoder(self, num_beams: int) -> SidDecoder:
        if num_beams not in self._decoders:
            self._decoders[num_beams] = SidDecoder(
                self.model,
                self.trie,
                self.binding.vocabulary,
                num_beams,
                self.binding.normalize_over,
                self._prefix_ids,
                compiled=self._compiled,
            )
        return self._decoders[num_beams]

    def _start(
        self,
        decoder: SidDecoder,
        histories: Sequence[np.ndarray],
        exclude: Sequence[np.ndarray] | None = None,
        allow: Sequence[np.ndarray | AllowList | None] | None = None,
    ) -> Callable[[], Ranking]:
        """Queue a batch on the device; what is returned waits for its ranking."""
        allow = None if allow is None else resolved(self.trie, allow)
        leaf_filter = LeafFilter(self.trie, exclude, allow) if exclude is not None or allow is not None else None
        beams = decoder(*self.encode(histories), leaf_filter)
        # Read off the codes that were decoded, so that a leaf which does not own them would show in the metrics.
        is_item = (beams.codes == self.trie.codes_of(beams.leaves)).all(dim=2) & (beams.leaves >= 0)
        invalid = (beams.scores.isfinite() & ~is_item).sum(dim=1)
        arrays = to_host([beams.leaves, beams.scores, invalid])
        return lambda: self._ranking(*arrays(), exclude, allow)

    def encode(self, histories: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask of histories, (B, T) each, padded on the right, without the instruction.

        Raises:
            ValueError: If a history is empty.
        """
        empty = [i for i, history in enumerate(histories) if len(history) == 0]
        if empty:
            raise ValueError(f"History {empty[0]} is empty; at least one item is needed to recommend from.")
        tokens = [self.encoder.encode_history(history[-self.binding.max_history :]) for history in histories]
        lengths = np.array([len(row) for row in tokens])
        is_token = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(is_token.shape, self.tokenizer.pad_token_id)
        ids[is_token] = np.concatenate(tokens)
        return from_host(ids, self.model.device), from_host(is_token.astype(np.int64), self.model.device)

    def save_pretrained(self, directory: str | Path, metrics: str | Path | None = None) -> None:
        """Write a checkpoint that `from_pretrained` and plain transformers load.

        Args:
            directory: Where to; created if absent.
            metrics: metrics.json of `llmrec evaluate`, for the model card.
        """
        self._save(directory, Path(directory).name, metrics)

    def push_to_hub(self, repo_id: str, metrics: str | Path | None = None, private: bool = False) -> str:
        """Upload weights, tokenizer, SID table, binding and model card as one commit.

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
        self.binding.save(directory, self.table, self.details)
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

    def _ranking(
        self,
        leaves: np.ndarray,
        scores: np.ndarray,
        invalid: np.ndarray,
        exclude: Sequence[np.ndarray] | None,
        allow: Sequence[AllowList | None] | None,
    ) -> Ranking:
        if self._is_one_to_one:
            items = np.where(leaves < 0, UNFILLED, self.trie.leaf_items[leaves])
            groups = np.broadcast_to(np.arange(leaves.shape[1]), leaves.shape)
            return Ranking(items, groups, scores, invalid)
        rows = [list(self._expand(row, exclude and exclude[i], allow and allow[i])) for i, row in enumerate(leaves)]
        width = max(1, *map(len, rows))
        items, groups = np.full((2, len(rows), width), UNFILLED)
        found = np.full((len(rows), width), -np.inf)
        for i, row in enumerate(rows):
            for slot, (item, beam) in enumerate(row):
                items[i, slot], groups[i, slot], found[i, slot] = item, beam, scores[i, beam]
        return Ranking(items, groups, found, invalid)

    def _expand(
        self, leaves: np.ndarray, exclude: np.ndarray | None, allow: AllowList | None
    ) -> Iterator[tuple[int, int]]:
        """Items of the beams with the beam each came from; an item with several SIDs counts at its best one."""
        barred = set() if exclude is None else set(exclude.tolist())
        for beam, leaf in enumerate(leaves):
            for item in self.trie.items(leaf).tolist() if leaf >= 0 else ():
                if item not in barred and (allow is None or item in allow):
                    barred.add(item)
                    yield item, beam
