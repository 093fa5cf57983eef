"""ReSID on items that lack side fields, which its paper leaves out (arXiv:2602.02338, open question 3).

    python scripts/experiments/field_drop.py --catalog runs/movietweetings-micro/catalog --work /tmp/drop \\
        --results /tmp/drop/results.jsonl --seeds 0 1 2 --parallel 8 --budget-s 300 --deadline-s 540

From a share of the items, drawn by the seed, all side fields are taken (what 30 % lose, 60 % lose as well). `fields` is
ReSID on what is left, `fields and text` has one field more, the k-means cluster of the item's title, which no item with
a title lacks, and `text` is GAOQ on the titles alone. The log, the split and the decoder are the same in all. Besides
recall it says how often the targets that have lost their fields are found, and how often the same ones are found where
nothing is lost. Another --work is another run: the files of items lie there.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from decoder import decoder_steps, recommended
from grid import Run, carry_out, parser, tell_failures

from llmrec.data.catalog import Catalog
from llmrec.data.columns import TARGET, USER_ID
from llmrec.evaluation.bootstrap import interval, paired_difference
from llmrec.evaluation.metrics import Position, recall
from llmrec.tokenizers.shared.kmeans import kmeans, nearest
from llmrec.views import ItemViews
from llmrec.views.famae import item_fields
from llmrec.views.text import tfidf_view

RATES = (0.0, 0.3, 0.6)
TITLES = {"text_encoder": "tfidf", "text_template": "{title}"}  # the column `text` repeats the fields
TEXT_FIELD, TEXT_VALUES, TEXT_DIM = "title_cluster", 64, 64
K = 10


def runs_of(arguments: argparse.Namespace, catalog: Catalog, fields: list[str]) -> list[Run]:
    found = []
    for seed in arguments.seeds:
        clusters = title_clusters(catalog, seed)
        for rate in arguments.rates:
            dropped = drop_fields(catalog.items, fields, rate, seed)
            with_text = dropped.append_column(TEXT_FIELD, clusters)
            arms = {"fields": ("famae", dropped), "fields and text": ("famae", with_text)}
            arms |= {"text": ("text", dropped)} if rate == 0 else {}
            for arm, (view, items) in arms.items():
                file = Path(arguments.work) / f"items-{arm.replace(' ', '-')}-{rate}-{seed}.parquet"
                file.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(items, file)
                found.append(Run(f"{arm}, {rate:.0%} dropped", steps_of(arguments, view, file), seed))
    return found


def steps_of(arguments: argparse.Namespace, view: str, items: Path) -> tuple:
    device = {"device": arguments.device}
    log = str(Path(arguments.catalog).resolve() / "interactions.parquet")
    embed = {"views": [view], **device, **({"famae_dim": arguments.famae_dim} if view == "famae" else TITLES)}
    batch = {"batch_size": arguments.batch_size, "micro_batch_size": arguments.batch_size}
    return (
        ("prepare", {"interactions": log, "items": str(items.resolve()), "k_core": 0}),
        ("embed", embed),
        ("tokenize", {"method": "gaoq", "view_names": [view], "collision": "hungarian_leaf", **device}),
        *decoder_steps({}, arguments.epochs, arguments.device, sft={**batch, "learning_rate": arguments.learning_rate}),
    )


def drop_fields(items: pa.Table, fields: list[str], rate: float, seed: int) -> pa.Table:
    """Items of which a share has lost its fields; a larger share holds the smaller one."""
    lost = np.random.default_rng(seed).permutation(len(items))[: round(rate * len(items))]
    rows = np.arange(len(items))
    kept = pa.array(rows, mask=np.isin(rows, lost))
    for name in fields:
        column = items[name].combine_chunks().take(kept)
        items = items.set_column(items.column_names.index(name), name, column)
    return items


def title_clusters(catalog: Catalog, seed: int) -> pa.Array:
    """The k-means cluster of each item's title, null where it has none."""
    view = tfidf_view(catalog, TITLES["text_template"], TEXT_DIM, seed)
    known_BD = torch.from_numpy(view.vectors[~view.missing])
    count = max(2, min(TEXT_VALUES, len(known_BD) // 4))
    codebook_KD = kmeans(known_BD, count, 25, torch.Generator().manual_seed(seed))
    codes = np.zeros(catalog.num_items, np.int64)
    codes[~view.missing] = nearest(known_BD, codebook_KD)[0].numpy()
    return pa.array([f"title {code}" for code in codes], mask=view.missing)


def measure(fields: list[str], run: Run, directories: list[Path]) -> dict[str, Any]:
    """Recommendations, the metrics of FAMAE, and which users' test targets are among the first ten.

    Args:
        fields: Columns that are dropped.
        run: What was run.
        directories: Of its stages.
    """
    prepared, embedded, _, _, _, *evaluated = directories
    table = pq.read_table(evaluated[-1] / "per_user.parquet", filters=[("column", "=", "plain")]).sort_by(USER_ID)
    hits = recall(Position(*(table[name].to_numpy() for name in Position._fields)), K)
    catalog = Catalog.load(prepared)
    without = np.all([catalog.items[name].is_null().to_numpy() for name in fields], axis=0)
    lost = np.isin(table[TARGET].to_numpy(), np.array(catalog.item_ids)[without])
    (view,) = ItemViews.load(embedded, catalog).values()
    facts = {name: float(view.provenance[name]) for name in ("all_hidden", "item_hidden") if name in view.provenance}
    return {
        **recommended(evaluated),
        "famae": facts,
        "users": len(hits),
        # Places in the order of user_id, which all runs have in common, so that they can be paired.
        "hits": np.flatnonzero(hits).tolist(),
        "lost": np.flatnonzero(lost).tolist(),
    }


def hits_of(result: dict[str, Any]) -> np.ndarray:
    """(U,) 1 where the target of a user is among the first ten."""
    return np.bincount(result["hits"], minlength=result["users"])


def show(results: list[dict[str, Any]]) -> None:
    """A line per arm and share: test recall over all seeds, and how far it is from all fields being there.

    Intervals are 95 %, over users; hits of a user are averaged over seeds first.
    """
    seeds = defaultdict(list)
    for result in sorted(results, key=lambda result: result["seed"]):
        if "error" not in result:
            seeds[result["name"]].append(result)
    whole = {result["seed"]: hits_of(result) for result in seeds.get("fields, 0% dropped", [])}
    for name, of in seeds.items():
        hits_SU, users = np.stack([hits_of(result) for result in of]), np.arange(of[0]["users"])
        parts = [f"{name:30} seeds {[result['seed'] for result in of]}"]
        parts += [f"R@{K} {spoken(*interval(hits_SU.mean(0), users))} by seed {hits_SU.mean(1).round(4).tolist()}"]
        if whole.keys() >= {result["seed"] for result in of}:
            base_SU = np.stack([whole[result["seed"]] for result in of])
            parts.append(f"- all fields {spoken(*paired_difference(hits_SU.mean(0), base_SU.mean(0), users))}")
            if all(result["lost"] for result in of):
                triples = zip(hits_SU, base_SU, (result["lost"] for result in of), strict=True)
                lost = [(hits_U[rows].mean(), base_U[rows].mean()) for hits_U, base_U, rows in triples]
                parts.append("targets without fields {:.4f}, with them {:.4f}".format(*np.mean(lost, axis=0)))
        print(", ".join(parts))
    tell_failures(results)


def spoken(mean: float, low: float, high: float) -> str:
    return f"{mean:.4f} [{low:.4f}, {high:.4f}]"


def main() -> None:
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--catalog", required=True, help="directory written by `llmrec prepare`, with side fields")
    made.add_argument("--rates", nargs="+", type=float, default=RATES)
    made.add_argument("--famae-dim", type=int, default=128)
    made.add_argument("--epochs", type=float, default=12)
    made.add_argument("--batch-size", type=int, default=64)
    made.add_argument("--learning-rate", type=float, default=2e-3)
    made.add_argument("--device", default="auto")
    arguments = made.parse_args()
    catalog = Catalog.load(arguments.catalog)
    fields = [field.name for field in item_fields(catalog)[1:]]
    carry_out(arguments, runs_of(arguments, catalog, fields), partial(measure, fields), show)


if __name__ == "__main__":
    main()
