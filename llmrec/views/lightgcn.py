"""LightGCN view: item vectors near the vectors of their users, smoothed over the graph of interactions.

He et al., "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation", arXiv:2002.02126. Users
and items are the nodes, training interactions the edges; a repeated interaction is one edge. The vector of a node is
averaged with those that 1 to 3 steps over the graph bring; an edge has weight 1 / sqrt(product of the degrees of its
ends). Only the vectors of the nodes are learned, by the Bayesian personalised ranking loss (Rendle et al.,
arXiv:1205.2618).

Departures: an epoch takes every interaction once, while the authors' code draws users first; vectors start normal
(0.1); the epoch is chosen by items held out of training (`llmrec.views.hold_out`), because a view must not know the
validation items; small logs have smaller batches. Layers, rates and batch are those that others quote of the paper.

Shapes: U users, N items, E interactions, B triples of a batch, D dimension of the vectors.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from llmrec.baselines.networks.trainer import best_epoch
from llmrec.data.catalog import Catalog
from llmrec.data.examples import Examples
from llmrec.evaluation.learning import Epoch
from llmrec.runtime.console import progress, say
from llmrec.runtime.device import resolve_device
from llmrec.views import View, describe, scatter
from llmrec.views.hold_out import hold_out

INITIAL_STD = 0.1
# Steps of an epoch. Popularity is learned first, and nothing else for long: on MovieTweetings the validation ndcg@10
# did not change from the 2nd epoch to the 59th, of 32 steps each, and then rose. `patience` must outlast that.
LEAST_STEPS = 64
SELECTION_K = 10  # the epoch is chosen by ndcg at this cut-off
BLOCK = 512  # examples scored at once; bounds memory at BLOCK x N scores


@dataclass(frozen=True)
class Settings:
    """Settings of the training of LightGCN.

    Attributes:
        layers: Steps over the graph.
        learning_rate: Learning rate of Adam.
        l2: Weight of the squared length of the vectors that a batch reads, before the steps over the graph.
        batch_size: Interactions of a step; fewer if an epoch would have less than LEAST_STEPS steps.
        max_epochs: Largest number of passes over the interactions.
        patience: Number of epochs without improvement after which training stops.
    """

    layers: int = 3
    learning_rate: float = 1e-3
    l2: float = 1e-4
    batch_size: int = 2048
    max_epochs: int = 1000
    patience: int = 50


def lightgcn_view(catalog: Catalog, dim: int, seed: int, device: str, settings: Settings | None = None) -> View:
    """Train LightGCN and return the item vectors after the steps over the graph.

    Items without a training interaction are missing.

    Args:
        catalog: Catalogue whose training examples are read.
        dim: Dimension D.
        seed: Seed of the held-out items, the first vectors, the negatives and the order of training.
        device: auto, cpu or cuda.
        settings: Settings of the training; those of the paper by default.

    Raises:
        ValueError: If no training sequence can give a held-out item.
    """
    settings, inner = settings or Settings(), hold_out(catalog, seed)
    edges, held_out = interactions(inner.train), inner.examples("valid")
    graph = adjacency(edges, len(inner.train), catalog.num_items).to(resolve_device(device))
    quality = ndcg_of(held_out, inner.train)
    vectors, log = train(graph, edges, dim, quality, settings, seed)
    best = best_epoch(log)
    say(
        f"lightgcn: epoch {best + 1} of {len(log)} in {log[-1].seconds:.0f} s, "
        f"ndcg@{SELECTION_K} of {len(held_out)} held-out items {log[best].quality:.4f}"
    )
    facts = describe(
        "lightgcn", catalog, encoder="lightgcn", dim=dim, seed=seed, judges=len(held_out), epoch=best + 1,
        **dataclasses.asdict(settings),
    )  # fmt: skip
    taken = np.unique(edges[:, 1])
    return scatter(vectors[len(inner.train) :][taken], taken, catalog.num_items, facts)


def interactions(train: Examples) -> np.ndarray:
    """(E, 2) pairs of user number and item row that interact, each once, in ascending order."""
    items = np.insert(train.values, train.offsets[1:], train.targets)
    users = np.repeat(np.arange(len(train)), np.diff(train.offsets) + 1)
    return np.unique(np.stack([users, items], axis=1), axis=0)


def adjacency(edges: np.ndarray, num_users: int, num_items: int) -> Tensor:
    """Symmetric (U + N, U + N) sparse float32 matrix with 1 / sqrt(degree x degree) for each of (E, 2) edges."""
    users, items = edges[:, 0], edges[:, 1] + num_users
    size = num_users + num_items
    degree = np.bincount(np.concatenate([users, items]), minlength=size)
    weights = 1 / np.sqrt(degree[users] * degree[items])
    places = (np.concatenate([users, items]), np.concatenate([items, users]))
    matrix = sparse.coo_array((np.tile(weights, 2), places), shape=(size, size)).tocsr()
    rows, columns = torch.from_numpy(matrix.indptr.astype(np.int64)), torch.from_numpy(matrix.indices.astype(np.int64))
    values = torch.from_numpy(matrix.data.astype(np.float32))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")  # nothing that a user can act on
        return torch.sparse_csr_tensor(rows, columns, values, (size, size), check_invariants=True)


class Propagation(torch.autograd.Function):
    """`propagate` with its gradient: the map is linear and symmetric, so the gradient is the same map.

    Autograd would transpose the graph in each backward step, which took 80 ms against 15 for the step itself (34,464
    nodes, 131,000 edges, D 64, one CPU core).
    """

    @staticmethod
    def forward(ctx, vectors: Tensor, graph: Tensor, layers: int) -> Tensor:
        ctx.graph, ctx.layers = graph, layers
        return propagate(vectors, graph, layers)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return propagate(gradient, ctx.graph, ctx.layers), None, None


def propagate(vectors: Tensor, graph: Tensor, layers: int) -> Tensor:
    """Mean of (U + N, D) vectors and of those that 1 to `layers` steps over the graph bring."""
    total = vectors
    for _ in range(layers):
        vectors = graph @ vectors
        total = total + vectors
    return total / (layers + 1)


def bpr_loss(vectors: Tensor, graph: Tensor, triples: Tensor, settings: Settings) -> Tensor:
    """Bayesian personalised ranking loss of a batch, with its L2 penalty.

    Args:
        vectors: (U + N, D) vectors before the steps over the graph.
        graph: Output of `adjacency`.
        triples: (3, B) int64 nodes: users, items that they interacted with, items that they did not.
        settings: Number of layers and weight of the penalty.
    """
    user, positive, negative = functional.embedding(triples, Propagation.apply(vectors, graph, settings.layers))
    ranked = functional.softplus((user * (negative - positive)).sum(dim=1)).mean()
    return ranked + settings.l2 * functional.embedding(triples, vectors).square().sum() / (2 * triples.shape[1])


def negatives(edges: np.ndarray, num_items: int, rng: np.random.Generator) -> np.ndarray:
    """Draw (E,) negatives: for each of (E, 2) sorted pairs a uniform item that its user did not interact with.

    The r-th such item is r plus the number of the user's items that have at most r others before them, so no draw is
    rejected.
    """
    users, items = edges.T
    counts = np.bincount(users)
    first = np.cumsum(counts) - counts
    others_before = items - (np.arange(len(edges)) - first[users])  # (E,) ascending within a user, at most num_items
    drawn = rng.integers(num_items - counts[users])
    own = users * (num_items + 1)
    return drawn + np.searchsorted(own + others_before, own + drawn, side="right") - first[users]


def train(
    graph: Tensor, edges: np.ndarray, dim: int, quality: Callable[[Tensor], float], settings: Settings, seed: int
) -> tuple[np.ndarray, list[Epoch]]:
    """Learn the vectors of all nodes and keep those of the best epoch.

    Args:
        graph: Output of `adjacency`, on its device.
        edges: (E, 2) output of `interactions`; not every user has all items.
        dim: D.
        quality: Function that scores (U + N, D) vectors after the steps over the graph; larger is better.
        settings: Settings of the training.
        seed: Seed of everything random.

    Returns:
        (U + N, D) float32 vectors after the steps over the graph, and one entry per epoch.
    """
    num_users = edges[:, 0].max() + 1
    num_items = graph.shape[0] - num_users
    lacking = np.bincount(edges[:, 0]) < num_items
    edges = edges[lacking[edges[:, 0]]]  # a user with all items has no negative
    batch_size = max(1, min(settings.batch_size, len(edges) // LEAST_STEPS))
    drawn = torch.normal(0, INITIAL_STD, (graph.shape[0], dim), generator=torch.Generator().manual_seed(seed))
    vectors = drawn.to(graph.device).requires_grad_()
    optimizer = torch.optim.Adam([vectors], settings.learning_rate, fused=True)
    rng, started, log, kept = np.random.default_rng(seed), time.monotonic(), [], vectors
    for epoch in progress(range(settings.max_epochs), "train lightgcn", unit="epochs at most"):
        drawn_3E = np.stack([edges[:, 0], num_users + edges[:, 1], num_users + negatives(edges, num_items, rng)])
        triples = torch.from_numpy(drawn_3E[:, rng.permutation(len(edges))]).to(graph.device)
        loss = _epoch(vectors, graph, optimizer, triples.split(batch_size, dim=1), settings) / len(edges)
        smoothed = propagate(vectors.detach(), graph, settings.layers)
        log.append(Epoch(loss, quality(smoothed), (epoch + 1) * len(edges), time.monotonic() - started))
        best = best_epoch(log)
        if best == epoch:
            kept = smoothed
        elif epoch - best >= settings.patience:
            break
    return kept.cpu().numpy(), log


def _epoch(
    vectors: Tensor, graph: Tensor, optimizer: torch.optim.Optimizer, batches: Iterable[Tensor], settings: Settings
) -> float:
    """Train one step per batch of triples; return the summed loss."""
    total = torch.zeros((), device=vectors.device)
    for triples in batches:
        loss = bpr_loss(vectors, graph, triples, settings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * triples.shape[1]
    return total.item()


def ndcg_of(held_out: Examples, train: Examples) -> Callable[[Tensor], float]:
    """Return the function that computes mean ndcg@10 of held-out items from (U + N, D) vectors.

    Each item is ranked among all items that its user does not have.
    """
    row_of = {user: row for row, user in enumerate(train.user_ids)}
    users = np.array([row_of[user] for user in held_out.user_ids])

    def quality(vectors: Tensor) -> float:
        """Mean ndcg@10 of the held-out items."""
        items, places = vectors[len(train) :], []
        for first in range(0, len(users), BLOCK):
            part = users[first : first + BLOCK]
            targets = torch.from_numpy(held_out.targets[first : first + BLOCK, None]).to(vectors.device)
            scores = vectors[torch.from_numpy(part).to(vectors.device)] @ items.T  # (BLOCK, N)
            wanted = scores.gather(1, targets)
            taken = [train.sequence(user) for user in part]
            owner = np.repeat(np.arange(len(part)), [len(sequence) for sequence in taken])
            scores[torch.from_numpy(owner), torch.from_numpy(np.concatenate(taken))] = -torch.inf
            places.append((scores > wanted).sum(dim=1))
        place = torch.cat(places).double()
        return float(torch.where(place < SELECTION_K, 1 / torch.log2(place + 2), 0).mean())

    return quality
