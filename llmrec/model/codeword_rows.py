"""What codewords mean in the LLM's own space: a linear map from sums of codewords to mean title embeddings.

A residual tokenizer writes an item as a sum of codewords, x = e_0 + e_1 + … ; the mean embedding of its title's tokens
is y. Ridge regression of y on x gives a map W that is linear, so that what it says of an item is the sum of what it
says of its codewords: W e is the part of the title that a code stands for, given the codes before it. The means of
`--rows titles` cannot say that: below the first level a code has items of all kinds, and their mean title is about the
catalogue's.

SimCIT (arXiv:2506.16683, conclusion) leaves open whether codes gain from the LLM's token space. The answer is tried
here, in `extend`, because data flow one way: `tokenize` knows no LLM, and one tokenization serves many. Only the SID
table, the codebooks and the titles are read.

Shapes: V rows of ordinary tokens, D hidden, N items, b of them at a time, n items with a title, K codes of a level, E
dimension of codewords.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmrec.model.new_rows import CodeMeaning, ItemWords
from llmrec.sid.table import SidTable
from llmrec.tokenizers import load_tokenizer
from llmrec.tokenizers.shared.vectors import ResidualTokenizer

RIDGE = 1e-2  # of the mean variance of a dimension of x; 128 of them on a thousand items would else fit noise
ITEMS_AT_ONCE = 1024


@dataclass
class CodewordMeaning:
    """Rows that codewords of a tokenizer lean towards.

    Attributes:
        codebooks: Of each level, (K, E) on the CPU; levels of the table beyond them, the suffix, mean nothing.
        table: Codes of the items; an item with several SIDs is told by its first.
        words: Tokens of the titles.
        explained: Of each matrix so far, the share of the variance of mean title rows that codes explain, in sample.
    """

    codebooks: list[Tensor]
    table: SidTable
    words: ItemWords
    explained: list[float] = field(default_factory=list)

    def __call__(self, old_VD: Tensor) -> list[CodeMeaning]:
        """Fit the map for a matrix and apply it to every codeword.

        Args:
            old_VD: (V, D) rows of ordinary tokens.
        """
        codes_NL = torch.from_numpy(self.table.codes(np.arange(self.table.num_items)))
        sums_NE = sum(book[codes_N] for book, codes_N in zip(self.codebooks, codes_NL.T, strict=False))
        map_ED, explained = fit(sums_NE, self.words, old_VD.float())
        self.explained.append(explained)
        return [
            CodeMeaning(torch.arange(len(book)), (book @ map_ED.cpu()).to(old_VD.device)) for book in self.codebooks
        ]


def fit(sums_NE: Tensor, words: ItemWords, old_VD: Tensor) -> tuple[Tensor, float]:
    """Ridge regression of mean title rows on sums of codewords, over the items that have a title.

    Args:
        sums_NE: (N, E) on the CPU.
        words: Tokens of the titles, by ascending item.
        old_VD: (V, D) float32.

    Returns:
        (E, D) the map, in the precision of the sums, and the share of the variance of mean title rows that it explains.
    """
    titled_N = words.items.bincount(minlength=len(sums_NE)) > 0
    x_NE = ((sums_NE - sums_NE[titled_N].mean(0)) * titled_N[:, None]).to(old_VD.device)
    gram_EE, cross_ED = x_NE.T @ x_NE, x_NE.new_zeros(x_NE.shape[1], old_VD.shape[1])
    total_D, squares = old_VD.new_zeros(old_VD.shape[1]), old_VD.new_zeros(())
    for first, y_bD in title_rows(words, old_VD, len(sums_NE)):
        cross_ED += x_NE[first : first + len(y_bD)].T @ y_bD  # x is of zero sum, so that y need not be centred
        total_D, squares = total_D + y_bD.sum(0), squares + y_bD.square().sum()
    penalty = (RIDGE * gram_EE.diagonal().mean()).clamp(min=torch.finfo(gram_EE.dtype).tiny)
    map_ED = torch.linalg.solve(gram_EE + penalty * torch.eye(len(gram_EE), device=gram_EE.device), cross_ED)
    whole = squares - total_D.square().sum() / titled_N.sum()
    fitted = (map_ED * (2 * cross_ED - gram_EE @ map_ED)).sum()
    return map_ED, float(fitted / whole) if whole > 0 else 0.0


def title_rows(words: ItemWords, old_VD: Tensor, num_items: int) -> Iterator[tuple[int, Tensor]]:
    """First item of a chunk and (b, D) mean row of the title of each of its items; zero without a title."""
    for first in range(0, num_items, ITEMS_AT_ONCE):
        last = min(first + ITEMS_AT_ONCE, num_items)
        start, end = torch.searchsorted(words.items, torch.tensor([first, last])).tolist()
        items, tokens, weights = (
            part[start:end].to(old_VD.device) for part in (words.items, words.words, words.weights)
        )
        rows_bD = old_VD.new_zeros(last - first, old_VD.shape[1])
        yield first, rows_bD.index_add_(0, items - first, old_VD[tokens] * weights[:, None])


def codebooks_of(sid: str | Path) -> list[Tensor]:
    """Codebooks (K, E) of a directory of `llmrec tokenize`, on the CPU.

    Raises:
        ValueError: If its method does not write items as sums of codewords, or the tokenizer is not whole.
    """
    tokenizer = load_tokenizer(sid, device="cpu")
    if not isinstance(tokenizer, ResidualTokenizer) or type(tokenizer).rebuild is not ResidualTokenizer.rebuild:
        raise ValueError(
            f"rows 'codewords' needs codes whose vectors add up to an item; '{tokenizer.method}' of '{sid}' has none. "
            "Tokenize by rq_kmeans, rq_kmeans_plus, rq_vae, cost, letter or simcit, or set rows to titles or noise."
        )
    return tokenizer.codebooks
