"""The command itself: quick, quiet where a machine reads it, and one place for each stage."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from llmrec import __version__, cli
from llmrec.baselines.networks.sasrec import SASRecOptions
from llmrec.cli import METHODS, main, module_of
from llmrec.configs import STAGES

ROOT = Path(__file__).parents[1]
QUICK_S = 0.3
TRAINING_LINE = ("prepare", "embed", "tokenize", "extend", "teach", "sft", "dpo", "evaluate", "ensemble")
SIMULATED = ["prepare", "--dataset", "simulated:60x60", "--k-core", "3"]
FOREIGN = "--layout minionerec --model theirs --index index.json"
# Stage -> command line -> what is said of it.
REFUSED = {
    "export": {
        "--model absent --to vllm --out out": "'absent' is neither a checkpoint directory nor",
        "--model plain --to vllm --out out": "'plain' has no llmrec.json",
        "--model ours --to elsewhere --out out": "'elsewhere'",
        "--model ours --to vllm --catalog plain --out out": "catalog is for a Space",
        "--model ours --to space --catalog plain --out out": "'plain' is not a directory that llmrec finished",
        "--model ours --to vllm --out theirs": "'theirs' exists and was not written by llmrec",
    },
    "import": {
        f"{FOREIGN} --layout elsewhere --out out": "'elsewhere'",
        f"{FOREIGN} --index absent.json --out out": "'absent.json' does not exist",
        f"{FOREIGN} --info absent.txt --out out": "'absent.txt' does not exist",
        f"{FOREIGN} --model absent --out out": "'absent' is neither a checkpoint directory nor",
        f"{FOREIGN} --model adapter --out out": "model 'adapter' is an adapter",
        f"{FOREIGN} --out plain": "'plain' exists and was not written by llmrec",
    },
    "push": {
        "--source absent --repo-id ann/shop": "source 'absent' is no directory",
        "--source plain --repo-id ann/shop": "'plain' has no llmrec.json",
        "--source ours --repo-id shop": "repo_id is 'shop'; give owner/name",
        "--source ours --repo-id ann/a/shop": "repo_id is 'ann/a/shop', which the Hub does not take",
        "--source ours --repo-id ann/shop --metrics absent.json": "'absent.json' does not exist",
    },
}  # fmt: skip


@pytest.mark.parametrize("arguments", [["-c", "import llmrec"], ["-m", "llmrec", "--help"]])
def test_quick_to_start(arguments):
    def seconds() -> float:
        """CPU time of the process: wall time says as much about what else the machine does."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

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


