"""What `llmrec recommend --users` takes for 10^6 users: users per second, and memory above that of a few users.

    python scripts/benchmarks/batch.py
    python scripts/benchmarks/batch.py --users 10000000 --history 50
    python scripts/benchmarks/batch.py --processes 2

The model is a random one of a single layer, so that memory and time are those of reading, asking and writing as far as
they can be; histories have geometric lengths and items of Pareto popularity. Each run is a process of its own, imports
included. Beside it is `--input`, which holds everything, on fewer users; both must give the same items.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import ROOT, carried_out, emit, emit_machine

from llmrec.data.requests.id_lists import lists_of
from llmrec.model.checkpoint import SidConfig
from llmrec.model.micro import micro_model, word_tokenizer
from llmrec.model.prompts import Prompt
from llmrec.recommender import Recommender
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary

LEVELS, FEW = 3, 500
ONE = [sys.executable, "-m", "llmrec", "recommend"]
KEY_FIGURES = [
    {"case": "--input", "figure": "cpu_seconds", "over": {"case": "--users on as many"}, "by": ["users"]},
]  # fmt: skip
RUNS = {"cpu-batch": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=10**6)
    parser.add_argument("--input-users", type=int, default=10**5, help="users of the way that holds everything")
    parser.add_argument("--history", type=int, default=20, help="mean number of items of a history")
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--row-group", type=int, default=10**6, help="users of a row group of the file")
    parser.add_argument("--shard-size", type=int, default=10**4)
    parser.add_argument("--processes", type=int, default=1, help="of the run over all users")
    parser.add_argument("--directory", type=Path, help="where the files are written")
    args = parser.parse_args()
    emit_machine()
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        place = Path(directory)
        item_ids = [f"item-{row:06d}" for row in range(args.items)]
        save_model(place / "model", item_ids)
        sizes = {"few": FEW, "input": args.input_users, "all": args.users}
        for name, size in sizes.items():
            write_users(place / f"{name}.parquet", size, item_ids, args.history, args.row_group)
        flags = ["--model", str(place / "model"), "--device", "cpu"]
        sharded = [*flags, "--shard-size", str(args.shard_size)]
        few = carried_out([*ONE, *sharded, "--users", str(place / "few.parquet"), "--out", str(place / "few")])
        emit("few users", users=FEW, **few)
        compare(place, flags, sharded, args.input_users, few["peak_mb"])
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes",
                  str(args.processes), "--main_process_port", "0", str(ROOT / "scripts" / "recommend.py")]  # fmt: skip
        command = ONE if args.processes == 1 else launch
        found = carried_out([*command, *sharded, "--users", str(place / "all.parquet"), "--out", str(place / "all")])
        speed = {"users_per_s": args.users / found["seconds"], "above_mb": found["peak_mb"] - few["peak_mb"]}
        size = (place / "all.parquet").stat().st_size
        emit("--users", users=args.users, processes=args.processes, file_mb=size / 1e6, **speed, **found)


def save_model(directory: Path, item_ids: list[str]) -> None:
    """Write a random checkpoint whose items have distinct codes."""
    size = int(np.ceil(len(item_ids) ** (1 / LEVELS)))
    codes = np.stack(np.unravel_index(np.arange(len(item_ids)), (size,) * LEVELS), axis=1)
    table = SidTable(item_ids, codes, level_sizes=[size] * LEVELS)
    tokenizer = word_tokenizer(["a"], max_words=64)
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes)
    model = micro_model(tokenizer, layers=1, hidden_size=32, seed=0).eval()
    sid_config = SidConfig(vocabulary, Prompt(), max_history=10, normalize_over="level")
    Recommender(model, tokenizer, table, sid_config).save_pretrained(directory)


def write_users(path: Path, num_users: int, item_ids: list[str], mean: int, row_group: int) -> None:
    """Write users of at least one item."""
    generator = np.random.default_rng(0)
    names = pa.array(item_ids)
    kind = pa.schema({"user_id": pa.int64(), "history": pa.list_(pa.string())})
    with pq.ParquetWriter(path, kind) as writer:
        for start in range(0, num_users, row_group):
            users = np.arange(start, min(start + row_group, num_users))
            lengths = generator.geometric(1 / mean, len(users))
            rows = np.minimum(generator.pareto(1.0, lengths.sum()) * len(item_ids) / 50, len(item_ids) - 1)
            histories = lists_of(lengths, names.take(pa.array(rows.astype(np.int64))))
            writer.write_table(pa.table([pa.array(users), histories], schema=kind), row_group_size=row_group)


def compare(place: Path, flags: list[str], sharded: list[str], num_users: int, few_mb: float) -> None:
    """Time both ways on the same users, once their items agree."""
    users, answers = str(place / "input.parquet"), place / "answers.parquet"
    by_input = carried_out([*ONE, *flags, "--input", users, "--out", str(answers)])
    by_users = carried_out([*ONE, *sharded, "--users", users, "--out", str(place / "input")])
    theirs = pq.read_table(answers)
    ours = pa.concat_tables([pq.read_table(path) for path in sorted((place / "input").glob("part-*.parquet"))])
    for name in ("user_id", "history"):
        if not ours[name].equals(theirs[name]):
            raise SystemExit(f"The two ways differ in {name}.")
    items = [table["items"].combine_chunks().flatten().field("item_id") for table in (ours, theirs)]
    differing = np.mean(items[0].to_numpy(zero_copy_only=False) != items[1].to_numpy(zero_copy_only=False))
    if differing > 1e-4:  # scores that are equal but for their last digits may change places
        raise SystemExit(f"The two ways differ in {differing:.2%} of the items.")
    for case, found in (("--input", by_input), ("--users on as many", by_users)):
        emit(
            case, users=num_users, users_per_s=num_users / found["seconds"], above_mb=found["peak_mb"] - few_mb, **found
        )


if __name__ == "__main__":
    main()
