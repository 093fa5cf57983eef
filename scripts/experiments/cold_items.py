"""Can items be found that were appended to a model, by their SIDs, by their item rows and by a mixture?

    python scripts/experiments/cold_items.py --catalog runs/movietweetings-micro/catalog --work runs/cold-items

A tenth of the items, drawn at random, is taken out of a catalogue of `llmrec prepare`. SIDs of their texts (TF-IDF,
fitted to all texts) and the micro model with item rows are learned without them. Then they are appended, as
docs/tokenize.md says, and every place where one of them comes next is a test example. The row of an appended item is
the mean of those of the items that share the longest prefix of its SID; as a control it is drawn at the mean and the
deviation of the other rows. Prints one JSON line per ranking: recall among all items, and among the appended ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from llmrec.configs import ExtendConfig, SftConfig, TokenizeConfig
from llmrec.configs.recommend import RankBy
from llmrec.data.catalog import Catalog
from llmrec.decoding.trie.allow_list import AllowList
from llmrec.evaluation.metrics import recall
from llmrec.evaluation.protocol import Batch, evaluate
from llmrec.evaluation.ranking import Ranking
from llmrec.model.bind import bind
from llmrec.model.checkpoint import SidConfig
from llmrec.model.new_rows import new_rows
from llmrec.recommender import Recommender
from llmrec.runtime.manifest import MANIFEST, adopt
from llmrec.stages import extend, sft, tokenize
from llmrec.views import View
from llmrec.views.text import tfidf_view

SHARE, CUTOFFS = 0.1, [10, 50]
EMBEDDING = "model.embed_tokens.weight"
RANKS: tuple[RankBy, ...] = ("sid", "items", "mixture")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--catalog", required=True, help="directory of `llmrec prepare`")
    parser.add_argument("--work", type=Path, required=True, help="directory to work in, and to go on in")
    parser.add_argument("--codes", type=int, default=64, help="codes of each of three levels")
    parser.add_argument("--epochs", type=float, default=5.0)
    parser.add_argument("--examples", type=int, default=1000, help="test examples, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    whole = Catalog.load(args.catalog)
    is_cold = np.zeros(whole.num_items, dtype=bool)
    is_cold[np.random.default_rng(args.seed).permutation(whole.num_items)[: round(SHARE * whole.num_items)]] = True
    write_catalogs(whole, is_cold, args.work)
    checkpoint = train(args)
    for model in (checkpoint, with_drawn_rows(checkpoint, is_cold, args)):
        for rank in RANKS if model == checkpoint else RANKS[1:]:
            print(json.dumps({"rows": model.name, "rank": rank, **measure(model, rank, args)}), flush=True)


def write_catalogs(whole: Catalog, is_cold: np.ndarray, work: Path) -> None:
    """Write the catalogue without the cold items, that with them, and the text views of both."""
    sequences = [np.append(whole.train.history(i), whole.train.targets[i]) for i in range(len(whole.train))]
    warm = [sequence[~is_cold[sequence]] for sequence in sequences]
    users, ids = whole.train.user_ids, np.array(whole.item_ids, dtype=object)
    training = [(user, "train", rows) for user, rows in zip(users, warm, strict=True) if len(rows)]
    tests = []
    for user, sequence in zip(users, sequences, strict=True):
        for place in np.flatnonzero(is_cold[sequence]):
            before = sequence[:place][~is_cold[sequence[:place]]]
            if len(before):
                tests.append((user, "test", np.append(before, sequence[place])))
    view = tfidf_view(whole, "{text}", 64, 0)
    for name, kept, examples in (("old", ~is_cold, training), ("new", np.full(len(is_cold), True), training + tests)):
        catalog, views = work / name / "catalog", work / name / "views"
        if (views / MANIFEST).is_file():
            continue
        for directory in (catalog, views):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
        pq.write_table(whole.items.filter(pa.array(kept)), catalog / "items.parquet")
        split = {
            "user_id": [user for user, _, _ in examples],
            "split": [split for _, split, _ in examples],
            "history": [ids[rows[:-1]].tolist() for _, _, rows in examples],
            "target": [ids[rows[-1]] for _, _, rows in examples],
        }
        pq.write_table(pa.table(split, pq_schema()), catalog / "split.parquet")
        adopt(catalog, "prepare")
        View(view.vectors[kept], view.missing[kept]).save(views / "text.safetensors")
        adopt(views, "embed")


def pq_schema() -> pa.Schema:
    text = pa.string()
    return pa.schema({"user_id": text, "split": text, "history": pa.list_(text), "target": text})


def train(args: argparse.Namespace) -> Path:
    """Learn SIDs and the model without the cold items, then append them."""
    old, new = ({name: str(args.work / kind / name) for name in ("catalog", "views", "sid")} for kind in ("old", "new"))
    base, checkpoint, appended = (str(args.work / name) for name in ("base", "checkpoint", "mean"))
    options = {"num_levels": 3, "codebook_size": args.codes}
    tokenize.main(TokenizeConfig(out=old["sid"], catalog=old["catalog"], views=old["views"], options=options))
    extend.main(
        ExtendConfig(out=base, sid=old["sid"], catalog=old["catalog"], model="micro", item_rows=True, spare_codes=16)
    )
    sft.main(
        SftConfig(
            out=checkpoint, catalog=old["catalog"], model=base, train="full", learning_rate=2e-3, batch_size=32,
            micro_batch_size=32, epochs=args.epochs, label_smoothing=0.1, item_dropout=0.3, seed=args.seed,
        )
    )  # fmt: skip
    tokenize.main(TokenizeConfig(out=new["sid"], catalog=new["catalog"], views=new["views"], append=old["sid"]))
    extend.main(ExtendConfig(out=appended, sid=new["sid"], model=checkpoint))
    return Path(appended)


def with_drawn_rows(checkpoint: Path, is_cold: np.ndarray, args: argparse.Namespace) -> Path:
    """Copy a checkpoint, with rows of the cold items that are drawn at the scale of the others."""
    copy = checkpoint.with_name("drawn")
    shutil.copytree(checkpoint, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
    items = SidConfig.load(copy)[0].vocabulary.items
    assert items is not None, "extend has added them"
    weights = load_file(copy / "model.safetensors")
    rows, cold = weights[EMBEDDING][items.block], torch.from_numpy(is_cold)
    rows[cold] = new_rows(rows[~cold], int(cold.sum()), torch.Generator().manual_seed(args.seed))
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    bind(copy)
    return copy


def measure(model: Path, rank: RankBy, args: argparse.Namespace) -> dict[str, float]:
    """Recall of the test examples, all of whose targets are cold, among all items and among the cold ones."""
    catalog = Catalog.load(args.work / "new" / "catalog")
    examples = catalog.examples("test")
    examples = examples.take(examples.sample(args.examples, args.seed))
    ranker = Recommender.from_pretrained(model, rank=rank).ranker
    values: dict[str, float] = {"examples": len(examples)}
    for among, rows in (("all", None), ("cold", np.flatnonzero(catalog.training_counts == 0))):
        allowed = None if rows is None else AllowList(ranker.trie, rows)

        def ranked(batches: Iterable[Batch], k: int, allowed: AllowList | None = allowed) -> Iterator[Ranking]:
            requests = ((histories, exclude, [allowed] * len(histories)) for histories, exclude in batches)
            return ranker.rank_batches(requests, k, num_beams=max(CUTOFFS))

        position = evaluate(ranked, examples, max(CUTOFFS), "plain", 64).position
        chance = 1 if rows is None else catalog.num_items / len(rows)
        for k in CUTOFFS:
            values[f"recall@{k} among {among}"] = round(float(recall(position, k).mean()), 4)
            values[f"chance@{k} among {among}"] = round(chance * k / catalog.num_items, 4)
    return values


if __name__ == "__main__":
    main()
