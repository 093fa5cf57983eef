"""Run a kind of fuzzing by hand: seeds in order, counts in a file that a later run continues."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from tests.faults.fuzz.judge import Tally, judge
from tests.faults.fuzz.kinds import KINDS, prepared


def fuzz(kind: str, first: int, count: int, directory: Path, state: Path | None = None, shows: bool = False) -> Tally:
    """Run `count` seeds of a kind from `first`.

    Args:
        kind: One of KINDS.
        first: First seed.
        count: Number of seeds.
        directory: Directory for files.
        state: JSON file that counts are written to, every 100 seeds.
        shows: Print defects as they come.
    """
    tally, make = Tally(), prepared(kind, directory)
    for seed in range(first, first + count):
        case = make(seed)
        outcome, told = judge(case)
        tally.add(seed, case, outcome, told)
        if shows and seed in tally.defects:
            print(f"--- {kind} {seed}: {tally.defects[seed]}", flush=True)
        if state and (tally.count % 100 == 0 or tally.count == count):
            state.write_text(json.dumps({"kind": kind, "first": first, "next": seed + 1, "outcomes": tally.outcomes,
                                         "mutations": tally.mutations, "defects": sorted(tally.defects)}))  # fmt: skip
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--state", type=Path, help="JSON file for the counts so far.")
    arguments = parser.parse_args()
    os.fsync = lambda descriptor: None  # no power cut is tested here
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        tally = fuzz(arguments.kind, arguments.first, arguments.count, Path(directory), arguments.state, shows=True)
    seconds = time.monotonic() - started
    print(f"{arguments.kind} {arguments.first}..{arguments.first + arguments.count - 1}: {dict(tally.outcomes)}, "
          f"mutations {dict(tally.mutations)}, {seconds:.0f} s")  # fmt: skip
    raise SystemExit(bool(tally.defects))


if __name__ == "__main__":
    main()
