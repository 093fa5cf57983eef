"""FAMAE view: vectors of items and of their side fields, learned by filling in hidden fields of the next item.

Field-aware masked auto-encoding of ReSID (arXiv:2602.02338). A window is a history with the next item at its last
position. The input at a position is the sum of the vectors of the item's fields; the first field is the item itself. At
the last position, 1 to J fields (a uniform number, then a uniform choice) are hidden: learned vectors, one per field,
replace them. The state of a bidirectional transformer at that position predicts all hidden fields by a softmax over
sqrt(d) cosines with the vectors of the values, or over 128 sampled negatives if a field has many values. All fields
have the same weight in the loss (alpha = 1). The vector of an item is the concatenation of the vectors of its values;
the states of the transformer are not used.

Validation uses the paper's two task-aware metrics: recall@10 of the item with every field hidden, and with only the
item itself hidden. Training goes on while one of them rises. The epoch with the largest product of the two is kept,
because they differ much in size (.01 to .04 and .45 to .65 on the paper's Musical Instruments).

Departures: an item may have several values of a field, or none (the paper drops such items). A field is read as the
mean of its values and predicted as a set, each value with the same probability; "none" is a value that is learned as
input and never predicted. The paper does not say whether it scales the parts of a vector; here each has unit length.
Validation examples are held out of the training interactions (`llmrec.views.hold_out`). Inputs pass a layer norm, as in
BERT4Rec; small logs have smaller batches; negatives are uniform and shared by a batch. A part is zero if training has
seen none of the item's values in that field; so is the first part of an item that is in no sequence.

Shapes: N items, J fields, W values of one item in a field, B windows, T positions, D dimension of a field.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from llmrec.baselines.networks.examples import shuffled
from llmrec.baselines.networks.trainer import LEAST_STEPS
from llmrec.baselines.networks.training_options import TrainingOptions
from llmrec.data import columns
from llmrec.data.catalog import Catalog
from llmrec.data.side_fields import NO_FIELDS, entries, is_shared
from llmrec.runtime.console import progress, say
from llmrec.runtime.device import from_host, resolve_device
from llmrec.views import View, describe, scatter
from llmrec.views.famae_network import FAMAE, PADDING, WINDOW, Field
from llmrec.views.hold_out import hold_out

# The settings of the paper; the rate falls along a cosine that ends at `max_epochs`.
TRAINING = TrainingOptions(
    learning_rate=1e-3, batch_size=2048, weight_decay=1e-5, max_epochs=500, patience=3, max_history=WINDOW - 1
)
SELECTION_K = 10
BLOCK = 512  # windows scored at once; bounds memory at BLOCK x N scores


class Windows(NamedTuple):
    """Histories, each with the next item.

    Attributes:
        items: Item rows of all sequences, one after another.
        starts: Place of the first item of each window in `items`.
        ends: Place of its last item.
    """

    items: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def batch(self, windows_B: np.ndarray) -> np.ndarray:
        """(B, T) item rows of some windows, padded on the left with PADDING."""
        starts, ends = self.starts[windows_B, None], self.ends[windows_B, None]
        places = ends - np.arange(int((ends - starts).max()), -1, -1)
        return np.where(places >= starts, self.items[places.clip(min=0)], PADDING)


class Quality(NamedTuple):
    """recall@10 of the held-out items among all N, with all fields hidden and with the item alone hidden."""

    all_hidden: float
    item_hidden: float

    def both(self) -> tuple[float, float]:
        """Product and sum of the metrics; the sum decides while the product is 0."""
        return self.all_hidden * self.item_hidden, self.all_hidden + self.item_hidden


def item_fields(catalog: Catalog) -> list[Field]:
    """Fields of the items: the item itself, then the columns of items.parquet that are side fields.

    Raises:
        ValueError: If there is no side field.
    """
    names = [name for name in catalog.items.column_names if name not in NO_FIELDS]
    given = {name: entries(catalog.items[name]) for name in names}
    shared = {name: found for name, found in given.items() if found is not None and is_shared(*found)}
    if not shared:
        raise ValueError(
            f"view 'famae' needs a side field, and of the columns {catalog.items.column_names} of "
            f"'{catalog.source}/items.parquet' none is one: text, integers or lists of at least two values, most of "
            "them shared by several items. Add such a column, a brand or genres, before `llmrec prepare`, or leave "
            "famae out of `views`."
        )
    own = Field(columns.ITEM_ID, np.arange(catalog.num_items)[:, None], catalog.num_items)
    return [own, *(_field(name, *found, catalog.num_items) for name, found in shared.items())]


def _field(name: str, rows: np.ndarray, codes: np.ndarray, num_items: int) -> Field:
    """Make a field from the item row and code of every entry; a value that an item repeats counts once."""
    rows, codes = np.unique(np.stack([rows, codes]), axis=1)
    counts, num_values = np.bincount(rows, minlength=num_items), int(codes.max()) + 1
    values = np.full((num_items, counts.max()), num_values + 1)
    values[counts == 0, 0] = num_values
    values[rows, np.arange(len(rows)) - (counts.cumsum() - counts)[rows]] = codes
    return Field(name, values, num_values)


def windows_of(sequences: Sequence[np.ndarray], every: bool = True) -> Windows:
    """Windows that end in every item of the sequences but the first, or only in the last items."""
    lengths = np.array([len(sequence) for sequence in sequences])
    begins = np.repeat(lengths.cumsum() - lengths, lengths)
    ends = np.arange(lengths.sum())
    chosen = ends > begins if every else ends == begins + np.repeat(lengths, lengths) - 1
    ends, begins = ends[chosen], begins[chosen]
    return Windows(np.concatenate(sequences), np.maximum(begins, ends - WINDOW + 1), ends)


@torch.no_grad()
def quality(network: FAMAE, windows: Windows) -> Quality:
    """Compute both metrics of a network in evaluation mode; a tie counts against the item."""
    device, (size, *others) = network.masks.device, network.sizes
    found = np.zeros(2)
    for first in range(0, len(windows.ends), BLOCK):
        items = from_host(windows.batch(np.arange(first, min(first + BLOCK, len(windows.ends)))), device)
        for which, rest in enumerate((True, False)):
            hidden = torch.tensor([True, *(rest for _ in others)], device=device).expand(len(items), -1)
            scores_BN = network.scores(network(items, hidden), 0, slice(size))
            found[which] += int(((scores_BN >= scores_BN.gather(1, items[:, -1:])).sum(1) <= SELECTION_K).sum())
    return Quality(*(found / len(windows.ends)).tolist())


def hidden_fields(num_windows: int, num_fields: int, rng: np.random.Generator) -> np.ndarray:
    """Draw fields to hide: (B, J) bool, a uniform number from 1 to J and a uniform choice of that many."""
    count = rng.integers(1, num_fields + 1, num_windows)
    return rng.random((num_windows, num_fields)).argsort(axis=1).argsort(axis=1) < count[:, None]


def train(network: FAMAE, windows: Windows, held_out: Windows, training: TrainingOptions, seed: int) -> list[Quality]:
    """Train a network and leave it in evaluation mode with the weights of its best epoch.

    Args:
        network: Network on its device.
        windows: Windows to train on, each once in an epoch.
        held_out: Windows that end in held-out items.
        training: Options of the training.
        seed: Seed of the order of the windows, the hidden fields and the negatives; dropout uses torch's global seed.

    Returns:
        Metrics of each epoch; `best_epoch` says which epoch was kept.
    """
    batch_size = max(1, min(training.batch_size, len(windows.ends) // LEAST_STEPS))
    optimizer = torch.optim.AdamW(
        network.parameters(), training.learning_rate, weight_decay=training.weight_decay, fused=True
    )
    steps = training.max_epochs * math.ceil(len(windows.ends) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng, log, kept = np.random.default_rng(seed), [], {}
    for epoch in progress(range(training.max_epochs), "train famae", unit="epochs at most"):
        network.train()
        for rows in shuffled(len(windows.ends), batch_size, rng):
            loss = network.loss(windows.batch(rows), hidden_fields(len(rows), len(network.sizes), rng), rng)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        network.eval()
        log.append(quality(network, held_out))
        if best_epoch(log) == epoch:
            kept = {key: value.clone() for key, value in network.state_dict().items()}
        if epoch - max(int(np.argmax(metric)) for metric in zip(*log, strict=True)) >= training.patience:
            break
    network.load_state_dict(kept)
    return log


def best_epoch(log: Sequence[Quality]) -> int:
    """0-based epoch that is best by both metrics, the first one of equals."""
    return max(range(len(log)), key=lambda epoch: log[epoch].both())


def vectors_of(network: FAMAE, trained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the items from the values that training has seen.

    Args:
        network: Trained network.
        trained: Item rows of the items that training has seen, each once.

    Returns:
        (N, J D) float32 vectors of J parts, each the mean of the seen values of the item, or zero; and (N,) bool, True
        for items with at least one seen value. "None" does not count as a value.
    """
    blocks, known_N = [], torch.zeros(len(network.values(0)), dtype=torch.bool)
    for i, (bag, size) in enumerate(zip(network.bags, network.sizes, strict=True)):
        values_NW, rows_VD = network.values(i).cpu(), bag.weight.detach().cpu()
        seen = torch.zeros(size + 2, dtype=torch.bool)
        seen[values_NW[torch.from_numpy(trained)]] = True
        sums_ND = functional.embedding_bag(values_NW, rows_VD * seen[:, None], mode="sum", padding_idx=size + 1)
        blocks.append(functional.normalize(sums_ND, dim=1))
        known_N |= (seen[values_NW] & (values_NW < size)).any(dim=1)
    return torch.cat(blocks, dim=1).numpy(), known_N.numpy()


