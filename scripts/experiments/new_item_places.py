"""How many places do appended items take, and what does it cost to keep some for them?

    python scripts/experiments/cold_items.py --catalog runs/movietweetings-micro/catalog --work runs/cold-items
    python scripts/experiments/new_item_places.py --catalog runs/movietweetings-micro/catalog --work runs/cold-items

The first command appends a tenth of the items to a model that has not seen them. Here it answers test users of the
whole catalogue, whose next item may be an old or an appended one, by each ranking and with `min_new` places kept. One
JSON line each: the share of the places in the top ten that appended items take, how many of them are shown to anybody,
and recall@10 of all targets, of old and of appended ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from llmrec.configs.recommend import RankBy
from llmrec.data.catalog import Catalog
from llmrec.recommender import Recommender

K = 10
RANKS: tuple[RankBy, ...] = ("sid", "items", "mixture")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--catalog", required=True, help="directory of `llmrec prepare` that cold_items.py was given")
    parser.add_argument("--work", type=Path, required=True, help="directory that cold_items.py worked in")
    parser.add_argument("--users", type=int, default=2000, help="test users, drawn at random")
    parser.add_argument("--min-new", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    catalog = Catalog.load(args.catalog)
    examples = catalog.examples("test")
    examples = examples.take(examples.sample(args.users, args.seed))
    histories = [[catalog.item_ids[row] for row in examples.history(place)] for place in range(len(examples))]
    targets = [catalog.item_ids[row] for row in examples.targets]
    for rank in RANKS:
        recommender = Recommender.from_pretrained(args.work / "mean", rank=rank)
        for min_new in args.min_new:
            answers = recommender.recommend(histories, K, batch_size=64, min_new=min_new)
            print(json.dumps({"rank": rank, "min_new": min_new, **measure(recommender, answers.item_ids, targets)}))


def measure(recommender: Recommender, answers: list[list[str]], targets: list[str]) -> dict[str, float]:
    """Places that appended items take in answers, and which targets are found."""
    counts = recommender.record.train_counts
    new = {item_id for item_id, count in zip(recommender.table.item_ids, counts, strict=True) if not count}
    places = [item_id in new for answer in answers for item_id in answer]
    is_found = np.array([target in answer for target, answer in zip(targets, answers, strict=True)])
    is_new = np.array([target in new for target in targets])
    return {
        "users": len(targets),
        "share of the catalogue": round(len(new) / len(counts), 4),
        "share of the places": round(float(np.mean(places)), 4),
        "shown": len(new.intersection(*[[item_id for answer in answers for item_id in answer]])),
        "of": len(new),
        "recall@10": round(float(is_found.mean()), 4),
        "recall@10 of old targets": round(float(is_found[~is_new].mean()), 4),
        "recall@10 of appended targets": round(float(is_found[is_new].mean()), 4) if is_new.any() else None,
        "appended targets": int(is_new.sum()),
    }


if __name__ == "__main__":
    main()
