"""Learnability probe: how well semantic IDs can be told from histories, in minutes and before any LLM is trained.

A log-linear model p(c_l | c_<l, history) per level is fitted to the training sequences and judged on the valid rows:

    logit of code c at level l = w_lc . (h + p) + b_lc
    h = mean over the last 10 items of their codes' vectors + the last item's codes' vectors
    p = vector of the prefix c_<l (teacher-forced) + its codes' vectors

Its cross-entropies say how much of each level the histories foretell, and its ranking of the items how much of that
helps to name the item. Rank tokenizers by `item_cross_entropy` or `recall_at_50`, not by `lp` where SIDs are shared.

Source: open question 1 of ReSID (arXiv:2602.02338) asks for such a measure; the model is ours. It departs from a
first sketch, LP and gain over hashed features with a beam:

- LP falls when items share SIDs, to 0 where all share one. `item_cross_entropy` adds the nats that name the item among
  those of its SID, so that tables of any collision rate can be compared.
- `gain` refers to H(c_l | c_<l) weighted by training frequency. Weighted by items it would count popularity, which asks
  for no history, as gained. It is the entropy of the training interactions themselves, so a gain below 0 is possible:
  there the probe pays more for rare prefixes than the histories tell it.
- A prefix has a vector of its own besides those of its codes, numbered exactly, not hashed. On Beauty (RQ-KMeans, 4
  levels) the probe without it paid 2.61 instead of 0.90 nats at the third level.
- History and prefix enter as a sum. So the normalisers of all prefixes are one product of two matrices of exponentials,
  and every item is scored exactly. Gating the history by the prefix lowered LP by 0.01 to 0.09 on three tables of
  Beauty, and raised the cross-entropy of level 0 on each.
- The end of a shorter SID costs nothing: in a prefix-free table it is certain, and the decoder scores it 0 as well. In
  the entropies it is a code, the only one after its prefix.
- Dropout of 0.2 on the history vector: on Beauty LP went from 8.42 to 8.36.

Shapes: B rows, M items of a history, N items, S SIDs, L levels, K codes of a level, V codes of all levels, P prefixes
of one length, D dim, T interactions, n targets.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmrec.catalog import Catalog, Rows
from llmrec.device import resolve_device
from llmrec.diagnostics import entropy_bits
from llmrec.evaluation.metrics import Position, ndcg, recall
from llmrec.sid import EMPTY, SidTable

RECENT = 10  # items of a history that are read
# At half the rate the four epochs end at an LP of 8.52 instead of 8.42 on Beauty, both without dropout.
DIM, LEARNING_RATE, BATCH, DROPOUT = 64, 0.02, 1024, 0.2
SCORES = 2**23  # normalisers and scores held at once while items are ranked; 64 MiB each


@dataclass(frozen=True)
class Probe:
    """What the probe found; entropies in nats, one entry per level.

    Attributes:
        cross_entropy: Of the valid targets' codes, given history and prefix.
        entropy: H(c_l | c_<l) of the training interactions; the reference of `gain`.
        item_entropy: H(c_l | c_<l) of uniformly drawn items; adds up to log N where no SID is shared.
        gain: (entropy - cross_entropy) / entropy; 0 where the entropy is 0.
        lp: Sum of `cross_entropy`, the nats that name the target's SID.
        item_cross_entropy: `lp` and the nats that name the target among the items of its SID, all equally likely.
        recall_at_50: Of the valid targets, all items ranked by the probe; items of a SID share the credit.
        ndcg_at_10: Of the same ranking.
        num_ranked: Valid rows of the ranking; the cross-entropies are of all.
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
    """Fit the probe to the training rows and judge it on the valid rows; test rows are never read.

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
    started, valid = time.monotonic(), catalog.rows("valid")
    _check(catalog, sid_table, valid, epochs, max_ranked)
    where = resolve_device(device)
    codes_NL = sid_table.codes(np.arange(catalog.num_items))
    prefixes = _prefixes(codes_NL)
    generator = torch.Generator(where).manual_seed(seed)
    model = _LogLinear(codes_NL, prefixes, sid_table.level_sizes, generator)
    _fit(model, _Targets.of(catalog.train, where, every=True), epochs, generator)
    cross_entropy = _cross_entropy(model, _Targets.of(valid, where))
    ranked = valid.take(valid.sample(max_ranked, seed))
    position = _positions(model, _Targets.of(ranked, where))
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


def _check(catalog: Catalog, sid_table: SidTable, valid: Rows, epochs: int, max_ranked: int) -> None:
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
        problems.append(f"'{catalog.source}' has no 'valid' rows to judge by. Run `llmrec prepare` with more users")
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


@dataclass(frozen=True)
class _Targets:
    """Targets, and where their left contexts are in one long array of sequences.

    Attributes:
        items: (T,) item rows of all sequences, one after another.
        starts: (n,) place in `items` where the sequence of each target begins.
        places: (n,) place of each target.
    """

    items: Tensor
    starts: Tensor
    places: Tensor

    @classmethod
    def of(cls, rows: Rows, device: torch.device, every: bool = False) -> _Targets:
        """The targets of the rows, or every item of their sequences that has one before it."""
        number, lengths = np.arange(len(rows)), np.diff(rows.offsets) + 1
        starts, places = rows.offsets[:-1] + number, rows.offsets[1:] + number
        if every:
            starts, places = starts.repeat(lengths), np.arange(lengths.sum())
            starts, places = starts[places > starts], places[places > starts]
        items = np.insert(rows.values, rows.offsets[1:], rows.targets)
        return cls(*(torch.from_numpy(array).to(device) for array in (items, starts, places)))

    def __len__(self) -> int:
        return len(self.places)

    def take(self, chosen: Tensor | slice) -> tuple[Tensor, Tensor]:
        """(B, M) items before each of the chosen targets, latest first, -1 where there is none, and (B,) targets."""
        starts, places = self.starts[chosen], self.places[chosen]
        before = places[:, None] - torch.arange(1, RECENT + 1, device=places.device)
        histories = torch.where(before >= starts[:, None], self.items[before.clamp(min=0)], -1)
        return histories, self.items[places]


class _LogLinear(torch.nn.Module):
    """The model of the header; item row -1 of a history is none, and has no codes."""

    def __init__(self, codes_NL: np.ndarray, prefixes: np.ndarray, level_sizes: list[int], generator: torch.Generator):
        super().__init__()
        device, num_codes = generator.device, sum(level_sizes)
        self.num_levels = len(level_sizes)
        first = np.cumsum([0, *level_sizes])
        self.rows = [slice(*pair) for pair in pairwise(first)]  # of each level among the V codes
        tokens = np.where(codes_NL == EMPTY, num_codes, codes_NL + first[:-1])
        nothing = np.full((1, self.num_levels), num_codes)  # the last row, so that -1 finds it
        self.codes = torch.from_numpy(codes_NL).to(device)  # (N, L)
        self.tokens = torch.from_numpy(np.concatenate([tokens, nothing])).to(device)  # (N + 1, L)
        self.prefixes = torch.from_numpy(prefixes).to(device)  # (N, L + 1)
        owners = [np.unique(column, return_index=True)[1] for column in prefixes.T]
        self.owners = [torch.from_numpy(items).to(device) for items in owners]  # (P,) each, an item of each prefix

        def random(rows: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(rows, DIM, generator=generator, device=device) / DIM**0.5)

        self.recent, self.last, self.earlier = (random(num_codes + 1) for _ in range(3))
        self.prefix = torch.nn.ParameterList(random(len(items)) for items in owners[:-1])
        # Zeros make every code equally likely at first.
        self.weight = torch.nn.Parameter(torch.zeros(num_codes, DIM, device=device))
        self.bias = torch.nn.Parameter(torch.zeros(num_codes, device=device))

    def history_vector(self, histories: Tensor) -> Tensor:
        """(B, D) of (B, M) item rows, latest first."""
        tokens, known = self.tokens[histories], (histories >= 0).sum(dim=1, keepdim=True)
        return _sum_of(self.recent, tokens.flatten(1)) / known.clamp(min=1) + _sum_of(self.last, tokens[:, 0])

    def prefix_vector(self, items: Tensor, level: int) -> Tensor:
        """(B, D) of the first `level` codes of (B,) item rows."""
        vector = F.embedding(self.prefixes[items, level], self.prefix[level])
        return vector + _sum_of(self.earlier, self.tokens[items, :level]) if level else vector

    def log_probs(self, history_vector: Tensor, items: Tensor) -> Tensor:
        """(B, L) log-probability of each code of (B,) items given its prefix; 0 beyond the end of a SID."""
        found = []
        for level, rows in enumerate(self.rows):
            vector = history_vector + self.prefix_vector(items, level)
            logits = F.linear(vector, self.weight[rows], self.bias[rows])  # (B, K)
            found.append(_pick(logits.log_softmax(dim=1), self.codes[items, level]))
        return torch.stack(found, dim=1)

    def sid_scores(self, history_vector: Tensor, prefix_logits: list[Tensor]) -> Tensor:
        """(B, S) log-probability of every SID, S the numbers in the last column of `prefixes`.

        Args:
            history_vector: (B, D).
            prefix_logits: What `prefix_logits` returns.
        """
        owners, total = self.owners[-1], 0.0
        for level, (rows, of_prefix) in enumerate(zip(self.rows, prefix_logits, strict=True)):
            of_history = history_vector.double() @ self.weight[rows].double().T  # (B, K)
            codes, prefixes = self.codes[owners, level], self.prefixes[owners, level]  # (S,)
            normaliser = _log_sum_exp_of_sums(of_history, of_prefix)  # (B, P)
            logits = of_history[:, codes.clamp(min=0)] + of_prefix[prefixes, codes.clamp(min=0)]  # (B, S)
            total = total + torch.where(codes != EMPTY, logits - normaliser[:, prefixes], 0.0)
        return total

    def prefix_logits(self) -> list[Tensor]:
        """Per level (P, K) what each prefix adds to the logits, in double precision."""
        found = []
        for level, rows in enumerate(self.rows):
            vector = self.prefix_vector(self.owners[level], level)
            found.append(vector.double() @ self.weight[rows].double().T + self.bias[rows].double())
        return found


def _sum_of(table: Tensor, tokens: Tensor) -> Tensor:
    """(B, D) sum of the rows of `table` that (B, …) tokens name; its last row stands for nothing."""
    return F.embedding_bag(tokens, table, mode="sum", padding_idx=len(table) - 1)


def _pick(log_probs: Tensor, codes: Tensor) -> Tensor:
    """(B,) entry of each row that its code names, 0 for none."""
    picked = log_probs.gather(1, codes.clamp(min=0)[:, None])[:, 0]
    return torch.where(codes != EMPTY, picked, 0.0)


def _log_sum_exp_of_sums(of_history: Tensor, of_prefix: Tensor) -> Tensor:
    """(B, P) log sum over k of exp(of_history[b, k] + of_prefix[p, k]), as a product of matrices.

    Both are (…, K) doubles: the largest terms of the two may be at different codes, where floats would vanish.
    """
    high_B, high_P = of_history.amax(dim=1, keepdim=True), of_prefix.amax(dim=1, keepdim=True)
    return ((of_history - high_B).exp() @ (of_prefix - high_P).exp().T).log() + high_B + high_P.T


def _fit(model: _LogLinear, targets: _Targets, epochs: int, generator: torch.Generator) -> None:
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
def _cross_entropy(model: _LogLinear, targets: _Targets) -> np.ndarray:
    """(L,) mean over the targets, in nats."""
    total = np.zeros(model.num_levels)
    for first in range(0, len(targets), BATCH):
        histories, items = targets.take(slice(first, first + BATCH))
        total -= model.log_probs(model.history_vector(histories), items).double().sum(dim=0).cpu().numpy()
    return total / len(targets)


@torch.no_grad()
def _positions(model: _LogLinear, targets: _Targets) -> Position:
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
