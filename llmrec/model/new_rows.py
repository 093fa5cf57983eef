"""Token rows of semantic IDs: new vectors in the embedding and the output matrix.

A new vector is the mean of the old ones plus Gaussian noise at their standard deviation. The resize of transformers
would draw the new vectors 1e-9 of that apart (pairwise cosine 1.000000), so that codes look alike at step 0. Vectors
may instead lean towards the titles of the items that have the code; noise then keeps codes with the same titles apart.
Merged pieces lean towards the features that they stand for.

Shapes: V ordinary tokens, D hidden, N items, A aliases, L levels, K codes of a level, W tokens of all titles, F
features, M merged pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.data.item_ids import BLOCK
from llmrec.model.trained_rows import matrix_of
from llmrec.sid.aliases import aliases_of
from llmrec.sid.pieces.pieces import Pieces
from llmrec.sid.table import SidTable
from llmrec.sid.tokens.ordinary_text import encode_texts
from llmrec.sid.vocabulary import SidVocabulary

ROW_MULTIPLE = 64  # matrix multiplications prefer vocabularies of this multiple
ITEM_STD = 0.02  # as in BERT (arXiv:1810.04805) and in the baselines
NOISE_SHARE = 0.1  # of the variance of vectors that lean towards titles or features
WORDS_AT_ONCE = 2**16


def new_rows(old_VD: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw distinct vectors at the scale of the old ones.

    Args:
        old_VD: (V, D) vectors of ordinary tokens.
        count: Number of vectors to draw.
        generator: CPU generator.

    Returns:
        (count, D), in the type and on the device of the old vectors.
    """
    old = old_VD.float()
    noise = torch.randn(count, old.shape[1], generator=generator).to(old.device)
    return (old.mean(dim=0) + old.std(dim=0) * noise).to(old_VD.dtype)


