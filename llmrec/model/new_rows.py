"""New rows of the embedding and output matrix for the tokens of semantic IDs.

Rows are the mean of the old ones plus Gaussian noise at the old rows' standard deviation. The resize of transformers
would draw them 1e-9 of that apart (pairwise cosine 1.000000), so that codes look alike at step 0. Told what codes mean,
by the titles of the items that have them or by their codewords (codeword_rows.py), a row leans towards that, and noise
keeps codes of one meaning apart.

Shapes: V rows of ordinary tokens, D hidden, N items, K codes of a level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary

ROW_MULTIPLE = 64  # matrix multiplications prefer vocabularies of this multiple
NOISE_SHARE = 0.1  # of the variance of rows that lean towards a meaning
WORDS_AT_ONCE = 2**16


def new_rows(old_VD: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Distinct rows at the scale of the old ones.

    Args:
        old_VD: (V, D) rows of ordinary tokens.
        count: Rows to draw.
        generator: CPU generator.

    Returns:
        (count, D), in the type and on the device of the old rows.
    """
    old = old_VD.float()
    noise = torch.randn(count, old.shape[1], generator=generator).to(old.device)
    return (old.mean(dim=0) + old.std(dim=0) * noise).to(old_VD.dtype)


@dataclass(frozen=True)
class ItemWords:
    """Tokens of the items' titles, one entry for each.

    Attributes:
        items: (W,) item row.
        words: (W,) token id.
        weights: (W,) one over the number of tokens of the title.
    """

    items: Tensor
    words: Tensor
    weights: Tensor

    @classmethod
    def of(cls, titles: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> ItemWords:
        ids = tokenizer(list(titles), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        lengths = torch.tensor([len(row) for row in ids])
        words = torch.tensor([token for row in ids for token in row], dtype=torch.int64)
        return cls(
            torch.arange(len(ids)).repeat_interleave(lengths),
            words,
            (1 / lengths.clamp(min=1)).repeat_interleave(lengths),
        )


class CodeMeaning(NamedTuple):
    """What codes of a level mean in the space of a matrix.

    Attributes:
        codes: (n,) int64 those that mean something.
        rows: (n, D) float32.
    """

    codes: Tensor
    rows: Tensor


@dataclass(frozen=True)
class TitleMeaning:
    """A code means the mean title of its items.

    Attributes:
        words: Tokens of the titles.
        table: Codes of the items; an item with several SIDs is told by its first.
    """

    words: ItemWords
    table: SidTable

    def __call__(self, old_VD: Tensor) -> list[CodeMeaning]:
        """For each level.

        Args:
            old_VD: (V, D) rows of ordinary tokens.
        """
        codes_LN = self.table.codes(np.arange(self.table.num_items)).T
        sizes = self.table.level_sizes
        return [self.level(old_VD.float(), codes_N, size) for codes_N, size in zip(codes_LN, sizes, strict=True)]

    def level(self, old: Tensor, codes_N: np.ndarray, codebook_size: int) -> CodeMeaning:
        codes = torch.from_numpy(codes_N)[self.words.items]
        used = codes >= 0  # -1 beyond the end of a SID
        codes, words = codes[used].to(old.device), self.words.words[used].to(old.device)
        weights = self.words.weights[used].to(old.device)
        sums = torch.zeros(codebook_size, old.shape[1], device=old.device)
        for part in torch.arange(len(codes), device=old.device).split(WORDS_AT_ONCE):
            sums.index_add_(0, codes[part], old[words[part]] * weights[part].unsqueeze(1))
        items = torch.zeros(codebook_size, device=old.device).index_add_(0, codes, weights)
        titled = items.nonzero()[:, 0]
        return CodeMeaning(titled, sums[titled] / items[titled].unsqueeze(1))


def leaning_rows(old_VD: Tensor, noise_KD: Tensor, meant: CodeMeaning) -> Tensor:
    """Rows of a level's codes that lean towards what the codes mean.

    Args:
        old_VD: (V, D) rows of ordinary tokens.
        noise_KD: (K, D) rows of `new_rows`, kept for codes that mean nothing.
        meant: Of the level.

    Returns:
        (K, D), at the scale of the old rows, in their type.
    """
    old, rows = old_VD.float(), noise_KD.clone()
    away = meant.rows - meant.rows.mean(dim=0)
    away = away * (old.std(dim=0).norm() / away.norm(dim=1).mean().clamp(min=1e-6))
    noise = noise_KD[meant.codes].float() - old.mean(dim=0)
    leaning = old.mean(dim=0) + (1 - NOISE_SHARE) ** 0.5 * away + NOISE_SHARE**0.5 * noise
    rows[meant.codes] = leaning.to(rows.dtype)
    return rows


@torch.no_grad()
def add_rows(
    model: PreTrainedModel,
    vocabulary: SidVocabulary,
    seed: int,
    meaning: Callable[[Tensor], Sequence[CodeMeaning]] | None = None,
) -> None:
    """Give every SID token a row of its own in the embedding and output matrix; a tied pair stays tied.

    Args:
        model: Causal LM, changed in place.
        vocabulary: Tokens whose rows are written.
        seed: Seed of the noise.
        meaning: Old rows of a matrix (V, D) -> what codes mean there, level by level from the first.
    """
    old_size, needed = vocabulary.starts[0], vocabulary.token_range.stop
    if needed > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(-(-needed // ROW_MULTIPLE) * ROW_MULTIPLE, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    matrices = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    for weight in matrices.values():
        old_VD = weight[:old_size]
        weight[old_size:] = new_rows(old_VD, len(weight) - old_size, generator)
        for level, meant in enumerate(meaning(old_VD) if meaning else ()):
            block = vocabulary.block(level)
            weight[block] = leaning_rows(old_VD, weight[block], meant)
