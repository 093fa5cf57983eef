"""Learnability probe: the predictability of semantic IDs from histories, measured in minutes without an LLM.

A log-linear model p(c_l | c_<l, history) per level is fitted to the training sequences and evaluated on the valid
examples:

    logit of code c at level l = w_lc . (h + p) + b_lc
    h = mean over the last 10 items of their codes' vectors + the last item's codes' vectors
    p = vector of the prefix c_<l (teacher-forced) + its codes' vectors

Its cross-entropies measure how much the histories predict of each level, and its ranking of the items how much of that
identifies the item. Rank tokenizers by `item_cross_entropy` or `recall_at_50`; do not use `lp` if SIDs are shared.
docs/tokenizers.md compares the probe with trained decoders. It has changed no decision, so it is an experiment.

Source: open question 1 of ReSID (arXiv:2602.02338) asks for such a measure; the model is ours. Its choices:

- LP falls when items share SIDs, to 0 if all share one. `item_cross_entropy` adds the nats that identify the item among
  those of its SID, so that tables of any collision rate can be compared.
- `gain` is relative to H(c_l | c_<l) weighted by training frequency. Weighted by items it would count popularity, which
  needs no history, as gained. It is the entropy of the training interactions themselves, so a gain below 0 is possible:
  the probe then loses more at rare prefixes than it learns from the histories.
- A prefix has its own vector in addition to those of its codes, numbered exactly, not hashed. On Beauty (RQ-KMeans, 4
  levels) the cross-entropy of the third level is 2.61 nats without it and 0.90 with it.
- History and prefix are added. So the normalisers of all prefixes are one product of two matrices of exponentials, and
  every item is scored exactly. Gating the history by the prefix lowered LP by 0.01 to 0.09 on three tables of Beauty,
  and raised the cross-entropy of level 0 on each.
- The end of a shorter SID costs nothing: in a prefix-free table it is certain, and the decoder scores it 0 as well. In
  the entropies it is a code, the only one after its prefix.
- Dropout of 0.2 on the history vector lowered LP on Beauty from 8.42 to 8.36.

Shapes: N items, S SIDs, L levels, B examples.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from llmrec.data.catalog import Catalog
from llmrec.data.examples import Examples
from llmrec.evaluation.metrics import Position, ndcg, recall
from llmrec.runtime.device import resolve_device
from llmrec.sid.groups import entropy_bits
from llmrec.sid.table import SidTable
from probe.log_linear import LogLinear
from probe.targets import Targets

# At half the rate the four epochs end at an LP of 8.52 instead of 8.42 on Beauty, both without dropout.
LEARNING_RATE, BATCH, DROPOUT = 0.02, 1024, 0.2
SCORES = 2**23  # normalisers and scores held at once while items are ranked; 64 MiB each


@dataclass(frozen=True)
class Probe:
    """Result of the probe; entropies are in nats, with one entry per level.

    Attributes:
        cross_entropy: Cross-entropy of the valid targets' codes, given history and prefix.
        entropy: H(c_l | c_<l) of the training interactions; the reference of `gain`.
        item_entropy: H(c_l | c_<l) of uniformly drawn items; adds up to log N where no SID is shared.
        gain: (entropy - cross_entropy) / entropy; 0 where the entropy is 0.
        lp: Sum of `cross_entropy`, the nats that identify the target's SID.
        item_cross_entropy: `lp` plus the nats that identify the target among the items of its SID, all equally likely.
        recall_at_50: Recall of the valid targets when the probe ranks all items; items of a SID share the credit.
        ndcg_at_10: NDCG of the same ranking.
        num_ranked: Number of valid examples that were ranked; the cross-entropies use all.
        seconds: Wall time.
    """

    cross_entropy: list[float]
    entropy: list[float]
    item_entropy: list[float]
    gain: list[float]
    lp: float
    item_cross_entropy: float
    recall_at_50: float
    ndcg_at_10: float
    num_ranked: int
    seconds: float = field(compare=False)


def probe(
    catalog: Catalog,
    sid_table: SidTable,
    seed: int = 0,
    device: str = "auto",
    epochs: int = 4,
    max_ranked: int = 25_000,
) -> Probe:
    """Fit the probe to the training sequences and evaluate it on the valid examples; test examples are never read.

    Args:
        catalog: Whose histories are learned.
        sid_table: Of the same items; of an item with several SIDs the first counts.
        seed: Of initialisation, order and dropout, and of the rows that are ranked.
        device: auto, cpu or cuda.
        epochs: Passes over the training targets; 0 leaves every code equally likely.
        max_ranked: Most valid rows for which all items are ranked.

    Returns:
        The Probe; the same for the same arguments on the same device.

    Raises:
        ValueError: If the table is of other items, no training sequence has two items, there are no valid rows,
            or an option is too small.

    Source: ReSID (arXiv:2602.02338), open question 1.
    """
    started, valid = time.monotonic(), catalog.examples("valid")
    _check(catalog, sid_table, valid, epochs, max_ranked)
    where = resolve_device(device)
    codes_NL = sid_table.codes(np.arange(catalog.num_items))
    prefixes = _prefixes(codes_NL)
    generator = torch.Generator(where).manual_seed(seed)
    model = LogLinear(codes_NL, prefixes, sid_table.level_sizes, generator)
    _fit(model, Targets.of(catalog.train, where, every=True), epochs, generator)
    cross_entropy = _cross_entropy(model, Targets.of(valid, where))
    ranked = valid.take(valid.sample(max_ranked, seed))
    position = _positions(model, Targets.of(ranked, where))
    entropy, item_entropy = _entropies(prefixes, catalog.training_counts), _entropies(prefixes, np.ones(len(prefixes)))
    return Probe(
        cross_entropy=cross_entropy.tolist(),
        entropy=entropy.tolist(),
        item_entropy=item_entropy.tolist(),
        gain=[float((h - ce) / h) if h > 0 else 0.0 for h, ce in zip(entropy, cross_entropy, strict=True)],
        lp=float(cross_entropy.sum()),
        item_cross_entropy=float(cross_entropy.sum() + np.log(sid_table.bucket_sizes[valid.targets]).mean()),
        recall_at_50=float(recall(position, 50).mean()),
        ndcg_at_10=float(ndcg(position, 10).mean()),
        num_ranked=len(ranked),
        seconds=time.monotonic() - started,
    )


def _check(catalog: Catalog, sid_table: SidTable, valid: Examples, epochs: int, max_ranked: int) -> None:
    """Refuse what cannot be probed, with every problem at once."""
    problems = []
    if sid_table.item_ids != catalog.item_ids:
        known = set(sid_table.item_ids)
        missing = [item_id for item_id in catalog.item_ids if item_id not in known]
        difference = f"first missing: {missing[:3]}" if missing else "it has others, or the same in another order"
        problems.append(
            f"the SID table has {sid_table.num_items} items but '{catalog.source}' has {catalog.num_items}; "
            f"{difference}. Run `llmrec tokenize` again after changing the catalogue"
        )
    if np.diff(catalog.train.offsets).max(initial=0) < 1:
        problems.append(
            f"'{catalog.source}' has {len(catalog.train)} training sequences, none with two items, so that the probe "
            "has no training targets. Run `llmrec prepare` with more users or a smaller k_core"
        )
    if len(valid) == 0:
        problems.append(f"'{catalog.source}' has no 'valid' examples to evaluate. Run `llmrec prepare` with more users")
    if epochs < 0 or max_ranked < 1:
        problems.append(f"epochs is {epochs} and max_ranked {max_ranked}; at least 0 and at least 1 are needed")
    if problems:
        raise ValueError(f"The probe cannot run: {'; '.join(problems)}.")


def _prefixes(codes_NL: np.ndarray) -> np.ndarray:
    """(N, L + 1) number of each item's prefix of 0 … L codes, counted from 0 among the prefixes of that length."""
    numbers = [np.zeros(len(codes_NL), np.int64)]
    for codes_N in codes_NL.T:
        pairs = np.stack([numbers[-1], codes_N], axis=1)
        numbers.append(np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1))
    return np.stack(numbers, axis=1)


