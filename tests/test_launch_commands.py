"""Every command of recipes/accelerate/README.md, in its order, with two processes on the CPU and at toy size."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.cli import main
from llmrec.runtime.manifest import read_manifest
from tests.support.extended import toy_sequences

ROOT = Path(__file__).parents[1]
README = ROOT / "recipes" / "accelerate" / "README.md"
COMMANDS = re.findall(r"^(?:accelerate launch|llmrec) .*$", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
STEPS = "--max-steps 2 --batch-size 8 --micro-batch-size 2 --warmup-steps 0"
SMALL = {
    "prepare": "--k-core 1",
    "embed": "--collaborative-dim 8",
    "tokenize": "--num-levels 3 --codebook-size 4",
    "teach": "--hidden 16 --max-epochs 2",
    "sft": f"{STEPS} --max-history 4",
    "dpo": STEPS,
    "grpo": f"{STEPS} --num-generations 4",
    "evaluate": "--k 1 5 --num-beams 8",
    "recommend": "--k 4",
}


def stage_of(command: str) -> str:
    return re.search(r"scripts/(\w+)\.py|llmrec (\w+)", command).expand(r"\1\2")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A log, its items and users whom nobody has recommended to."""
    shop = tmp_path_factory.mktemp("shop")
    events = [(user, item, time) for user, items in enumerate(toy_sequences()) for time, item in enumerate(items)]
    rows = [f"u{user},item-{item},{1_700_000_000 + 86_400 * time}" for user, item, time in events]
    (shop / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    titles = [f"item-{row},title {row} of {row % 3}" for row in range(12)]
    (shop / "items.csv").write_text("\n".join(["item_id,title", *titles]))
    pq.write_table(
        pa.table({"user_id": ["a", "b"], "history": [["item-1"], ["item-2", "item-3"]]}), shop / "users.parquet"
    )
    return shop


def test_every_stage_has_a_command():
    assert [stage_of(command) for command in COMMANDS] == [
        "prepare", "embed", "tokenize", "teach", "extend", "sft", "dpo", "grpo", "evaluate", "recommend", "sft"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "command", [["prepare", "--interactions", "log.csv"], ["extend", "--sid", "s", "--model", "m"]]
)
def test_stages_of_one_process_refuse_several(monkeypatch, capsys, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*command, "--out", "out"]) == 2
    assert f"{command[0]} works in one process and 2 were started" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.xdist_group("commands")
@pytest.mark.parametrize("command", COMMANDS, ids=stage_of)
def test_command(shop, command):
    """Under FSDP2, accelerate shards on the CPU only because it is told that these are accelerators (dies.py)."""
    stage, words = stage_of(command), shlex.split(command)
    launcher = ["llmrec"]
    if words.pop(0) == "accelerate":
        launcher = ["accelerate.commands.launch", "--main_process_port", "0"]
        words.remove("launch")
    if "fsdp2" in command:
        place = words.index(f"scripts/{stage}.py")
        words[place : place + 1] = ["tests/support/dies.py", "-1", "0", stage]
    words = [str(ROOT / word) if word.startswith(("scripts/", "recipes/", "tests/")) else word for word in words]
    small = shlex.split(SMALL.get(stage, ""))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "MASTER_"))}
    ended = subprocess.run(
        [sys.executable, "-m", *launcher, *words, *small],
        env=inherited | {"CUDA_VISIBLE_DEVICES": ""}, cwd=shop, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert read_manifest(shop / words[words.index("--out") + 1])["processes"] == (1 if launcher == ["llmrec"] else 2)
