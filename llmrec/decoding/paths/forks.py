"""Forks of a path through the trie: the code that was taken at each level, and the codes beside it.

Shapes: N items, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.decoding.paths.exact_scores import Step
from llmrec.decoding.trie.trie import SidTrie
from llmrec.runtime.device import to_host
from llmrec.sid.codes import EMPTY
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary

NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Branch:
    """One code that may follow a prefix.

    Attributes:
        code: The code.
        token: Text of its token.
        probability: Probability of the code after the prefix.
        num_items: Number of items below it that could have been recommended.
        examples: Up to three of their item_ids, most training interactions first.
    """

    code: int
    token: str
    probability: float
    num_items: int
    examples: list[str]


@dataclass(frozen=True)
class Fork:
    """One level of a path.

    Attributes:
        chosen: The code of the item.
        mass: Probability of the item's prefix up to and including this code.
        others: The most probable other codes of this level, best first.
        num_more: Number of further codes, which are not listed.
        more_probability: Their probability together. What is missing to 1 is the model's belief in codes that lead to
            no item that could have been recommended.
    """

    chosen: Branch
    mass: float
    others: list[Branch]
    num_more: int
    more_probability: float


class ForkReader:
    """Reads the forks of a path off the steps of a search.

    Args:
        trie: The trie that was followed.
        table: Semantic IDs of its items.
        vocabulary: Tokens of the codes.
        counts: (N,) number of training interactions of each item, which chooses examples; None if it is not known.
    """

    def __init__(self, trie: SidTrie, table: SidTable, vocabulary: SidVocabulary, counts: np.ndarray | None):
        self.trie, self.table, self.vocabulary = trie, table, vocabulary
        self.counts = np.zeros(table.num_items, np.int64) if counts is None else counts

    def read(
        self, steps: Sequence[Step], codes_L: np.ndarray, place: int, is_permitted: np.ndarray, num_branches: int
    ) -> list[Fork]:
        """Read the forks of a semantic ID that was followed after the first prompt.

        Args:
            steps: Steps of `follow`.
            codes_L: (L,) its codes, -1 beyond its end.
            place: Its place among the semantic IDs that were followed.
            is_permitted: (N,) bool, items that could have been recommended.
            num_branches: Largest number of other codes that are listed at each level.
        """
        forks: list[Fork] = []
        mass = 1.0
        for level, code in enumerate(codes_L[codes_L != EMPTY].tolist()):
            found, row = steps[level].continuations, place if level else 0
            bounds = self.trie.leaf_range(found.nodes[0, row], level + 1)
            codes, log_probs, first, end = to_host([found.codes[0, row], found.log_probs[0, row].double(), *bounds])()
            legal = np.flatnonzero(end > first)
            probabilities = np.exp(log_probs)
            order = legal[np.argsort(-probabilities[legal], kind="stable")]
            chosen = order[codes[order] == code][0]
            others = order[order != chosen]
            branches = [
                self._branch(level, int(codes[slot]), float(probabilities[slot]), first[slot], end[slot], is_permitted)
                for slot in [chosen, *others[:num_branches]]
            ]
            mass *= float(probabilities[chosen])
            more = others[num_branches:]
            forks.append(Fork(branches[0], mass, branches[1:], len(more), float(probabilities[more].sum())))
        return forks

    def _branch(
        self, level: int, code: int, probability: float, first: int, end: int, is_permitted: np.ndarray
    ) -> Branch:
        starts = self.trie.leaf_starts
        begin, stop = (first, end) if starts is None else (starts[first], starts[end])
        rows = self.trie.leaf_items[begin:stop]
        rows = np.unique(rows[is_permitted[rows]])
        best = rows[np.argsort(-self.counts[rows], kind="stable")[:NUM_EXAMPLES]]
        examples = [self.table.item_ids[row] for row in best]
        return Branch(code, code_name(self.vocabulary, level, code), probability, len(rows), examples)


def code_name(vocabulary: SidVocabulary, level: int, code: int) -> str:
    """Write a code for a person: its token, or the word that it stands for."""
    words = vocabulary.words
    return vocabulary.token(level, code) if words is None else words.name(int(words.ids[level][code]))
