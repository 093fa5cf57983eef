"""The command itself: quick, quiet where a machine reads it, and one place for each stage."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmrec import __version__, cli
from llmrec.baselines.networks.sasrec import SASRecOptions
from llmrec.cli import METHODS, main
from llmrec.configs import STAGES

ROOT = Path(__file__).parents[1]
QUICK_S = 0.3
TRAINING_LINE = ("prepare", "embed", "tokenize", "extend", "teach", "sft", "dpo", "evaluate", "ensemble")
SIMULATED = ["prepare", "--dataset", "simulated:60x30", "--k-core", "3"]


@pytest.mark.parametrize("arguments", [["-c", "import llmrec"], ["-m", "llmrec.cli", "--help"]])
def test_quick_to_start(arguments):
    def seconds() -> float:
        started = time.monotonic()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        return time.monotonic() - started

    assert min(seconds() for _ in range(3)) <= QUICK_S


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], *[[stage, "--help"] for stage in STAGES if stage not in METHODS]]
)
def test_help_needs_no_torch(arguments):
    """Those of METHODS list the options of a method, which its class declares."""
    code = f"""
import sys
from llmrec.cli import main
try:
    main({arguments!r})
except SystemExit:
    pass
heavy = [name for name in ("torch", "transformers", "numpy", "polars", "yaml") if name in sys.modules]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_a_module_with_a_main_and_its_flags(stage, capsys):
    assert callable(importlib.import_module(f"llmrec.stages.{stage}").main)
    with pytest.raises(SystemExit) as stop:
        main([stage, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(STAGES[stage]):
        is_block = stage in METHODS and field.name == "options"
        assert (f"--{field.name.replace('_', '-')} " in shown.replace("]", " ")) != is_block


def test_help_of_tokenize_lists_the_options_of_the_method_named(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("method: atomic\n")
    for more, has_levels in ((["--method", "random"], True), (["--config", str(tmp_path / "run.yaml")], False)):
        with pytest.raises(SystemExit):
            main(["tokenize", *more, "--help"])
        assert ("--num-levels" in capsys.readouterr().out) == has_levels


def test_help_names_the_values_of_a_choice(capsys):
    with pytest.raises(SystemExit):
        main(["sft", "--help"])
    shown = capsys.readouterr().out
    assert "--train {lora,sid_tokens,full}" in shown and "--chat-template [{true,false}]" in shown


@pytest.mark.parametrize("stage", TRAINING_LINE)
def test_every_stage_of_the_training_line_has_a_script(stage):
    script = (ROOT / "scripts" / f"{stage}.py").read_text()
    assert f'main(["{stage}", *sys.argv[1:]])' in script and len(script.splitlines()) <= 12


def test_a_script_runs_its_stage(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "prepare.py", *SIMULATED[1:], "--out", tmp_path / "catalog"]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "catalog" / "manifest.json").exists()


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"llmrec {__version__}\n"


def test_json_stands_alone_on_stdout(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("LLMREC_QUIET", raising=False)
    assert main([*SIMULATED, "--out", str(tmp_path / "catalog"), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["items"] == 30
    assert shown.err == "" and "LLMREC_QUIET" not in os.environ


def test_a_person_reads_stderr(capsys, tmp_path):
    assert main([*SIMULATED, "--out", str(tmp_path / "catalog")]) == 0
    shown = capsys.readouterr()
    assert shown.out == "" and "Written to" in shown.err


def test_a_yaml_file_and_flags(capsys, tmp_path):
    config = tmp_path / "prepare.yaml"
    config.write_text(f"dataset: simulated:60x30\nk_core: 99\nout: {tmp_path}/c\n")
    assert main(["prepare", "--config", str(config), "--k-core", "3", "--json"]) == 0
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["config"]["k_core"] == 3 and manifest["config"]["dataset"] == "simulated:60x30"


def test_a_closed_pipe_is_no_error(tmp_path):
    """`llmrec … --json | head`: the reader is gone before the result is printed."""
    llmrec = subprocess.Popen(
        [sys.executable, "-m", "llmrec.cli", *SIMULATED, "--out", str(tmp_path / "catalog"), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    llmrec.stdout.close()
    assert llmrec.stderr.read() == b""
    assert llmrec.wait() == 128 + signal.SIGPIPE
    assert (tmp_path / "catalog" / "manifest.json").exists()


@pytest.fixture
def failing(monkeypatch):
    """Make the prepare stage raise an error."""

    def fail(error: BaseException) -> list[str]:
        def stage(config):
            raise error

        monkeypatch.setattr("llmrec.stages.prepare.main", stage)
        return ["prepare", "--dataset", "simulated", "--out", "nowhere"]

    return fail


@pytest.mark.parametrize("error", [KeyError("row"), RuntimeError("shapes"), TypeError("none"), AssertionError()])
def test_a_bug_keeps_its_traceback(failing, error):
    with pytest.raises(type(error)) as caught:
        main(failing(error))
    assert caught.value is error


def test_an_error_of_a_library_says_where_to_look(failing, capsys):
    argv = failing(ValueError("bad input shape ()"))  # raised here, outside llmrec
    assert main(argv) == 2
    assert capsys.readouterr().err == "llmrec prepare: bad input shape ()\n(LLMREC_TRACEBACK=1 shows where.)\n"


def test_the_traceback_is_there_for_who_asks(failing, monkeypatch):
    monkeypatch.setenv("LLMREC_TRACEBACK", "1")
    with pytest.raises(ValueError, match="bad input"):
        main(failing(ValueError("bad input")))


def test_a_file_of_the_system_is_named(failing, capsys):
    assert main(failing(PermissionError(13, "Permission denied", "/root/x"))) == 2
    assert (
        capsys.readouterr().err == "llmrec prepare: /root/x: Permission denied. Check the path and its permissions.\n"
    )


def test_a_full_disk_says_what_to_do(failing, capsys):
    assert main(failing(OSError(28, "No space left on device", "out.partial"))) == 2
    assert "out.partial: No space left on device. Free some space" in capsys.readouterr().err


def test_a_gpu_without_room_says_what_to_lower(monkeypatch, tmp_path, capsys):
    from torch import OutOfMemoryError

    def stage(config):
        raise OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. Of the allocated memory 70 GiB is allocated by PyTorch. "
            "If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF"
        )

    monkeypatch.setattr("llmrec.stages.sft.main", stage)
    argv = ["sft", "--catalog", "c", "--model", "m", "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("llmrec sft: CUDA out of memory. Tried to allocate 2.00 GiB. Lower micro_batch_size")
    assert "PYTORCH_ALLOC_CONF" not in said
    monkeypatch.setenv("LLMREC_TRACEBACK", "1")
    with pytest.raises(OutOfMemoryError):
        main(argv)


@pytest.mark.parametrize("stage", [stage for stage in cli.LIGHTER if stage != "quickstart"])
def test_the_advice_on_gpu_memory_names_options_of_the_stage(stage):
    kinds = [STAGES[stage], *([SASRecOptions] if stage == "teach" else [])]
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    named = set(re.findall(r"\b[a-z]+_[a-z_]+\b", cli.LIGHTER[stage]))
    assert named and named <= names


def test_an_interrupt_says_how_to_go_on(failing, capsys):
    assert main(failing(KeyboardInterrupt())) == 130
    assert "interrupted; run the same command again to continue" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (["--k-cor", "5"], {"k_cor": None}),
        (["--k-cor=5", "--sed=1"], {"k_cor": None, "sed": None}),
        ([], {}),
    ],
)
def test_unknown_flags_are_named(arguments, flags):
    assert cli.unknown_flags("prepare", arguments) == flags


def test_a_flag_that_is_spelled_like_a_key_is_refused_as_its_value_would_be_lost(capsys, tmp_path):
    assert cli.main(["prepare", "--num_users", "3", "-k-core", "2", "--out", str(tmp_path / "catalog")]) == 2
    assert "write --num-users for --num_users, --k-core for -k-core." in capsys.readouterr().err


def test_only_the_first_process_of_a_launch_prints(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("llmrec.stages.prepare.main", lambda config: {"items": 1})
    monkeypatch.setenv("RANK", "1")
    assert main(["prepare", "--out", str(tmp_path), "--json"]) == 0
    assert capsys.readouterr().out == ""
