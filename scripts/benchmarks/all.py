"""One table of the benchmarks of this machine against their recorded runs; a slow-down ends it with status 1.

    python scripts/benchmarks/all.py --quick             # small sizes, two minutes of one core
    python scripts/benchmarks/all.py --only rank decode  # the recorded sizes of two scripts
    python scripts/benchmarks/all.py --record            # what was measured becomes the record

Times of two machines, or of two hours of one, say little about the code. So what is compared are ratios of two ways
that ran in one process: how many times as fast ours is as the slow way. Each script declares, and this file reads
without importing it,

    KEY_FIGURES  the ratios of its JSON lines: `figure` of the lines that have the other values, divided by another
                 field of the line (`over`: its name) or by the largest figure among other lines (`over`: their
                 values); without `over` the figure is a ratio itself. `by` names the fields that tell cases apart.
    RUNS         recorded runs: name of the file in results/ and arguments. `quick-`, `cpu-` or `h200-` says which
                 machine a run is for. None stands for runs that need a checkpoint or other settings: start those by
                 hand.
    NEEDS        modules that are installed for the comparison alone.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
TOLERANCE = 0.3  # of a ratio; repeated quick runs on two busy cores stay within it
STATED = ("threads", "load", "torch")  # of the machine line, beside its hardware
FAILURES = ("SLOWER", "MISSING")
Line = Mapping[str, Any]
Ratios = dict[str, float]


@dataclass(frozen=True)
class Run:
    """A recorded run of a script.

    Attributes:
        name: Name of the file of its lines, without the ending.
        script: The benchmark.
        arguments: Its arguments; None if it is started by hand.
        key_figures: Ratios of its lines.
        needs: Modules that it cannot do without.
    """

    name: str
    script: Path
    arguments: list[str] | None
    key_figures: list[dict[str, Any]]
    needs: list[str]


@dataclass(frozen=True)
class Row:
    """A case of the table; `recorded` or `now` is None where a run lacks it."""

    case: str
    recorded: float | None
    now: float | None

    def verdict(self, tolerance: float) -> str:
        """Say what is to be said about the case; nothing in most cases, and one of FAILURES in bad ones."""
        if self.recorded is None:
            return "not recorded"
        if self.now is None:
            return "MISSING"
        return "SLOWER" if self.now < (1 - tolerance) * self.recorded else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes on the CPU, which CI can afford")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="scripts, or runs by name")
    parser.add_argument("--record", action="store_true", help="write the lines of each run into its file")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="share of a ratio that may be lost")
    parser.add_argument("--results", type=Path, default=FOLDER / "results", help="folder of the recorded lines")
    args = parser.parse_args()
    runs = chosen(declared_runs(FOLDER), args.only, machine(args.quick))
    print(
        f"load {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores; a ratio is ours against the slow way of one process"
    )
    failures = [compare(run, args.results, args.tolerance, args.record) for run in runs]
    raise SystemExit(int(any(failures)))


def machine(quick: bool) -> str:
    """Return the beginning of the names of the runs that this machine can do."""
    import torch

    return "quick" if quick else "h200" if torch.cuda.is_available() else "cpu"


def declared_runs(folder: Path) -> list[Run]:
    """Collect the runs that the scripts of a folder declare."""
    runs = []
    for script in sorted(folder.glob("*.py")):
        said = declarations(script)
        for name, arguments in said.get("RUNS", {}).items():
            runs.append(Run(name, script, arguments, said["KEY_FIGURES"], said.get("NEEDS", [])))
    return runs


def declarations(script: Path) -> dict[str, Any]:
    """Read the constants that a script declares, without running it: it may import what is not installed."""
    names, found = {"KEY_FIGURES", "RUNS", "NEEDS"}, {}
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in names:
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return found


def chosen(runs: list[Run], only: Iterable[str], prefix: str) -> list[Run]:
    """Select runs of a machine by the names of scripts or runs.

    Raises:
        SystemExit: If a name is unknown, or no run of this machine has it.
    """
    here = [run for run in runs if run.name.startswith(f"{prefix}-")]
    if unknown := set(only) - {name for run in here for name in (run.name, run.script.stem)}:
        known = sorted({run.script.stem for run in here})
        raise SystemExit(
            f"No run of '{prefix}' is called {', '.join(sorted(unknown))}; choose from {', '.join(known)}."
        )
    return [run for run in here if not only or {run.name, run.script.stem} & set(only)]


def compare(run: Run, results: Path, tolerance: float, record: bool) -> bool:
    """Carry a run out, print its rows, and say whether something is wrong with it."""
    missing = [name for name in run.needs if find_spec(name) is None]
    if run.arguments is None or missing:
        why = f"needs {', '.join(missing)}" if missing else "is started by hand: see the top of the script"
        print(f"\n{run.name}: not run; {run.script.name} {why}", flush=True)
        return False
    path = results / f"{run.name}.jsonl"
    recorded = read_lines(path.read_text(encoding="utf-8")) if path.exists() else []
    print(f"\n{run.name}: {described(recorded)}", flush=True)
    command, environment = [sys.executable, str(run.script), *run.arguments], {**os.environ}
    if run.name.startswith("quick-"):  # also fair on a busy machine
        environment |= {"OMP_NUM_THREADS": "1", "CPU_SECONDS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"  BROKEN: {run.script.name} {' '.join(run.arguments)} ended with {process.returncode}: {last}")
        return True
    lines = read_lines(process.stdout)
    rows = table(run, recorded, lines)
    print(rendered(rows, tolerance), flush=True)
    if record:
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return any(row.verdict(tolerance) in FAILURES for row in rows)


def read_lines(text: str) -> list[Line]:
    """Read the JSON lines of a benchmark; what libraries print in between is left out."""
    return [json.loads(line) for line in text.splitlines() if line.startswith('{"case"')]


def described(lines: list[Line]) -> str:
    """Say on what machine lines were recorded."""
    on = next((line for line in lines if line["case"] == "machine"), None)
    if on is None:
        return "no record; --record makes one"
    hardware = ", ".join([*filter(None, [on.get("cpu")]), *on["gpus"][:1]])
    facts = [f"{name} {on[name]:.2g}" if name == "load" else f"{name} {on[name]}" for name in STATED if name in on]
    return f"recorded on {', '.join([hardware, *facts])}"


def ratios(lines: list[Line], key_figures: list[dict[str, Any]]) -> Ratios:
    """Compute the key figures of the lines of one process; one that did not fit into memory has none."""
    found: Ratios = {}
    for key in key_figures:
        values = {name: value for name, value in key.items() if name not in ("figure", "over", "by")}
        figure, over = key["figure"], key.get("over")
        slow = (
            [line[figure] for line in matching(lines, over) if is_number(line.get(figure))]
            if isinstance(over, dict)
            else []
        )
        for line in matching(lines, values):
            below = 1.0 if over is None else line.get(over) if isinstance(over, str) else max(slow, default=None)
            if is_number(line.get(figure)) and is_number(below):
                case = ", ".join([figure, *(f"{name} {line[name]}" for name in key["by"])])
                found[case] = line[figure] / below
    return found


def matching(lines: list[Line], values: Mapping[str, Any]) -> list[Line]:
    """Select the lines that have all of some values."""
    return [line for line in lines if values.items() <= {name: line.get(name) for name in values}.items()]


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and value > 0


def table(run: Run, recorded: list[Line], now: list[Line]) -> list[Row]:
    """Set the ratios of two runs side by side, in the order of the record."""
    before, after = ratios(recorded, run.key_figures), ratios(now, run.key_figures)
    return [Row(case, before.get(case), after.get(case)) for case in {**before, **after}]


def rendered(rows: list[Row], tolerance: float) -> str:
    """Lay rows out as text."""
    lines = [f"  {'':60} {'recorded':>9} {'now':>9} {'now/rec.':>9}"]
    for row in rows:
        shown = [f"{value:.4g}" if value is not None else "-" for value in (row.recorded, row.now)]
        share = f"{row.now / row.recorded:.2f}" if row.now is not None and row.recorded is not None else "-"
        line = f"  {row.case:60} {shown[0]:>9} {shown[1]:>9} {share:>9}  {row.verdict(tolerance)}"
        lines.append(line.rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