@pytest.mark.parametrize("stage", REFUSED)
def test_bad_input_of_a_checkpoint_that_is_exchanged_is_refused_without_torch(stage, tmp_path):
    """Their imports take seconds; each command line is at fault in one thing."""
    places = {"plain": "a.txt", "ours": "llmrec.json", "theirs": "b.txt", "adapter": "adapter_config.json"}
    for name, file in places.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    (tmp_path / "index.json").write_text('{"7": ["<a_1>", "<b_2>"]}')
    code = f"""
import sys
from llmrec.cli import main
for words in {list(REFUSED[stage])!r}:
    assert main([{stage!r}, *words.split()]) == 2, words
    heavy = [name for name in ("torch", "transformers") if name in sys.modules]
    assert not heavy, (words, heavy)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for line, said in zip(run.stderr.splitlines(), REFUSED[stage].values(), strict=True):
        assert said in line


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_a_module_with_a_main_and_its_flags(stage, capsys):
    assert callable(module_of(stage).main)
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


def test_json_stands_alone_on_stdout(capsys, tmp_path):
    assert main([*SIMULATED, "--out", str(tmp_path / "catalog"), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["items"] == 57
    assert shown.err == ""


def test_the_result_is_on_stdout_alone(capsys, tmp_path):
    assert main([*SIMULATED, "--out", str(tmp_path / "catalog")]) == 0
    shown = capsys.readouterr()
    assert "interactions" in shown.out and "Written to" in shown.out and shown.err == ""


def test_a_yaml_file_and_flags(capsys, tmp_path):
    config = tmp_path / "prepare.yaml"
    config.write_text(f"dataset: simulated:60x30\nk_core: 99\nout: {tmp_path}/c\n")
    assert main(["prepare", "--config", str(config), "--k-core", "3", "--json"]) == 0
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["config"]["k_core"] == 3 and manifest["config"]["dataset"] == "simulated:60x30"


def test_a_closed_pipe_is_no_error(tmp_path):
    """`llmrec … --json | head`: the reader is gone before the result is printed."""
    llmrec = subprocess.Popen(
        [sys.executable, "-m", "llmrec", *SIMULATED, "--out", str(tmp_path / "catalog"), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    llmrec.stdout.close()
    assert llmrec.stderr.read() == b""
    assert llmrec.wait() == 128 + signal.SIGPIPE
    assert (tmp_path / "catalog" / "manifest.json").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["prepare", "--help"], [*SIMULATED, "--out", "catalog"]])
def test_a_reader_that_leaves_early_is_no_error(arguments, tmp_path):
    """`llmrec … | head -1`, also where argparse prints."""
    command = shlex.join([sys.executable, "-m", "llmrec", *arguments])
    ran = subprocess.run(
        ["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.stderr == "" and ran.stdout in ("0\n", "141\n")


def test_json_can_be_read_by_other_programs(tmp_path):
    """What a library prints meanwhile is not between the result and `jq`."""
    command = [sys.executable, "-c", "import sys; from llmrec import cli; from llmrec.stages import prepare\n"
               "main = prepare.main\nprepare.main = lambda config: print({'loss': 1.0}) or main(config)\n"
               "sys.exit(cli.main(sys.argv[1:]))", *SIMULATED, "--out", tmp_path / "catalog", "--json"]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout)["items"] == 57 and "loss" in ran.stderr


def test_evaluate_goes_through_a_pipe_and_into_a_file(tmp_path):
    """`llmrec evaluate --json | jq .`, and the same with `> file`: what another program reads is the result."""
    reader = "jq -e ." if shutil.which("jq") else f"{shlex.quote(sys.executable)} -m json.tool"
    assert main([*SIMULATED, "--out", str(tmp_path / "catalog")]) == 0
    flags = ["--catalog", "catalog", "--baselines", "popularity", "markov", "--out", "eval", "--json"]
    command = shlex.join([sys.executable, "-m", "llmrec", "evaluate", *flags])
    ran = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | {reader} && {command} > file"], cwd=tmp_path, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert json.loads(ran.stdout) == json.loads((tmp_path / "file").read_text()) == {"out": "eval", **metrics}
    assert "evaluate: popularity, plain" in ran.stderr, "progress has a stream of its own"


@pytest.mark.parametrize(
    ("stage", "nearest"), [("evalute", "evaluate"), ("Prepare", "prepare"), ("recomend", "recommend")]
)
def test_an_unknown_stage_names_the_nearest(stage, nearest, capsys):
    assert main([stage]) == 2
    assert capsys.readouterr().err.startswith(f"llmrec: there is no stage '{stage}'; did you mean '{nearest}'?")


@pytest.mark.parametrize("stage", ["frobnicate", "a\x1b[31m", "--frobnicate"])
def test_a_far_off_word_has_no_nearest_stage(stage, capsys):
    try:
        assert main([stage]) == 2
    except SystemExit as stop:
        assert stop.code == 2
    said = capsys.readouterr().err
    assert "did you mean" not in said and "\x1b" not in said and len(said.splitlines()) == 1


def test_without_arguments_it_explains_itself(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    shown = capsys.readouterr()
    assert stop.value.code == 2 and shown.out == "" and all(f"    {stage}" in shown.err for stage in STAGES)
    assert max(map(len, shown.err.splitlines())) <= 80


@pytest.mark.parametrize("argv", [["prepare", "--out"], ["prepare", "--config"], ["--verison"]])
def test_an_error_of_the_command_line_is_one_line(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and "--help" in said


def test_letters_that_the_terminal_lacks_are_written_out(tmp_path):
    """`PYTHONIOENCODING=ascii`, or a code page of Windows."""
    command = [sys.executable, "-c", "import sys; from llmrec import cli; from llmrec.stages import prepare\n"
               "result = dict(train=1, valid=1, test=1, items=1, report={'steps': []}, out='Amélie')\n"
               "prepare.main = lambda config: result; sys.exit(cli.main(sys.argv[1:]))",
               "prepare", "--out", "o"]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert ran.returncode == 0 and r"Written to Am\xe9lie" in ran.stdout


@pytest.fixture
def failing(monkeypatch, tmp_path):
    """Make the prepare stage raise an error."""

    def fail(error: BaseException) -> list[str]:
        def stage(config):
            raise error

        monkeypatch.setattr("llmrec.stages.prepare.main", stage)
        return ["prepare", "--dataset", "simulated", "--out", str(tmp_path / "nowhere")]

    return fail


class Panic(BaseException):
    """As pyo3 declares the panics of polars."""


@pytest.mark.parametrize(
    "error",
    [KeyError("row"), RuntimeError("shapes"), TypeError("none"), AssertionError(), ValueError("bad input shape ()"),
     Panic("out-of-range date\nin a second line")],
)  # fmt: skip
def test_an_error_that_nobody_foresaw_is_one_message_and_a_log(failing, error, capsys, tmp_path):
    """All of them are raised here, outside llmrec."""
    argv = failing(error)
    log = Path(argv[-1] + ".error.log")
    assert main(argv) == 1
    what = " ".join(str(error).split()) or "AssertionError"
    assert capsys.readouterr().err == (
        f"llmrec prepare: {type(error).__name__}: {what} (llmrec did not foresee this error; please report it at "
        f"https://github.com/llmrec/llmrec/issues with {log}, which has its traceback.)\n"
    )
    assert "Traceback" in log.read_text() and "--dataset simulated" in log.read_text()


def test_the_log_goes_where_it_can_be_written(failing, capsys):
    argv = failing(KeyError("row"))
    assert main([*argv[:-1], "/nowhere/at/all"]) == 1
    said = capsys.readouterr().err
    log = Path(re.search(r"with (\S+), which", said)[1])
    assert log.parent == Path(tempfile.gettempdir()) and "KeyError" in log.read_text()
    log.unlink()


def test_without_a_place_for_the_log_the_traceback_can_be_asked_for(failing, capsys, monkeypatch):
    def full(*arguments) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmrec.runtime.errors.write_log", full)
    assert main(failing(KeyError("row"))) == 1
    assert "report it at" in (said := capsys.readouterr().err) and "LLMREC_TRACEBACK=1 shows" in said


def test_control_characters_of_a_message_do_not_reach_the_terminal(failing, capsys):
    assert main(failing(OSError(2, "No such file or directory", "log\x1b[2J\x07.csv"))) == 2
    assert r"log\x1b[2J\x07.csv: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_says_what_to_lower(failing, error, capsys):
    assert main(failing(error)) == 2
    assert "memory" in capsys.readouterr().err


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
