"""RQ-KMeans: k-means on the items' vectors, then on what is left of them, level after level.

Source: OneRec technical report (arXiv:2506.13695), section on tokenization. Departures: the input is any set of views
side by side, where the paper has one multimodal embedding; k-means starts by k-means++ (the paper's faiss starts at
random items), so that small codebooks are reproducibly good.

With `balance` all codes of a level have the same number of items, or one more, over the whole catalogue: `onerec` is
the balanced k-means of OneRec (arXiv:2502.18965), where codes in turn take their nearest items; `capacity` assigns
items to codes at a low total cost, as MiniOneRec (arXiv:2510.24431) does with k_means_constrained. Departures: that of
`onerec_assignment`; `capacity` goes by prices (balanced.py), so that it needs no solver and has no limit of size.

Shapes: N items, B rows of a chunk, L levels, K codes per level, D dimension of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from llmrec.configs.options import option
from llmrec.runtime.console import progress
from llmrec.runtime.device import resolve_device
from llmrec.tokenizers.shared.assigned import AssignedTokenizer
from llmrec.tokenizers.shared.balanced import balanced_kmeans
from llmrec.tokenizers.shared.kmeans import kmeans, nearest, squared_distances
from llmrec.tokenizers.shared.vectors import ResidualTokenizer, require_distinct

SOLVERS = {"capacity": "prices", "onerec": "onerec"}  # of balanced_kmeans


@dataclass(kw_only=True)
class RQKMeans(AssignedTokenizer, ResidualTokenizer):
    """Residual k-means."""

    method: ClassVar[str] = "rq_kmeans"

    # 25 is the faiss default, as OneRec (2506.13695) uses it.
    iterations: int = option("k-means iterations per level.", 25, least=1)
    # Never chosen by what is installed: that would change the codes.
    kmeans: Literal["torch", "faiss"] = option("k-means implementation; faiss needs the extra `kmeans`.", "torch")

    # OneRec's report and MiniOneRec's plain variant have none.
    balance: Literal["none", "capacity", "onerec"] = option(
        "Give every code of a level as many items: at low total cost, or by codes that choose in turn.", "none"
    )

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.kmeans == "faiss" and self.balance != "none":
            problems.append(f"kmeans 'faiss' knows no balance, and balance is '{self.balance}'; use kmeans 'torch'")
        return problems

    def learn(self, points_ND: Tensor) -> None:
        require_distinct(points_ND, self.codebook_size)
        residuals_ND = points_ND.to(resolve_device(self.device))
        generator = torch.Generator().manual_seed(self.seed)
        self.codebooks, codes = [], []
        for _ in progress(range(self.num_levels), "k-means", unit="levels"):
            codebook_KD, codes_N = self._fit_level(residuals_ND, generator)
            residuals_ND = residuals_ND - codebook_KD[codes_N]
            self.codebooks.append(codebook_KD)
            codes.append(codes_N)
        self.assigned_NL = None if self.balance == "none" else torch.stack(codes, dim=1).cpu()

    def _fit_level(self, points_ND: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(K, D) codebook of a level and (N,) codes of the points."""
        if self.balance != "none":
            return balanced_kmeans(points_ND, self.codebook_size, self.iterations, generator, SOLVERS[self.balance])
        if self.kmeans == "faiss":
            codebook_KD = faiss_kmeans(points_ND, self.codebook_size, self.iterations, self.seed)
        else:
            codebook_KD = kmeans(points_ND, self.codebook_size, self.iterations, generator)
        return codebook_KD, nearest(points_ND, codebook_KD)[0]

    def cost_after(self, points_BD: Tensor, codes_BL: Tensor) -> Tensor:
        for codebook_KD, codes_B in zip(self.codebooks[:-1], codes_BL.T, strict=False):
            points_BD = points_BD - codebook_KD[codes_B]
        return squared_distances(points_BD, self.codebooks[-1])


def faiss_kmeans(points_ND: Tensor, num_codes: int, iterations: int, seed: int) -> Tensor:
    """k-means by faiss on the CPU: random start, three runs of which the best counts.

    Raises:
        ModuleNotFoundError: If faiss is not installed.
    """
    try:
        import faiss
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "kmeans 'faiss' needs faiss: `pip install llmrec[kmeans]`; or use kmeans 'torch'."
        ) from None
    points = points_ND.cpu().numpy()
    solver = faiss.Kmeans(
        points.shape[1],
        num_codes,
        niter=iterations,
        nredo=3,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=1000,
    )
    solver.train(points)
    return torch.from_numpy(solver.centroids.copy()).to(points_ND.device)