def item_rows(old_VD: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw small distinct vectors of items, around zero.

    All items compete in one softmax over these vectors. At the scale of the old vectors of a pretrained LLM their first
    scores lie so far apart that the loss begins at many times the logarithm of the number of items. A small vector is
    still read, because the layers of an LLM normalise their input.

    Args:
        old_VD: (V, D) vectors of ordinary tokens.
        count: Number of vectors to draw.
        generator: CPU generator.

    Returns:
        (count, D), in the type and on the device of the old vectors.
    """
    std = min(ITEM_STD, float(old_VD.float().std()))
    return (torch.randn(count, old_VD.shape[1], generator=generator) * std).to(old_VD)


def part_rows(old_VD: Tensor, count: int, num_levels: int, generator: torch.Generator) -> Tensor:
    """Draw distinct vectors of codes whose mean over the levels is an item's vector, around zero.

    Their mean has the scale of the old vectors. With the mean of the old vectors in them the items of a head with many
    levels would hardly differ at the start: noise averages out, and the mean does not.

    Args:
        old_VD: (V, D) vectors of ordinary tokens.
        count: Number of vectors to draw.
        num_levels: Number of vectors that an item's is the mean of.
        generator: CPU generator.

    Returns:
        (count, D), in the type and on the device of the old vectors.
    """
    std = float(old_VD.float().std()) * num_levels**0.5
    return (torch.randn(count, old_VD.shape[1], generator=generator) * std).to(old_VD)


@dataclass(frozen=True)
class TitleTokens:
    """Tokens of the items' titles, one entry for each.

    Attributes:
        items: (W,) int64 item row.
        words: (W,) int64 token id.
        weights: (W,) float32, one over the number of tokens of the title.
    """

    items: Tensor
    words: Tensor
    weights: Tensor

    @classmethod
    def of(cls, titles: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> TitleTokens:
        """Tokenize titles, which stand in catalogue order."""
        lengths, words = torch.zeros(len(titles), dtype=torch.int64), [np.empty(0, np.int64)]
        for first in range(0, len(titles), BLOCK):  # an array for each of 10^7 titles would take 1 GB
            ids = encode_texts(titles[first : first + BLOCK], tokenizer)
            lengths[first : first + BLOCK] = torch.tensor([len(title) for title in ids])
            words.append(np.concatenate(ids))
        return cls(
            torch.arange(len(titles)).repeat_interleave(lengths),
            torch.from_numpy(np.concatenate(words)),
            (1 / lengths.clamp(min=1)).repeat_interleave(lengths),
        )


class InitialVectors(NamedTuple):
    """Vectors that some codes of a level lean towards at the start.

    Attributes:
        codes: (n,) int64 codes that have one.
        vectors: (n, D) float32.
    """

    codes: Tensor
    vectors: Tensor


def title_vectors(titles: TitleTokens, table: SidTable, old_VD: Tensor) -> list[InitialVectors]:
    """Average, for each code, the mean title of its items.

    Args:
        titles: Tokens of the titles.
        table: Codes of the items in all aliases; without these, the first SID of an item counts.
        old_VD: (V, D) vectors of ordinary tokens.

    Returns:
        Vectors of each level; codes without a title have none.
    """
    rows, old = np.arange(table.num_items), old_VD.float()
    codes_ANL = np.stack([alias.codes(rows) for alias in aliases_of(table)])
    levels = zip(np.moveaxis(codes_ANL, 2, 0), table.level_sizes, strict=True)
    return [_title_vectors(titles, codes_AN, size, old) for codes_AN, size in levels]


def _title_vectors(titles: TitleTokens, codes_AN: np.ndarray, codebook_size: int, old: Tensor) -> InitialVectors:
    codes = torch.from_numpy(codes_AN)[:, titles.items].flatten()
    used = codes >= 0  # -1 beyond the end of a SID
    words, weights = titles.words.repeat(len(codes_AN)), titles.weights.repeat(len(codes_AN))
    codes, words, weights = codes[used].to(old.device), words[used].to(old.device), weights[used].to(old.device)
    sums = torch.zeros(codebook_size, old.shape[1], device=old.device)
    for part in torch.arange(len(codes), device=old.device).split(WORDS_AT_ONCE):
        sums.index_add_(0, codes[part], old[words[part]] * weights[part].unsqueeze(1))
    items = torch.zeros(codebook_size, device=old.device).index_add_(0, codes, weights)
    titled = items.nonzero()[:, 0]
    return InitialVectors(titled, sums[titled] / items[titled].unsqueeze(1))


def leaning_rows(old_VD: Tensor, noise_KD: Tensor, initial: InitialVectors) -> Tensor:
    """Let the vectors of a level's codes lean towards their initial vectors.

    Args:
        old_VD: (V, D) vectors of ordinary tokens.
        noise_KD: (K, D) vectors of `new_rows`, kept for codes without an initial vector.
        initial: Initial vectors of the level.

    Returns:
        (K, D), at the scale of the old vectors, in their type.
    """
    old, rows = old_VD.float(), noise_KD.clone()
    away = initial.vectors - initial.vectors.mean(dim=0)
    away = away * (old.std(dim=0).norm() / away.norm(dim=1).mean().clamp(min=1e-6))
    noise = noise_KD[initial.codes].float() - old.mean(dim=0)
    leaning = old.mean(dim=0) + (1 - NOISE_SHARE) ** 0.5 * away + NOISE_SHARE**0.5 * noise
    rows[initial.codes] = leaning.to(rows.dtype)
    return rows


def feature_table(table: SidTable) -> SidTable:
    """Make the table of the features of the items, whose levels are the kinds of features.

    Args:
        table: Table of items that are written in pieces.
    """
    assert table.pieces is not None
    features = table.pieces.items(table.all_codes)
    codes = features - np.cumsum((0, *table.pieces.kind_sizes[:-1]))
    return SidTable(table.item_ids, codes, table.item_rows, table.pieces.kind_sizes)


def feature_blocks(start: int, pieces: Pieces) -> list[slice]:
    """Slices of the tokens of each kind of features, the first of which is `start`."""
    ends = start + np.cumsum(pieces.kind_sizes)
    return [slice(int(end) - size, int(end)) for end, size in zip(ends, pieces.kind_sizes, strict=True)]


def merged_rows(old_VD: Tensor, features_FD: Tensor, pieces: Pieces, generator: torch.Generator) -> Tensor:
    """Average the vectors of the features of each merged piece, and add noise.

    A mean varies less than what it is of; its distance from the mean of the old vectors becomes that of an old one.

    Args:
        old_VD: (V, D) vectors of ordinary tokens.
        features_FD: (F, D) vectors of the features.
        pieces: Pieces.
        generator: CPU generator.

    Returns:
        (M, D), in the type of the old vectors.
    """
    old, away = old_VD.float(), features_FD.float() - old_VD.float().mean(dim=0)
    merged = [pieces.features_of([piece]) for piece in range(pieces.num_features, len(pieces))]
    counts = torch.tensor([len(features) for features in merged], device=old.device)
    owners_E = torch.arange(len(merged), device=old.device).repeat_interleave(counts)
    features_E = torch.tensor([feature for features in merged for feature in features], device=old.device).long()
    sums = torch.zeros(len(merged), old.shape[1], device=old.device).index_add_(0, owners_E, away[features_E])
    noise = torch.randn(len(merged), old.shape[1], generator=generator).to(old.device) * old.std(dim=0)
    lean = sums * (old.std(dim=0).norm() / sums.norm(dim=1, keepdim=True).clamp(min=1e-6))
    leaning = (1 - NOISE_SHARE) ** 0.5 * lean + NOISE_SHARE**0.5 * noise
    return (old.mean(dim=0) + leaning).to(old_VD.dtype)


def fit_vocabulary(model: PreTrainedModel, num_tokens: int) -> None:
    """Lengthen the embedding and the output matrix if they have fewer rows than a model needs; a tied pair stays tied.

    Args:
        model: Causal LM, changed in place.
        num_tokens: Number of tokens that need a row.
    """
    if num_tokens > len(matrix_of(model.get_input_embeddings())):
        model.resize_token_embeddings(-(-num_tokens // ROW_MULTIPLE) * ROW_MULTIPLE, mean_resizing=False)


@torch.no_grad()
def add_rows(
    model: PreTrainedModel,
    vocabulary: SidVocabulary,
    seed: int,
    initial_vectors: Callable[[Tensor], Sequence[InitialVectors]] | None = None,
    pieces: Pieces | None = None,
) -> None:
    """Give every SID token, and every item token, its vectors in the embedding and the output matrix.

    A tied pair stays tied. The output matrix of an untied pair has vectors of item tokens which nothing reads.

    Args:
        model: Causal LM, changed in place.
        vocabulary: Tokens whose vectors are written.
        seed: Seed of the noise.
        initial_vectors: Maps the old vectors of a matrix, (V, D), to initial vectors of each level, or of each kind of
            features; noise alone when left out.
        pieces: Pieces that the tokens stand for; merged ones begin at the mean of their features.
    """
    old_size = vocabulary.starts[0]
    fit_vocabulary(model, vocabulary.num_rows)
    generator = torch.Generator().manual_seed(seed)
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    for weight in {id(matrix): matrix for matrix in map(matrix_of, modules)}.values():
        old_VD = weight[:old_size]
        weight[old_size:] = new_rows(old_VD, len(weight) - old_size, generator)
        if vocabulary.items is not None:
            rows = slice(vocabulary.items.stand_in, vocabulary.items.block.stop)
            weight[rows] = item_rows(old_VD, rows.stop - rows.start, generator)
        if vocabulary.head is not None and vocabulary.head.by_codes:
            sids = slice(vocabulary.token_range.start, vocabulary.token_range.stop)
            weight[sids] = part_rows(old_VD, vocabulary.num_tokens, vocabulary.num_levels, generator)
        blocks = feature_blocks(old_size, pieces) if pieces else map(vocabulary.block, range(vocabulary.num_levels))
        for block, initial in zip(blocks, initial_vectors(old_VD) if initial_vectors else (), strict=False):
            weight[block] = leaning_rows(old_VD, weight[block], initial)
        if pieces is not None:
            first = old_size + pieces.num_features
            merged = merged_rows(old_VD, weight[old_size:first], pieces, generator)
            weight[first : vocabulary.token_range.stop] = merged
