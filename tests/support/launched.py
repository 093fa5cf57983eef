"""Stages under `accelerate launch`: processes on the CPU, which meet over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
TWO = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
LAUNCHERS = {1: ["accelerate.commands.launch", "--cpu", "--num_processes", "2"], 2: TWO}
# 27 windows in batches of 8: the last batch of an epoch is not full. No dropout: each process draws its own.
SFT = {"max_steps": 6, "batch_size": 8, "micro_batch_size": 4, "max_history": 4, "lora_rank": 4,
       "warmup_steps": 0, "logging_steps": 1, "save_steps": 4, "device": "cpu"}  # fmt: skip


def with_recipe(name: str, processes: int = 2) -> list[str]:
    """A launcher with a file of recipes/accelerate."""
    recipe = str(ROOT / "recipes" / "accelerate" / f"{name}.yaml")
    return [*TWO[:1], "--config_file", recipe, "--num_processes", str(processes), "--main_process_port", "0"]


def launched(launcher: Sequence[str], script: Sequence[str | Path], options: dict) -> subprocess.CompletedProcess:
    """A script with its arguments, and the config file of a stage, as a user would start it."""
    config = Path(options["out"]).with_suffix(".yaml")
    config.write_text(json.dumps(options))  # JSON is YAML
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "MASTER_"))}
    return subprocess.run(
        [sys.executable, "-m", *launcher, *map(str, script), "--config", str(config)],
        env=inherited | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
