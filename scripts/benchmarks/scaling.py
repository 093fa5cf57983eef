"""Seconds and memory of every stage behind prepare and embed, at growing numbers of items; and 10^8 items in a stream.

    python scripts/benchmarks/scaling.py --items 10000 100000 1000000
    python scripts/benchmarks/scaling.py --catalog run/catalog --views run/views --directory run
    python scripts/benchmarks/scaling.py --stream 10000000 --dim 384 --device cuda
    python scripts/benchmarks/scaling.py --stream 100000000 --dim 64 --device cuda
    python scripts/benchmarks/scaling.py --table scripts/benchmarks/results/cpu-scaling.jsonl

Each stage is a process of its own, imports included. Without --catalog, the catalogue is random: 10 interactions for
each item in sequences of 20, and vectors of --dim numbers. The LLM is `micro`, with four steps of sft and 256
examples of evaluate, so that these two show what a catalogue costs, and not what a model does.

--stream makes vectors block by block and stores none: codebooks from 2^20 of them, codes, suffixes, the trie and the
mask of each level. --table fits seconds and memory by a + b x items, and prints them beside what was measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import carried_out, emit, emit_machine, seconds
from vectors import clustered

from llmrec.configs import PrepareConfig
from llmrec.decoding.trie.lookups import ROOT
from llmrec.decoding.trie.trie import SidTrie
from llmrec.runtime.stage_directory import run_stage
from llmrec.tokenizers.base import Encoded
from llmrec.tokenizers.collisions import resolve
from llmrec.tokenizers.rq_kmeans import residual_kmeans
from llmrec.tokenizers.shared.vectors import MOST_FITTED

CODES, LEVELS, ITERATIONS = 256, 3, 25
PER_USER, PER_ITEM = 20, 10  # interactions
BLOCK = 2**17  # vectors made at once
ROWS = 1600  # prompts times beams of a mask
STAGES = ("tokenize", "extend", "sft", "evaluate", "recommend")
KEY_FIGURES = []  # it has no slow way beside it
RUNS = {"cpu-scaling": None, "cpu-scaling-10m": None, "cpu-scaling-10m-384": None, "h200-stream": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="*", default=[])
    parser.add_argument("--catalog", type=Path, help="written by `llmrec prepare`")
    parser.add_argument("--views", type=Path, help="written by `llmrec embed`")
    parser.add_argument("--directory", type=Path, help="where everything is written; a temporary one when left out")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--stream", type=int, help="number of items whose vectors are made and never stored")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--users", type=int, help="sequences of 20 items; one for two items when left out")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="of k-means; memory does not depend on them")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", type=Path, help="results to fit and to print as a table")
    args = parser.parse_args()
    if args.table:
        print_table(args.table)
        return
    emit_machine()
    if args.stream:
        stream(args.stream, args.dim, args.iterations, torch.device(args.device))
        return
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        if args.catalog:
            num_items = pq.read_metadata(args.catalog / "items.parquet").num_rows
            measure(Path(directory), args.catalog, args.views, num_items, args)
        for num_items in args.items:
            root = Path(directory) / str(num_items)
            write_catalog(root / "catalog", num_items, args.users or max(64, num_items * PER_ITEM // PER_USER))
            write_view(root / "views", num_items, args.dim)
            measure(root, root / "catalog", root / "views", num_items, args)


def measure(root: Path, catalog: Path, views: Path, num_items: int, args: argparse.Namespace) -> None:
    """Run the stages one after another; a line for each."""
    on = ["--device", args.device]
    first = pq.ParquetFile(catalog / "items.parquet").read_row_group(0, columns=["item_id"])["item_id"][0].as_py()
    trained = ["--catalog", str(catalog), "--model", str(root / "base"), "--max-steps", "4", "--batch-size", "64"]
    tested = ["--catalog", str(catalog), "--model", str(root / "base"), "--max-examples", "256"]
    asked = ["--model", str(root / "base"), "--catalog", str(catalog), "--history", str(first), "--k", "10"]
    options = {
        "tokenize": ["--catalog", str(catalog), "--views", str(views), "--iterations", str(args.iterations), *on],
        "extend": ["--sid", str(root / "tokenize"), "--catalog", str(catalog), "--model", "micro"],
        "sft": [*trained, *on],
        "evaluate": [*tested, "--baselines", "popularity", *on],
        "recommend": [*asked, *on],
    }
    outs = {"tokenize": "tokenize", "extend": "base", "sft": "sft", "evaluate": "evaluation"}
    for stage in args.stages:
        out = ["--out", str(root / outs[stage])] if stage in outs else []
        taken = carried_out([sys.executable, "-m", "llmrec", stage, *options[stage], *out])
        emit(stage, items=num_items, device=args.device, **taken)


def write_catalog(path: Path, num_items: int, num_users: int) -> None:
    """Write random sequences, split as `llmrec prepare` does, in columns of Arrow."""
    rng = np.random.default_rng(0)
    item_ids = pa.array([f"item-{row}" for row in range(num_items)])
    titles = pa.array([f"thing {row % 977} of kind {row % 89}" for row in range(num_items)])
    rows = rng.integers(0, num_items, (num_users, PER_USER), dtype=np.int32)
    users = pa.array([f"user-{user}" for user in range(num_users)])
    tables = []
    for split, back in (("train", 3), ("valid", 2), ("test", 1)):
        end = PER_USER - back
        offsets = np.arange(num_users + 1, dtype=np.int64) * end
        history = pa.LargeListArray.from_arrays(offsets, item_ids.take(pa.array(rows[:, :end].ravel())))
        target = item_ids.take(pa.array(rows[:, end]))
        named = pa.array([split]).take(pa.array(np.zeros(num_users, np.int32)))
        tables.append(pa.table({"user_id": users, "split": named, "history": history, "target": target}))

    def build(workdir: Path) -> None:
        pq.write_table(pa.table({"item_id": item_ids, "title": titles}), workdir / "items.parquet")
        pq.write_table(pa.concat_tables(tables), workdir / "split.parquet")

    run_stage("prepare", PrepareConfig(out=str(path)), {}, build)


def write_view(path: Path, num_items: int, dim: int) -> None:
    """Write clustered vectors as a view that was made elsewhere, block by block."""
    path.mkdir(parents=True)
    size = 4 * num_items * dim
    tensors = {"vectors": ("F32", [num_items, dim], 0, size), "missing": ("BOOL", [num_items], size, size + num_items)}
    header = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}
        for name, (dtype, shape, first, last) in tensors.items()
    }
    text = json.dumps(header).encode()
    with (path / "text.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block, first in enumerate(range(0, num_items, BLOCK)):
            clustered(min(BLOCK, num_items - first), dim, "cpu", block).numpy().tofile(file)
        np.zeros(num_items, bool).tofile(file)


def stream(num_items: int, dim: int, iterations: int, device: torch.device) -> None:
    """From vectors that are made and forgotten to semantic IDs, a trie and masks."""
    fitted = min(num_items, MOST_FITTED)
    taken, started = {}, time.perf_counter()
    books, _ = residual_kmeans(clustered(fitted, dim, device, 0), LEVELS, CODES, iterations, 0)
    taken["fit_seconds"], making, started = lap(device, started), 0.0, time.perf_counter()
    codes = np.empty((num_items, LEVELS), np.uint8)
    for block, first in enumerate(range(0, num_items, BLOCK)):
        made = time.perf_counter()
        part = clustered(min(BLOCK, num_items - first), dim, device, block + 1)
        making += lap(device, made)
        codes[first : first + BLOCK] = books.codes(part).to(torch.uint8).cpu().numpy()
    taken["make_seconds"], taken["encode_seconds"] = making, lap(device, started) - making
    started = time.perf_counter()
    codes_NL, sizes, _ = resolve("suffix_ordinal", Encoded(codes), [CODES] * LEVELS)
    taken["suffix_seconds"], taken["suffix_size"] = time.perf_counter() - started, sizes[-1]
    started = time.perf_counter()
    trie = SidTrie.from_codes(codes_NL, sizes)
    taken["trie_seconds"], taken["trie_bytes_per_item"] = time.perf_counter() - started, trie.num_bytes / num_items
    trie, sample = trie.to(device), codes_NL[np.random.default_rng(0).integers(0, num_items, ROWS)].astype(np.int64)
    nodes, masks = torch.full((ROWS,), ROOT, device=device), []
    for level in range(LEVELS + 1):
        masks.append(seconds(lambda nodes=nodes, level=level: trie.allowed(nodes, level), 20, device) * 1e3)
        chosen = torch.from_numpy(sample[:, level]).to(device)[:, None]
        assert trie.allowed(nodes, level).gather(1, chosen).all(), "the trie lacks an item"
        nodes = trie.children(nodes, level).gather(1, chosen).squeeze(1)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    emit("stream", items=num_items, dim=dim, device=device.type, **taken, mask_ms=[round(ms, 3) for ms in masks],
         peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, gpu_gib=peak)  # fmt: skip


def lap(device: torch.device, started: float) -> float:
    """Seconds since then, when the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def print_table(path: Path) -> None:
    """Print measured and fitted seconds and GiB of each stage; a + b x items, by relative least squares."""
    points = defaultdict(dict)
    for line in path.read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        if found["case"] in STAGES:
            points[found["case"]][found["items"]] = (found["cpu_seconds"], found["peak_mb"] / 1024)
    for stage, of in points.items():
        items, values = np.array(list(of)), np.array(list(of.values()))
        for name, column in zip(("CPU s", "GiB"), values.T, strict=True):
            design = np.stack([np.ones(len(items)), items], axis=1) / column[:, None]
            (a, b), *_ = np.linalg.lstsq(design, np.ones(len(items)), rcond=None)
            cells = [f"{n:,}: {v:.3g} / {a + b * n:.3g}" for n, v in zip(items, column, strict=True)]
            print(f"| {stage} | {name} | {a:.3g} + {b * 1e6:.3g} N / 10^6 | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
