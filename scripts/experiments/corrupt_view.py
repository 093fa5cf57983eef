"""A view of which a share of the items has the vectors of others: what a tokenizer that weighs views must turn from.

    python scripts/experiments/corrupt_view.py --catalog runs/beauty/catalog --views runs/beauty/views \\
        --name text --share 0.5 --out runs/beauty/views-corrupt

The vectors of the chosen items are handed round among them, so that the view keeps its distribution, its norm and its
missing items, and loses what it knows of each. All other views are copied as they are. The result is an ordinary
directory of views, for `llmrec tokenize --views`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.views import ItemViews, View


def corrupted(view: View, share: float, seed: int) -> View:
    """The view with `share` of its known items' vectors moved one on in a random round of them."""
    rng = np.random.default_rng(seed)
    known = rng.permutation(np.flatnonzero(~view.missing))
    round_n = known[: round(share * len(known))]
    vectors = np.array(view.vectors)
    vectors[round_n] = vectors[np.roll(round_n, 1)]
    return View(vectors, view.missing, {**view.provenance, "corrupted": f"{share} with seed {seed}"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("catalog", "views", "name", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--share", type=float, default=1.0, help="of the items that the view knows, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if not 0 <= given.share <= 1:
        parser.error(f"--share is {given.share}; give a share from 0 to 1")
    views = ItemViews.load(given.views, Catalog.load(given.catalog))
    if given.name not in views:
        parser.error(f"--name is '{given.name}', but '{given.views}' holds {sorted(views)}")
    Path(given.out).mkdir(parents=True)
    ItemViews({**views, given.name: corrupted(views[given.name], given.share, given.seed)}).save(given.out)


if __name__ == "__main__":
    main()
