"""ExportedFolder: prompts of histories and items of answers, for whoever asks an engine that serves an exported model.

Shapes: R answers, L levels.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Sequence
from pathlib import Path

from llmrec.serve.engines.mask import SidMask, rectangle
from llmrec.serve.engines.settings import ITEMS, TRIE, read_answers


class ExportedFolder:
    """A folder that `llmrec export --to vllm` wrote.

    Args:
        directory: The folder.

    Attributes:
        settings: Content of sid.json.
        mask: Legal tokens of answers, on the CPU.
        tokens_of: Tokens of each item in a prompt, by item_id.
        item_ids: All item_ids, by item row.

    Raises:
        ValueError: If a file is absent or damaged, or files do not belong together.
    """

    def __init__(self, directory: str | Path):
        self.settings, parts, words = read_answers(directory)
        self.mask, self._owners = SidMask.of(self.settings, parts, words), parts.owners
        path = Path(directory) / ITEMS
        try:
            self.tokens_of: dict[str, list[int]] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"'{path}' cannot be read ({error}); run `llmrec export` again.") from error
        self.item_ids = list(self.tokens_of)
        if len(self.item_ids) != self._owners.num_items:
            raise ValueError(
                f"'{path}' has {len(self.item_ids)} items, {TRIE} {self._owners.num_items}; run `llmrec export` again."
            )

    def prompt(self, history: Sequence[str]) -> list[int]:
        """Write a history as the model was trained to read it.

        Args:
            history: item_ids, oldest first; the latest `max_history` are read.

        Returns:
            Token ids.

        Raises:
            ValueError: If the history is empty, or an item is unknown.
        """
        unknown = [item_id for item_id in history if item_id not in self.tokens_of]
        if unknown or not history:
            problem = f"has {len(unknown)} unknown item_ids, first '{unknown[0]}'" if unknown else "is empty"
            raise ValueError(f"The history {problem}; give item_ids of {ITEMS}, at least one.")
        items = (self.tokens_of[item_id] for item_id in history[-self.settings.max_history :])
        return [*self.settings.prefix, *itertools.chain.from_iterable(items)]

    def complete(self, answers: Collection[tuple[int, ...]]) -> set[tuple[int, ...]]:
        """Find the complete SIDs of the trie among answers, which are token ids without end-of-sequence."""
        given = list(answers)
        ranks = self.mask.leaves(*rectangle(given, self.mask.trie.num_levels)).tolist()
        return {tokens for tokens, rank in zip(given, ranks, strict=True) if rank >= 0}

    def items(self, answers: Sequence[Sequence[int]]) -> list[list[str]]:
        """Look up the items of answers.

        Args:
            answers: R lists of token ids that the engine wrote, with or without end-of-sequence.

        Returns:
            item_ids of each answer: several where they share a SID, none where it is no complete SID of the trie.
        """
        eos, levels = self.settings.eos_token_id, self.mask.trie.num_levels
        sids = [list(itertools.takewhile(lambda token: token != eos, tokens)) for tokens in answers]
        ranks = self.mask.leaves(*rectangle(sids, levels)).tolist()
        is_item = [rank >= 0 and len(sid) <= levels for rank, sid in zip(ranks, sids, strict=True)]
        owned = (self._owners.of(rank).tolist() if is_one else [] for rank, is_one in zip(ranks, is_item, strict=True))
        return [[self.item_ids[row] for row in rows] for rows in owned]

    def ranked(
        self, answers: Sequence[Sequence[int]], scores: Sequence[float], k: int, exclude: Collection[str] = ()
    ) -> tuple[list[str], list[float]]:
        """Rank the items of one user's answers, each once.

        Args:
            answers: R lists of token ids, in any order, repeated or not.
            scores: R scores of them, such as `cumulative_logprob`.
            k: Number of items.
            exclude: item_ids to leave out, such as those of the history.

        Returns:
            item_ids and their scores, best first; fewer than k if the answers name fewer.
        """
        best: dict[str, float] = {}
        for item_ids, score in sorted(zip(self.items(answers), scores, strict=True), key=lambda pair: -pair[1]):
            best |= {item_id: score for item_id in item_ids if item_id not in best and item_id not in exclude}
        kept = list(best.items())[:k]
        return [item_id for item_id, _ in kept], [score for _, score in kept]