def _entropies(prefixes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(L,) H(c_l | c_<l) in nats of items drawn by weight; at least 0 in spite of rounding."""
    joint = [entropy_bits(np.bincount(numbers, weights)) * np.log(2) for numbers in prefixes.T]
    return np.maximum(np.diff(joint).round(12), 0)


def _fit(model: LogLinear, targets: Targets, epochs: int, generator: torch.Generator) -> None:
    """Adam on all levels at once, the learning rate falling to 0."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    steps = epochs * -(-len(targets) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(steps, 1))
    for _ in range(epochs):
        for chosen in torch.randperm(len(targets), generator=generator, device=generator.device).split(BATCH):
            histories, items = targets.take(chosen)
            vector = model.history_vector(histories)
            kept = torch.rand(vector.shape, generator=generator, device=generator.device) >= DROPOUT
            loss = -model.log_probs(vector * kept / (1 - DROPOUT), items).sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def _cross_entropy(model: LogLinear, targets: Targets) -> np.ndarray:
    """(L,) mean over the targets, in nats."""
    total = np.zeros(model.num_levels)
    for first in range(0, len(targets), BATCH):
        histories, items = targets.take(slice(first, first + BATCH))
        total -= model.log_probs(model.history_vector(histories), items).double().sum(dim=0).cpu().numpy()
    return total / len(targets)


@torch.no_grad()
def _positions(model: LogLinear, targets: Targets) -> Position:
    """Where the targets stand when all items are ranked; items of equal score are one tie group."""
    prefix_logits, sids = model.prefix_logits(), model.prefixes[:, -1]
    sizes = torch.bincount(sids)  # (S,)
    widest = max(len(sizes), *(len(logits) for logits in prefix_logits))
    size, found = max(1, SCORES // widest), []
    for first in range(0, len(targets), size):
        histories, items = targets.take(slice(first, first + size))
        scores = model.sid_scores(model.history_vector(histories), prefix_logits)  # (B, S)
        own = scores.gather(1, sids[items][:, None])
        above, equal = scores > own, scores == own
        found.append(torch.stack([(above * sizes).sum(1), (equal * sizes).sum(1), above.sum(1)]).cpu().numpy())
    return Position(*np.concatenate(found, axis=1))
