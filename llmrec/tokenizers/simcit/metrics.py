"""Metrics of a SimCIT training: collapsed codes, a view that dominates the others, collisions.

Three failures show here first: few codes of a level in use (perplexity), a view on which all attention falls, and
items that share all codes (unique_per_item). A fourth is this method's own: training mixes codes and export takes the
nearest, so that items may get other codes than training had for them (mismatch), and noise may drown the distances
(sampled_nearest).

Shapes: N items, n of them, B of a chunk, M views, L levels, K codes of a level, D sum of the view dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.shared.vectors import CHUNK
from llmrec.tokenizers.simcit.fusion import Fusion
from llmrec.tokenizers.simcit.soft_quantizer import SoftQuantizer


@torch.no_grad()
def quantiser_metrics(
    points_ND: Tensor, rows_n: Tensor, network: Fusion, quantizer: SoftQuantizer, view_names: list[str], seed: int
) -> JsonObject:
    """Measure some items, with temperature and noise as they are.

    Args:
        points_ND: (N, D) on the device of network and quantiser.
        rows_n: (n,) item rows.
        network: In evaluation mode.
        quantizer: Of the latent vectors.
        view_names: Of the M views.
        seed: Of the noise.

    Returns:
        temperature and noise. Per level: perplexity of the exported codes, mismatch (share of items whose heaviest code
        without noise is not the exported one), sampled_nearest (share whose heaviest code with noise is the nearest).
        unique_per_item: distinct tuples per item. attention: view name -> its mean share.
    """
    found, generator = [], torch.Generator(points_ND.device).manual_seed(seed)
    for rows_B in rows_n.split(CHUNK):
        fused = network(points_ND[rows_B])
        noisy = quantizer(fused.latent, quantizer.draw(len(rows_B), generator))
        codes_BL = quantizer.hard(fused.latent)[1]
        differs_BL = heaviest(quantizer(fused.latent).weights) != codes_BL
        found.append((codes_BL, differs_BL, heaviest(noisy.weights) == heaviest(noisy.scores), fused.shares))
    codes_nL, differs_nL, nearest_nL, shares_nM = (torch.cat(part) for part in zip(*found, strict=True))
    return {
        "temperature": float(quantizer.temperature),
        "noise": float(quantizer.noise),
        "perplexity": [perplexity(codes_n) for codes_n in codes_nL.unbind(1)],
        "mismatch": differs_nL.float().mean(0).tolist(),
        "sampled_nearest": nearest_nL.float().mean(0).tolist(),
        "unique_per_item": len(codes_nL.unique(dim=0)) / len(codes_nL),
        "attention": dict(zip(view_names, shares_nM.mean(0).tolist(), strict=True)),
    }


def heaviest(weights: list[Tensor]) -> Tensor:
    """(B, L) code of the largest number of each level's (B, K)."""
    return torch.stack([each.argmax(1) for each in weights], 1)


def perplexity(codes_n: Tensor) -> float:
    """Number of evenly used codes that would be as uncertain."""
    shares_K = codes_n.bincount() / len(codes_n)
    return float(torch.special.entr(shares_K).sum().exp())


def metrics_in_words(metrics: JsonObject, codebook_size: int) -> str:
    """`quantiser_metrics` in words."""
    shares = ", ".join(f"{name} {share:.3f}" for name, share in metrics["attention"].items())
    per_level = "; ".join(
        f"level {level}: perplexity {metrics['perplexity'][level]:.1f} of {codebook_size}, "
        f"{metrics['mismatch'][level]:.1%} of items exported with another code than training had, "
        f"{metrics['sampled_nearest'][level]:.1%} of draws the nearest"
        for level in range(len(metrics["perplexity"]))
    )
    return (
        f"{metrics['unique_per_item']:.4f} tuples per item; attention {shares}; at temperature "
        f"{metrics['temperature']:.3f} and noise {metrics['noise']:.3f}, {per_level}"
    )
