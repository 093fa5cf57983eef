"""RQ-KMeans: k-means on the items' vectors, then on what is left of them, level after level.

Source: OneRec technical report (arXiv:2506.13695), section on tokenization. Departures: the input is any set of views,
each scaled to unit length, weighted and concatenated, where the paper has one multimodal embedding; k-means starts by
k-means++ (the paper's faiss starts at random items), so that small codebooks are reproducibly good.

An item that no view knows takes no part in `fit`; `encode` gives it the code nearest to the zero vector at each level,
so that all of them share one prefix, far from no one in particular. A view that misses an item contributes zeros.

Shapes: N items, L levels, K codes per level, D sum of the view dimensions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmrec.catalog import Catalog
from llmrec.configs import TokenizeConfig
from llmrec.console import progress
from llmrec.device import resolve_device
from llmrec.manifest import write_json
from llmrec.tokenizers.base import Encoded
from llmrec.tokenizers.residual import kmeans, nearest, squared_distances
from llmrec.views import ItemViews

CODEBOOKS, SETTINGS = "codebooks.safetensors", "item_tokenizer.json"
METHOD = "rq_kmeans"


class RQKMeans:
    """Residual k-means item tokenizer.

    Args:
        num_levels: Codes per item.
        codebook_size: Codes per level.
        iterations: k-means iterations per level.
        view_weights: View -> weight of its unit-length block; 1 for views not named.
        kmeans: `torch` (CPU or GPU) or `faiss`. Never chosen by what is installed: that would change the codes.
        seed: Seed of the k-means starts.
        device: auto, cpu or cuda; faiss computes on the CPU.
    """

    def __init__(
        self,
        num_levels: int = 3,
        codebook_size: int = 256,
        iterations: int = 25,
        view_weights: dict[str, float] | None = None,
        kmeans: str = "torch",
        seed: int = 0,
        device: str = "auto",
    ):
        self.num_levels, self.codebook_size, self.iterations = num_levels, codebook_size, iterations
        self.view_weights, self.kmeans, self.seed = view_weights or {}, kmeans, seed
        self.device = resolve_device(device)
        self.view_dims: dict[str, int] = {}
        self.codebooks: list[Tensor] = []

    @classmethod
    def from_config(cls, config: TokenizeConfig) -> Self:
        weights = dict(zip(config.view_names or [], config.view_weights or [], strict=False))
        return cls(
            num_levels=config.num_levels,
            codebook_size=config.codebook_size,
            iterations=config.iterations,
            view_weights=weights,
            kmeans=config.kmeans,
            seed=config.seed,
            device=config.device,
        )

    @property
    def level_sizes(self) -> list[int]:
        return [self.codebook_size] * self.num_levels

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        """Learn one codebook per level.

        Raises:
            ValueError: If fewer items have a vector, or fewer distinct vectors exist, than a codebook has codes.
        """
        self.view_dims = {name: view.vectors.shape[1] for name, view in views.items()}
        residuals_ND = self._vectors(catalog, views)[torch.from_numpy(views.known)]
        self._require_enough(residuals_ND, catalog)
        residuals_ND = residuals_ND.to(self.device)
        generator = torch.Generator().manual_seed(self.seed)
        self.codebooks = []
        for _ in progress(range(self.num_levels), "k-means", unit="levels"):
            codebook_KD = self._fit_level(residuals_ND, generator)
            residuals_ND = residuals_ND - codebook_KD[nearest(residuals_ND, codebook_KD)[0]]
            self.codebooks.append(codebook_KD)
        return self

    def _fit_level(self, points_ND: Tensor, generator: torch.Generator) -> Tensor:
        if self.kmeans == "faiss":
            return faiss_kmeans(points_ND, self.codebook_size, self.iterations, self.seed)
        return kmeans(points_ND, self.codebook_size, self.iterations, generator)

    def encode(self, catalog: Catalog, views: ItemViews) -> Encoded:
        """Codes of every item: at each level the code nearest to what the levels before have left.

        Raises:
            ValueError: If the tokenizer is not fitted, or the views are not those it was fitted on.
        """
        dims = {name: view.vectors.shape[1] for name, view in views.items()}
        if not self.codebooks or dims != self.view_dims:
            raise ValueError(
                f"This tokenizer was fitted on the views {self.view_dims} (name: dimension) and was given {dims}; "
                "fit it first, or pass the same views in the same order."
            )
        vectors_ND = self._vectors(catalog, views).to(self.device)
        left_ND, codes = vectors_ND, []
        for codebook_KD in self.codebooks:
            before_ND = left_ND
            codes.append(nearest(left_ND, codebook_KD)[0])
            left_ND = left_ND - codebook_KD[codes[-1]]

        def last_level_cost(rows: np.ndarray) -> Tensor:
            return squared_distances(before_ND[torch.as_tensor(rows, device=self.device)], self.codebooks[-1]).cpu()

        return Encoded(torch.stack(codes, 1).cpu().numpy(), last_level_cost, _mean_cosine(vectors_ND, left_ND))

    def save_pretrained(self, path: str | Path) -> None:
        """Write codebooks.safetensors (`codebook_0` …, each (K, D)) and item_tokenizer.json."""
        tensors = {f"codebook_{level}": book.cpu().contiguous() for level, book in enumerate(self.codebooks)}
        save_file(tensors, Path(path) / CODEBOOKS)
        settings = {
            "method": METHOD,
            "num_levels": self.num_levels,
            "codebook_size": self.codebook_size,
            "iterations": self.iterations,
            "view_weights": self.view_weights,
            "kmeans": self.kmeans,
            "seed": self.seed,
        }
        write_json(Path(path) / SETTINGS, {**settings, "view_dims": self.view_dims})

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "auto") -> Self:
        """Read a fitted tokenizer from the directory that `save_pretrained` or `llmrec tokenize` wrote.

        Raises:
            ValueError: If a file is absent, of another method, or its codebooks have another shape than it says.
        """
        for name in (SETTINGS, CODEBOOKS):
            if not (Path(path) / name).is_file():
                raise ValueError(f"'{path}' has no {name}; `llmrec tokenize` writes it.")
        settings = json.loads((Path(path) / SETTINGS).read_text(encoding="utf-8"))
        if settings.pop("method", None) != METHOD:
            raise ValueError(f"{Path(path) / SETTINGS} is not of method '{METHOD}'; run `llmrec tokenize` again.")
        view_dims = settings.pop("view_dims")
        tokenizer = cls(**settings, device=device)
        tensors = load_file(Path(path) / CODEBOOKS, device=str(tokenizer.device))
        expected = (tokenizer.codebook_size, sum(view_dims.values()))
        shapes = [tuple(book.shape) for book in tensors.values()]
        if shapes != [expected] * tokenizer.num_levels:
            raise ValueError(
                f"{Path(path) / CODEBOOKS} has codebooks of shapes {shapes}, {SETTINGS} says {tokenizer.num_levels} "
                f"of {expected}; run `llmrec tokenize` again."
            )
        tokenizer.view_dims = view_dims
        tokenizer.codebooks = [tensors[f"codebook_{level}"] for level in range(tokenizer.num_levels)]
        return tokenizer

    def _vectors(self, catalog: Catalog, views: ItemViews) -> Tensor:
        """(N, D) float32 on the CPU: each view at unit length times its weight, side by side, zeros where missing."""
        blocks = []
        for name, view in views.items():
            if len(view.vectors) != catalog.num_items:
                raise ValueError(
                    f"view '{name}' has {len(view.vectors)} rows but the catalogue has {catalog.num_items} items; "
                    "run `llmrec embed` on this catalogue."
                )
            unit = torch.nn.functional.normalize(torch.from_numpy(view.vectors), dim=1)
            unit[torch.from_numpy(view.missing)] = 0
            blocks.append(unit * self.view_weights.get(name, 1.0))
        return torch.cat(blocks, dim=1)

    def _require_enough(self, points_ND: Tensor, catalog: Catalog) -> None:
        """k-means needs a distinct vector for every code; count them only as far as needed."""
        distinct: set[bytes] = set()
        for row in points_ND.numpy():
            distinct.add(row.tobytes())
            if len(distinct) >= self.codebook_size:
                return
        problem = (
            f"all of its {len(points_ND)} item vectors are equal; items that cannot be told apart get no semantic "
            "IDs. Check what the views were built from"
            if len(distinct) == 1
            else f"it has {catalog.num_items} items, {len(points_ND)} of them with a vector and {len(distinct)} "
            f"distinct vectors. Lower codebook_size to at most {len(distinct)}"
            if distinct
            else "no view has a vector for any item. Run `llmrec embed` with other views"
        )
        raise ValueError(f"'{catalog.source}' cannot fill codebooks of {self.codebook_size} codes: {problem}.")


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


def _mean_cosine(vectors_ND: Tensor, left_ND: Tensor) -> float:
    """Mean cosine of vectors and their reconstructions over the items that have a vector."""
    known_N = vectors_ND.any(dim=1)
    return float(torch.cosine_similarity(vectors_ND[known_N], (vectors_ND - left_ND)[known_N]).mean())
