"""TokenTrie: a trie over sequences of tokens that an LLM has already, such as titles, keywords or pieces.

It is a SidTrie whose codes number the tokens that occur at each place (`llmrec.sid.tokens.level_words`). Search, logits
processor, filters and sampling take it as they take any SidTrie, with the vocabulary of its words. A SidTable of words
gives the same trie by `SidTrie(table)`.

10^5 titles of up to 12 tokens take .2 s to build on one CPU core, and 7.0 MB with the item rows of their leaves.

Source: GENRE (arXiv:2010.00904), which decodes the titles of Wikipedia's pages under such a trie.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llmrec.decoding.trie.trie import SidTrie
from llmrec.sid.tokens.level_words import LevelWords


class TokenTrie(SidTrie):
    """Prefix tree over sequences of token ids. It never changes.

    Args:
        sequences: Token ids of each item; none may be the beginning of another one, so end each with the same token.
        item_rows: Item row of each sequence; its position when left out. Items may share a sequence, or have several.
        num_items: Number of items of the catalogue; one more than the largest item row when left out.
        device: Device of the levels.

    Raises:
        ValueError: If there is no sequence, one is empty or the beginning of another one, or item rows do not fit.

    Source: GENRE's prefix trie (arXiv:2010.00904), stored as arrays as STATIC (arXiv:2602.22647) does.

    Examples:
        `ring` is the beginning of `ring 2`; both can be reached, because token 1 ends each:

        >>> import torch
        >>> from llmrec import SidVocabulary, TokenTrie
        >>> trie = TokenTrie([[7, 1], [7, 5, 1], [9, 1]])  # ring, ring 2, box
        >>> trie.words.token_ids(trie.codes_of(torch.arange(3)).numpy()).tolist()
        [[7, 1, -1], [7, 5, 1], [9, 1, -1]]
        >>> vocabulary = SidVocabulary.of_words(trie.words, eos_token_id=2)  # for the search over the trie
    """

    def __init__(
        self,
        sequences: Sequence[Sequence[int] | np.ndarray],
        item_rows: Sequence[int] | np.ndarray | None = None,
        num_items: int | None = None,
        device: torch.device | str = "cpu",
    ):
        words, codes = LevelWords.of(sequences)
        built = SidTrie.from_codes(codes, words.level_sizes, item_rows, num_items, device)
        self._assemble(built._levels, built.owners, None, words)
