"""The table of all benchmarks against their records: slow-downs, lost cases, missing records and broken scripts."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "scripts" / "benchmarks"
SPEC = importlib.util.spec_from_file_location("benchmark_guard", FOLDER / "all.py")
guard = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = guard
SPEC.loader.exec_module(guard)

# faiss was stopped; sizes that plain Python is too slow for; stages alone
WITHOUT_SLOW_WAY = {
    "h200-kmeans",
    "cpu-prepare-idle",
    "cpu-scaling",
    "cpu-scaling-10m",
    "cpu-scaling-10m-384",
    "h200-stream",
}
WITHOUT_SCRIPT = {"h200-sizes-smollm2-135m", "h200-sizes-qwen3-0.6b", "h200-decode-profile-qwen3-0.6b"}
MACHINE = {"case": "machine", "cpu": "a CPU", "gpus": [], "threads": 1, "load": 0.5, "torch": "2"}
DECLARED = """
import a_package_that_is_not_installed
KEY_FIGURES = [{"case": "fast", "figure": "users_per_s", "over": {"case": "slow"}, "by": ["batch"]}]
RUNS = {"quick-made-up": [], "cpu-made-up": None}
"""
PRINTED = """
print("a warning of a library")
for line in LINES:
    print(line)
"""


def lines(*rates, slow=2.0):
    fast = [{"case": "fast", "batch": 4**i, "users_per_s": rate} for i, rate in enumerate(rates)]
    return [MACHINE, {"case": "slow", "users_per_s": slow / 2}, {"case": "slow", "users_per_s": slow}, *fast]


@pytest.fixture
def table(tmp_path, monkeypatch, capsys):
    """The table of one script: a function of the recorded lines and of those that it prints now."""
    (tmp_path / "results").mkdir()
    record = tmp_path / "results" / "quick-made-up.jsonl"

    def compared(recorded, now, *flags):
        if recorded is not None:
            record.write_text("".join(f"{json.dumps(line)}\n" for line in recorded), encoding="utf-8")
        text = DECLARED.replace("import a_package_that_is_not_installed", "")
        code = now if isinstance(now, str) else f"LINES = {[json.dumps(line) for line in now]}{PRINTED}"
        (tmp_path / "made_up.py").write_text(text + code, encoding="utf-8")
        monkeypatch.setattr(guard, "FOLDER", tmp_path)
        monkeypatch.setattr(sys, "argv", ["all.py", "--quick", "--results", str(record.parent), *flags])
        with pytest.raises(SystemExit) as ended:
            guard.main()
        return ended.value.code, capsys.readouterr().out

    compared.record = record
    return compared


def row(output, case):
    return next(line.split(case)[1].split() for line in output.splitlines() if case in line)


def test_ratios_are_compared_and_not_times(table):
    status, output = table(lines(20.0, 30.0), lines(2.0, 3.0, slow=0.2))  # all is ten times as slow
    assert status == 0
    assert row(output, "users_per_s, batch 1 ") == ["10", "10", "1.00"]
    assert row(output, "users_per_s, batch 4 ") == ["15", "15", "1.00"]


def test_a_slow_down_beyond_the_tolerance_ends_with_status_1(table):
    status, output = table(lines(20.0, 30.0), lines(15.0, 15.0))
    assert status == 1
    assert row(output, "batch 1 ") == ["10", "7.5", "0.75"]
    assert row(output, "batch 4 ") == ["15", "7.5", "0.50", "SLOWER"]
    assert table(None, lines(15.0, 15.0), "--tolerance", "0.6")[0] == 0
    assert table(None, lines(15.0, 30.0), "--tolerance", "0.2")[0] == 1


def test_a_case_that_is_no_longer_measured_is_a_failure(table):
    status, output = table(lines(20.0, 30.0), lines(20.0))
    assert status == 1
    assert row(output, "batch 4 ") == ["15", "-", "-", "MISSING"]


def test_a_case_out_of_memory_has_no_ratio(table):
    status, output = table(lines(20.0), lines(20.0, "out of memory"))
    assert status == 0 and "batch 4" not in output


def test_a_missing_record_is_said_and_made(table):
    status, output = table(None, lines(20.0))
    assert status == 0 and "no record; --record makes one" in output
    assert row(output, "batch 1 ") == ["-", "10", "-", "not", "recorded"]
    assert not table.record.exists()
    assert table(None, lines(20.0), "--record")[0] == 0
    assert guard.read_lines(table.record.read_text(encoding="utf-8")) == lines(20.0)
    assert table(None, lines(2.0))[0] == 1


def test_a_broken_script_is_said_and_keeps_its_record(table):
    status, output = table(lines(20.0), "raise SystemExit('The two ways differ.')", "--record")
    assert status == 1 and "BROKEN: made_up.py" in output and "The two ways differ." in output
    assert guard.read_lines(table.record.read_text(encoding="utf-8")) == lines(20.0)


def test_a_run_that_lacks_a_package_or_a_checkpoint_is_not_run(table):
    status, output = table(None, f"NEEDS = ['a_package_that_is_not_installed']\n{PRINTED}")
    assert status == 0 and "made_up.py needs a_package_that_is_not_installed" in output
    by_hand = guard.Run("cpu-made-up", Path("made_up.py"), None, [], [])
    assert guard.compare(by_hand, Path(), 0.3, False) is False


def test_declarations_are_read_without_imports(tmp_path):
    (tmp_path / "made_up.py").write_text(DECLARED, encoding="utf-8")
    assert [(run.name, run.arguments) for run in guard.declared_runs(tmp_path)] == [
        ("quick-made-up", []), ("cpu-made-up", None)
    ]  # fmt: skip


def test_an_unknown_name_is_refused(table):
    status, _ = table(None, lines(20.0), "--only", "decoed")
    assert "No run of 'quick' is called decoed; choose from made_up" in status
    assert table(lines(20.0), lines(20.0), "--only", "made_up")[0] == 0


def test_every_recorded_file_belongs_to_a_script_and_has_ratios():
    runs = {run.name: run for run in guard.declared_runs(FOLDER)}
    files = {path.stem: path for path in (FOLDER / "results").glob("*.jsonl")}
    assert files.keys() == runs.keys() | WITHOUT_SCRIPT
    read = {name: guard.read_lines(path.read_text(encoding="utf-8")) for name, path in files.items()}
    assert all(guard.described(found).startswith("recorded on") for found in read.values())
    without = {name for name, run in runs.items() if not guard.ratios(read[name], run.key_figures)}
    assert without == WITHOUT_SLOW_WAY


def test_every_benchmark_declares_its_key_figure():
    scripts = [path for path in FOLDER.glob("*.py") if "emit_machine()" in path.read_text(encoding="utf-8")]
    declared = {path.stem for path in scripts if "KEY_FIGURES" in guard.declarations(path)}
    assert declared == {path.stem for path in scripts} - {"common"}


@pytest.mark.slow
def test_no_ratio_of_the_quick_runs_has_fallen():
    found = subprocess.run([sys.executable, str(FOLDER / "all.py"), "--quick"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
