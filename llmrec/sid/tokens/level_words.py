"""LevelWords: identifiers written in tokens that an LLM has already, such as the words of a title.

The codes of a level number the tokens that occur there, in ascending order of their ids. So everything that knows codes
(table, trie, filters, search, teacher) serves such identifiers as it serves semantic IDs, and only the vocabulary knows
which token a code is. An identifier must not be the beginning of another one; methods end each with the same token.

Shapes: E identifiers, L levels (tokens of the longest), K words of a level.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llmrec.runtime.manifest import JsonObject
from llmrec.sid.bounds import EMPTY, LARGEST

if TYPE_CHECKING:  # it takes a second to import
    from transformers import PreTrainedTokenizerBase

SPACES = "\u0120\u2581"  # what stands for the space before a word in byte-level BPE, and in SentencePiece


class LevelWords:
    """Token ids that the codes of each level stand for.

    Args:
        ids: (K,) distinct token ids of each level.
        texts: Maps a token id to the tokenizer's own name of the token, to recognise another tokenizer by; may be
            empty.

    Raises:
        ValueError: If a level has no word or has one twice, or an id is out of bounds.

    Examples:
        >>> from llmrec.sid.tokens.level_words import LevelWords
        >>> words = LevelWords([[5, 8], [2, 9]], texts={5: "red", 8: "green", 9: "tea", 2: ";"})
        >>> words.level_sizes, words.token_ids([[1, 0], [0, -1]]).tolist()
        ((2, 2), [[8, 2], [5, -1]])
    """

    def __init__(self, ids: Sequence[np.ndarray | Sequence[int]], texts: Mapping[int, str] | None = None):
        self.ids = [np.asarray(level, dtype=np.int64) for level in ids]
        self.texts = dict(texts or {})
        self._on: dict[tuple[torch.device, int], tuple[Tensor, Tensor, Tensor]] = {}
        for level, words in enumerate(self.ids):
            if words.ndim != 1 or not len(words) or words.min() < 0 or words.max() > LARGEST:
                raise ValueError(f"level {level} needs a list of token ids, each from 0 to 2^31 - 1.")
            if len(np.unique(words)) < len(words):
                raise ValueError(f"level {level} has a token twice; two codes may not be one word.")

    @classmethod
    def of(
        cls, sequences: Sequence[Sequence[int] | np.ndarray], tokenizer: PreTrainedTokenizerBase | None = None
    ) -> tuple[LevelWords, np.ndarray]:
        """Number the tokens of identifiers, level by level.

        Args:
            sequences: E lists of token ids, none empty.
            tokenizer: Tokenizer of the LLM, whose names of the tokens are kept.

        Returns:
            The words, and (E, L) int64 codes, -1 beyond the end of an identifier.

        Raises:
            ValueError: If there is no identifier, or one has no token.

        Examples:
            >>> from llmrec.sid.tokens.level_words import LevelWords
            >>> words, codes = LevelWords.of([[8, 9, 2], [5, 2]])
            >>> codes.tolist(), [level.tolist() for level in words.ids]
            ([[1, 1, 0], [0, 0, -1]], [[5, 8], [2, 9], [2]])
        """
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        if not len(lengths) or not lengths.min():
            empty = f"; row {int(lengths.argmin())} is empty" if len(lengths) else ", and none was given"
            raise ValueError(f"An identifier needs a token{empty}.")
        flat = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences])
        starts, codes = lengths.cumsum() - lengths, np.full((len(lengths), int(lengths.max())), EMPTY)
        ids = []
        for level in range(codes.shape[1]):
            reaches = lengths > level
            words, codes[reaches, level] = np.unique(flat[starts[reaches] + level], return_inverse=True)
            ids.append(words)
        used = np.unique(flat).tolist()
        names = [] if tokenizer is None else tokenizer.convert_ids_to_tokens(used)
        return cls(ids, dict(zip(used, names, strict=False))), codes

    def grown(
        self, sequences: Sequence[Sequence[int] | np.ndarray], tokenizer: PreTrainedTokenizerBase | None = None
    ) -> tuple[LevelWords, np.ndarray]:
        """Number the tokens of further identifiers, new tokens of a level behind its own, whose codes stay.

        Args:
            sequences: E lists of token ids, none longer than these identifiers.
            tokenizer: Tokenizer of the LLM, whose names of the tokens are kept.

        Returns:
            The words, and (E, L) int64 codes, -1 beyond the end of an identifier.

        Examples:
            >>> from llmrec.sid.tokens.level_words import LevelWords
            >>> words, codes = LevelWords([[5, 8], [2, 9]]).grown([[6, 9], [8, 2]])
            >>> [level.tolist() for level in words.ids], codes.tolist()
            ([[5, 8, 6], [2, 9]], [[2, 1], [1, 0]])
        """
        own, codes = LevelWords.of(sequences, tokenizer)
        ids, result = [], np.full((len(codes), len(self.ids)), EMPTY)
        for level, words in enumerate(self.ids):
            added = own.ids[level] if level < len(own.ids) else np.empty(0, np.int64)
            ids.append(np.concatenate([words, np.setdiff1d(added, words)]))
            code_of = {token: code for code, token in enumerate(ids[level].tolist())}
            if level < len(own.ids):
                places = np.array([code_of[token] for token in added.tolist()] + [EMPTY])
                result[:, level] = places[codes[:, level]]
        return LevelWords(ids, {**self.texts, **own.texts}), result

    def continues(self, other: LevelWords) -> bool:
        """Tell whether each level begins with all words of another one's."""
        return len(self.ids) == len(other.ids) and all(
            np.array_equal(words[: len(old)], old) for words, old in zip(self.ids, other.ids, strict=True)
        )

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Number of words of each level."""
        return tuple(map(len, self.ids))

    @cached_property
    def num_rows(self) -> int:
        """Number of rows that a matrix of an LLM needs for all words: the largest token id, and one."""
        return max(int(words.max()) for words in self.ids) + 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LevelWords) and (self is other or self._key == other._key)

    def __hash__(self) -> int:
        return hash(self._key)

    @cached_property
    def _key(self) -> str:
        digest = hashlib.sha256()
        for words in self.ids:
            digest.update(f"{len(words)}".encode() + np.ascontiguousarray(words, dtype="<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def sha256(self) -> str:
        """Hash of all token ids and names."""
        names = "\n".join(f"{token} {self.texts[token]!r}" for token in sorted(self.texts))
        return hashlib.sha256(f"{self._key}\n{names}".encode()).hexdigest()

    def token_ids(self, codes: np.ndarray | Sequence[Sequence[int]]) -> np.ndarray:
        """Convert codes to token ids.

        Args:
            codes: (…, L) codes; -1 (beyond the end of an identifier) stays -1.

        Returns:
            (…, L) int64 token ids.
        """
        codes = np.asarray(codes)
        levels = [np.append(words, EMPTY)[codes[..., level]] for level, words in enumerate(self.ids[: codes.shape[-1]])]
        return np.stack(levels, axis=-1)

    def rows(self, level: int, device: torch.device) -> Tensor:
        """(K,) int64 token ids of a level on a device, where they stay."""
        return self._tensors(level, device)[0]

    def tokens_at(self, level: int, codes: Tensor) -> Tensor:
        """(…) int64 token ids of codes of one level."""
        return self.rows(level, codes.device)[codes]

    def codes_at(self, level: int, tokens: Tensor) -> Tensor:
        """(…) int64 codes of tokens at one level, -1 for a token that is no word of it."""
        _, ascending, order = self._tensors(level, tokens.device)
        place = torch.searchsorted(ascending, tokens.contiguous()).clamp_(max=len(ascending) - 1)
        return order[place].masked_fill(ascending[place] != tokens, EMPTY)

    def _tensors(self, level: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Words of a level, the same ascending, and their codes in that order."""
        if (device, level) not in self._on:
            words = torch.from_numpy(self.ids[level])
            ascending, order = words.sort()
            self._on[device, level] = words.to(device), ascending.to(device), order.to(device)
        return self._on[device, level]

    def name(self, token: int) -> str:
        """Write one token alone, without the space before it; its id if it has no name."""
        return self.texts.get(token, f"<{token}>").strip(SPACES)

    def text(self, codes: np.ndarray) -> str:
        """Write identifiers, (n, L) codes, as they stand in a prompt; a token without a name stands as its id."""
        tokens = self.token_ids(codes)
        names = [self.texts.get(token, f"<{token}>") for token in tokens[tokens != EMPTY].tolist()]
        marked = any(name[:1] in SPACES for name in names)
        return ("" if marked else " ").join(names).translate(dict.fromkeys(map(ord, SPACES), " "))

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a tokenizer whose tokens have other names than those of these words.

        Raises:
            ValueError: If a word has another name, or there is no such token.
        """
        tokens = sorted(self.texts)
        names = tokenizer.convert_ids_to_tokens([token for token in tokens if token < len(tokenizer)])
        found = [*names, *[None] * (len(tokens) - len(names))]
        for token, name in zip(tokens, found, strict=True):
            if name != self.texts[token]:
                here = "no token" if name is None else f"'{name}'"
                raise ValueError(
                    f"Token {token} is '{self.texts[token]}' in the SID table, whose identifiers are words, and "
                    f"{here} in this tokenizer. Give the model whose tokenizer "
                    "`llmrec tokenize` was run with, or run it again with the tokenizer of this one."
                )

    def to_dict(self) -> JsonObject:
        """Convert the words to lists of token ids and the names of the tokens, for JSON."""
        return {"ids": [words.tolist() for words in self.ids], "texts": {str(k): v for k, v in self.texts.items()}}

    @classmethod
    def from_dict(cls, values: JsonObject) -> LevelWords:
        """Make words of the output of `to_dict`.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: If the values are of another form.
        """
        return cls(values["ids"], {int(token): str(text) for token, text in values["texts"].items()})
