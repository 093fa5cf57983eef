"""Item vectors of unit length, in clusters of very uneven size, and residual levels over them."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from llmrec.tokenizers.shared.kmeans import nearest

CLUSTERS, NOISE = 2000, 0.7  # sizes fall as 1 / rank
CENTRES_SEED = 2**31
ROWS = 2**17  # made at once


def parser(description: str) -> argparse.ArgumentParser:
    """Flags of every benchmark of such vectors."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--items", type=int, default=10**6)
    made.add_argument("--dim", type=int, default=768)
    made.add_argument("--codes", type=int, default=256)
    made.add_argument("--levels", type=int, default=3)
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--seed", type=int, default=0)
    return made


def clustered(num_items: int, dim: int, device: torch.device | str, seed: int) -> Tensor:
    """(num_items, dim) float32 vectors of unit length; the seed draws the items, the clusters are always the same."""
    generator = torch.Generator(device).manual_seed(CENTRES_SEED)
    centres = torch.randn(CLUSTERS, dim, generator=generator, device=device)
    generator.manual_seed(seed)
    share = 1 / torch.arange(1, CLUSTERS + 1, device=device)
    vectors = torch.empty(num_items, dim, device=device)
    for rows in vectors.split(ROWS):
        member = torch.multinomial(share, len(rows), replacement=True, generator=generator)
        noise = torch.randn(rows.shape, generator=generator, device=device)
        torch.nn.functional.normalize(centres[member].add_(noise, alpha=NOISE), dim=1, out=rows)
    return vectors


def residual_levels(
    left_ND: Tensor, num_levels: int, fit: Callable[[Tensor], tuple[Tensor, Tensor | None]]
) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """Quantise level after level.

    Args:
        fit: Codebook of what is left, and codes of the items or None for the nearest.

    Returns:
        Codebooks, codes and mean squared lengths of what each level leaves.
    """
    books, codes, distortions = [], [], []
    for _ in range(num_levels):
        book_KD, codes_N = fit(left_ND)
        codes_N = nearest(left_ND, book_KD)[0] if codes_N is None else codes_N
        left_ND = left_ND - book_KD[codes_N]
        books.append(book_KD)
        codes.append(codes_N)
        distortions.append(torch.linalg.vector_norm(left_ND, dim=1).square().mean())
    return books, codes, [float(x) for x in distortions]