def famae_view(catalog: Catalog, dim: int, seed: int, device: str, training: TrainingOptions = TRAINING) -> View:
    """Train FAMAE and concatenate the vectors of each item and its side fields.

    Items of which training has seen no value are missing.

    Args:
        catalog: Catalogue whose items and training examples are read.
        dim: Dimension of a field, a multiple of the network's four heads.
        seed: Seed of the held-out items and of everything random in training.
        device: auto, cpu or cuda.
        training: Options of the trainer.

    Raises:
        ValueError: If there is no side field, or no training sequence can give a held-out item.
    """
    fields, inner, where = item_fields(catalog), hold_out(catalog, seed), resolve_device(device)
    left_out = set(catalog.items.column_names) - {*NO_FIELDS, *(field.name for field in fields)}
    if left_out:
        say(f"famae leaves out {sorted(left_out)}: no categories, one value only, or values that one item alone has")
    valid, started = inner.examples("valid"), time.monotonic()
    held_out = windows_of([np.append(valid.history(i), valid.targets[i]) for i in range(len(valid))], every=False)
    with torch.random.fork_rng([where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        network = FAMAE(fields, dim).to(where)
        log = train(network, windows_of(inner.train.sequences()), held_out, training, seed)
    best = best_epoch(log)
    say(
        f"famae: epoch {best + 1} of {len(log)} in {time.monotonic() - started:.0f} s, recall@{SELECTION_K} "
        f"{log[best].all_hidden:.4f} with all fields hidden, {log[best].item_hidden:.4f} with the item alone"
    )
    facts = describe(
        "famae", catalog, encoder="famae", fields=[field.name for field in fields],
        dim_per_field=dim, seed=seed, judges=len(valid), epoch=best + 1, window=WINDOW, **log[best]._asdict(),
        **dataclasses.asdict(training),
    )  # fmt: skip
    examples = inner.train
    trained = np.union1d(examples.values, examples.targets[np.diff(examples.offsets) > 0])
    vectors, known = vectors_of(network, trained)
    return scatter(vectors[known], np.flatnonzero(known), catalog.num_items, facts)
