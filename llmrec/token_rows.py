"""New rows of the embedding and output matrix for the tokens of semantic IDs.

Rows are the mean of the old ones plus Gaussian noise at the old rows' standard deviation. The resize of transformers
would draw them 1e-9 of that apart (pairwise cosine 1.000000), so that codes look alike at step 0. Told the items'
titles, a row leans towards the words of the items that have its code, and noise keeps codes with the same words apart.

Shapes: V rows of ordinary tokens, D hidden, N items, K codes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.sid import SidTable
from llmrec.vocab import SidVocabulary

ROW_MULTIPLE = 64  # matrix multiplications prefer vocabularies of this multiple
NOISE_SHARE = 0.1  # of the variance of rows that lean towards titles
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


def titled_rows(old_VD: Tensor, noise_KD: Tensor, item_words: ItemWords, codes_N: np.ndarray) -> Tensor:
    """Rows of a level's codes that lean towards the titles of their items.

    Args:
        old_VD: (V, D) rows of ordinary tokens.
        noise_KD: (K, D) rows of `new_rows`, kept for codes that no titled item has.
        item_words: Tokens of the titles.
        codes_N: (N,) code of each item at the level, -1 beyond its SID.

    Returns:
        (K, D), at the scale of the old rows, in their type.
    """
    old = old_VD.float()
    codes = torch.from_numpy(codes_N)[item_words.items]
    used = codes >= 0
    codes, words = codes[used].to(old.device), item_words.words[used].to(old.device)
    weights = item_words.weights[used].to(old.device)
    sums = torch.zeros(len(noise_KD), old.shape[1], device=old.device)
    for part in torch.arange(len(codes), device=old.device).split(WORDS_AT_ONCE):
        sums.index_add_(0, codes[part], old[words[part]] * weights[part].unsqueeze(1))
    items = torch.zeros(len(noise_KD), device=old.device).index_add_(0, codes, weights)
    has_title = items > 0
    meaning = sums[has_title] / items[has_title].unsqueeze(1)
    away = meaning - meaning.mean(dim=0)
    away = away * (old.std(dim=0).norm() / away.norm(dim=1).mean().clamp(min=1e-6))
    noise = noise_KD[has_title].float() - old.mean(dim=0)
    rows = noise_KD.clone()
    leaning = old.mean(dim=0) + (1 - NOISE_SHARE) ** 0.5 * away + NOISE_SHARE**0.5 * noise
    rows[has_title] = leaning.to(rows.dtype)
    return rows


@torch.no_grad()
def add_rows(
    model: PreTrainedModel,
    vocabulary: SidVocabulary,
    seed: int,
    item_words: ItemWords | None = None,
    table: SidTable | None = None,
) -> None:
    """Give every SID token a row of its own in the embedding and output matrix; a tied pair stays tied.

    Args:
        model: Causal LM, changed in place.
        vocabulary: Tokens whose rows are written.
        seed: Seed of the noise.
        item_words: Titles that rows shall lean towards, and
        table: the SIDs of their items.
    """
    old_size, needed = vocabulary.starts[0], vocabulary.token_range.stop
    if needed > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(-(-needed // ROW_MULTIPLE) * ROW_MULTIPLE, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    matrices = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    codes_LN = [] if item_words is None else table.codes(np.arange(table.num_items)).T
    for weight in matrices.values():
        weight[old_size:] = new_rows(weight[:old_size], len(weight) - old_size, generator)
        for level, codes_N in enumerate(codes_LN):
            block = vocabulary.block(level)
            weight[block] = titled_rows(weight[:old_size], weight[block], item_words, codes_N)
