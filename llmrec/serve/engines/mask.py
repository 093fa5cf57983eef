"""SidMask: the tokens that may come next in an answer, for the sampler of an inference engine.

It keeps no state: a call walks the tokens of each answer from the root of the trie, so that an engine may move, swap,
drop and resume its rows as it likes. It never raises at an answer: one that has left the trie is ended, because an
exception would stop the engine for everybody.

Shapes: B rows of a batch, R rows with a mask, V tokens of the vocabulary, L levels, K codes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llmrec.decoding.trie.build import Parts
from llmrec.decoding.trie.lookups import ROOT, TrieLookups
from llmrec.serve.engines.settings import Settings, read_answers
from llmrec.sid.bounds import EMPTY
from llmrec.sid.normalization import NormalizeOver, normalize_codes
from llmrec.sid.tokens.level_words import LevelWords


@dataclass(frozen=True)
class SidMask:
    """Legal tokens of answers, and their scores.

    Args:
        trie: Legal SIDs, on the device of the logits.
        words: Tokens of the codes of each level; the trie may use only the first ones.
        eos_token_id: Token that ends an answer.
        normalize_over: Tokens that scores are normalised over; see `llmrec.sid.normalization`.
    """

    trie: TrieLookups
    words: LevelWords
    eos_token_id: int
    normalize_over: NormalizeOver

    @classmethod
    def of(cls, settings: Settings, parts: Parts, words: LevelWords, device: torch.device | str = "cpu") -> SidMask:
        """Make the mask of what `read_answers` returns."""
        trie = TrieLookups([level.to(device) for level in parts.levels], parts.owners.num_leaves)
        return cls(trie, words, settings.eos_token_id, settings.normalize_over)

    @classmethod
    def load(cls, directory: str | Path, device: torch.device | str = "cpu") -> SidMask:
        """Read the mask of a folder that `llmrec export --to vllm` wrote.

        Args:
            directory: The folder.
            device: Device of the logits.

        Raises:
            ValueError: If a file is absent or damaged, or the trie is of another SID table.
        """
        return cls.of(*read_answers(directory), device)

    def walk(self, answers: Tensor, lengths: Tensor) -> Tensor:
        """Follow the tokens of each answer.

        Args:
            answers: (R, L) int64 first tokens of each answer; any value beyond its length.
            lengths: (R,) int64 number of tokens of each answer, from 0 to L.

        Returns:
            (R,) int64 node that each leads to; -1 if the catalogue has no SID that begins so.
        """
        nodes = torch.full_like(lengths, ROOT)
        for level, size in enumerate(self.trie.level_sizes):
            codes = self.words.codes_at(level, answers[:, level])
            children = self.trie.child(nodes, codes.masked_fill(codes >= size, EMPTY), level)
            nodes = torch.where(lengths > level, children, nodes)
        return nodes

    def leaves(self, answers: Tensor, lengths: Tensor) -> Tensor:
        """(R,) int64 leaf rank of each answer that is a complete SID, -1 for others; see `walk`."""
        nodes = self.walk(answers, lengths)
        ranks = torch.full_like(nodes, -1)
        for depth in range(1, self.trie.num_levels + 1):
            here = nodes.masked_fill(lengths != depth, -1)
            ranks = torch.where(self.trie.is_leaf(here, depth), self.trie.leaf_range(here, depth)[0], ranks)
        return ranks

    def apply(self, logits: Tensor, rows: Tensor, answers: Tensor, lengths: Tensor) -> None:
        """Mask logits in place, and normalise those that are left.

        Only end-of-sequence, at score 0, may follow a complete SID, or an answer that is the beginning of none.

        Args:
            logits: (B, V) float32 logits of the next tokens.
            rows: (R,) int64 rows that are masked; the others stay as they are.
            answers: (R, L) int64 first tokens of the answers of these rows; any value beyond their lengths.
            lengths: (R,) int64 number of their tokens, from 0 to L.
        """
        nodes, at = self.walk(answers, lengths), rows.unsqueeze(1)
        shift = logits.logsumexp(dim=1)[at] if self.normalize_over == "vocabulary" else 0
        ended, found = torch.ones_like(lengths, dtype=torch.bool), []
        for level, size in enumerate(self.trie.level_sizes):
            legal = self.trie.allowed(nodes.masked_fill(lengths != level, -1), level)
            tokens = self.words.rows(level, logits.device)
            found.append((tokens[:size], normalize_codes(logits[at, tokens] - shift, legal, self.normalize_over)))
            ended &= ~legal.any(dim=1)
        logits.index_fill_(0, rows, -torch.inf)
        for tokens, scores in found:  # a word may stand at several levels, of which a row is at one
            logits[at, tokens] = torch.maximum(logits[at, tokens], scores)
        logits[rows, self.eos_token_id] = logits[rows, self.eos_token_id].masked_fill(ended, 0)


def rectangle(
    answers: Sequence[Sequence[int]], width: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Lay out lists of tokens for a mask, in one copy to its device.

    Args:
        answers: R lists of token ids.
        width: L; further tokens are left out.
        device: Device of the mask.

    Returns:
        (R, L) int64 tokens, -1 beyond the length of a list, and (R,) int64 lengths of at most L.
    """
    rows = [[*tokens[:width], *[-1] * (width - len(tokens)), min(len(tokens), width)] for tokens in answers]
    both = torch.tensor(rows, dtype=torch.int64).view(len(rows), width + 1).to(device)
    return both[:, :-1], both[:, -1]
