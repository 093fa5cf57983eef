"""What `llmrec prepare` takes for 10^7 interactions: seconds, CPU seconds and memory, from CSV and from parquet.

    python scripts/benchmarks/prepare.py
    python scripts/benchmarks/prepare.py --interactions 1000000 --formats csv csv.gz jsonl parquet
    python scripts/benchmarks/prepare.py --id-length 36 --formats csv

The log has three columns: users, items with a heavy tail, and unix seconds. Ids of 36 characters are as long as UUIDs.
Each run is a process of its own, imports included. Beside it is the slow way, in Python's csv, dicts and lists, on
10^6 rows; before anything is timed, both must make the same examples from them.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import polars as pl
from common import carried_out, emit, emit_machine

FORMATS = ["csv", "csv.gz", "jsonl", "parquet"]
SLOW_UP_TO = 10**6  # rows
K_CORE, MAX_HISTORY = 5, 50  # defaults of prepare
Example = tuple[str, str, tuple[str, ...], str]
KEY_FIGURES = [{"case": "slow way", "figure": "cpu_seconds", "over": {"case": "beside it"}, "by": ["interactions"]}]
RUNS = {"cpu-prepare": [], "cpu-prepare-idle": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interactions", type=int, default=10**7)
    parser.add_argument("--id-length", type=int, default=9, help="characters of user_ids and item_ids")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["csv", "parquet"])
    parser.add_argument("--directory", type=Path, help="where the files are written; 1 GB for 10^7 interactions")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    emit_machine()
    log = random_log(args.interactions, args.seed, args.id_length)
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        compare_with_the_slow_way(
            random_log(min(args.interactions, SLOW_UP_TO), args.seed, args.id_length), Path(directory)
        )
        for ending in args.formats:
            path = Path(directory) / f"log.{ending}"
            write(log, path)
            taken = prepare(path, Path(directory) / "catalog")
            emit(ending, interactions=len(log), megabytes=path.stat().st_size / 1e6, **taken)


def random_log(num_rows: int, seed: int, id_length: int) -> pl.DataFrame:
    """Interactions of num_rows / 20 users with items of Pareto popularity, in no order."""
    generator = np.random.default_rng(seed)
    users = generator.integers(0, max(1, num_rows // 20), num_rows)
    items = np.minimum(generator.pareto(1.0, num_rows) * num_rows / 5000, 99_999).astype(np.int64)
    times = generator.integers(1_500_000_000, 1_700_000_000, num_rows)
    ids = {"user_id": pl.Series(users), "item_id": pl.Series(items)}
    columns = {name: column.cast(pl.String).str.zfill(id_length) for name, column in ids.items()}
    return pl.DataFrame({**columns, "timestamp": times})


def write(log: pl.DataFrame, path: Path) -> None:
    if path.name.endswith(".csv"):
        log.write_csv(path)
    elif path.name.endswith(".jsonl"):
        log.write_ndjson(path)
    elif path.name.endswith(".parquet"):
        log.write_parquet(path)
    else:
        with gzip.open(path, "wb", compresslevel=6) as file:
            log.write_csv(file)


def prepare(path: Path, out: Path) -> dict[str, float]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "llmrec", "prepare", "--interactions", str(path), "--out", str(out), "--overwrite"]
    found = carried_out(command)
    peak_gib = found.pop("peak_mb") / 1024
    return {**found, "peak_gib": peak_gib}


def compare_with_the_slow_way(log: pl.DataFrame, directory: Path) -> None:
    """Time both ways, once they agree."""
    path = directory / "part.csv"
    write(log, path)
    taken = prepare(path, directory / "part")
    started = time.process_time()
    slow = slow_examples(path)
    slow_seconds = time.process_time() - started
    fast = pl.read_parquet(directory / "part" / "split.parquet").select("user_id", "split", "history", "target")
    if {(user, split, tuple(history), target) for user, split, history, target in fast.iter_rows()} != slow:
        raise SystemExit("The two ways make different examples.")
    emit("slow way", interactions=len(log), examples=len(slow), cpu_seconds=slow_seconds)
    emit("beside it", interactions=len(log), **taken)


def slow_examples(path: Path) -> set[Example]:
    """Examples of leave-one-out, in plain Python: without the checks, the report, and the files of a catalogue."""
    with path.open(encoding="utf-8", newline="") as file:
        read = [(row["user_id"], row["item_id"], int(row["timestamp"])) for row in csv.DictReader(file)]
    rows = list(dict.fromkeys(read))  # without exact repeats
    while True:
        users, items = (Counter(row[place] for row in rows) for place in (0, 1))
        kept = [row for row in rows if users[row[0]] >= K_CORE and items[row[1]] >= K_CORE]
        if len(kept) == len(rows):
            break
        rows = kept
    histories: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for user, item, at in rows:
        histories[user].append((at, item))
    examples: set[Example] = set()
    for user, history in histories.items():
        ids = tuple(item for _, item in sorted(history, key=lambda pair: pair[0]))
        cut = len(ids) - 2 if len(ids) > 2 else len(ids)
        examples.add((user, "train", ids[: cut - 1], ids[cut - 1]))
        for name, place in zip(("valid", "test"), range(cut, len(ids)), strict=False):
            examples.add((user, name, ids[max(0, place - MAX_HISTORY) : place], ids[place]))
    return examples


if __name__ == "__main__":
    main()
