"""The benchmarks run at a small size, and stop where the fast path and the slow one differ."""

import csv
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from llmrec.decoding.trie.trie import SidTrie
from llmrec.tokenizers.shared import balanced
from llmrec.tokenizers.shared import kmeans as residual
from llmrec.tokenizers.shared.codebooks import ResidualCodebooks
from llmrec.training.preference import shared_prompt as siblings

FOLDER = Path(__file__).parents[2] / "scripts" / "benchmarks"
SMALL = {
    "index.py": ["--items", "500", "3000", "--repeats", "1"],
    "constraint.py": ["--device", "cpu", "--items", "2000", "--rows", "24", "--vocab", "1200"],
    "decode.py": ["--device", "cpu", "--shape", "tiny", "--items", "2000", "--prompt", "12", "--beams", "6",
                  "--generate-batches", "2", "--repeats", "1"],
    "targets.py": ["--device", "cpu", "--shape", "tiny", "--items", "6", "--users", "3", "--rows", "4",
                   "--repeats", "1"],
    "sft.py": ["--device", "cpu", "--shape", "tiny", "--batch-size", "4", "--trl-batch-size", "2",
               "--steps", "3", "--warmup-steps", "1"],
    "rollout.py": ["--device", "cpu", "--shape", "tiny", "--items", "500", "--history", "4", "--beams", "5",
                   "--batch-sizes", "2", "6", "--repeats", "1"],
    "rank.py": ["--device", "cpu", "--shape", "tiny", "--items", "500", "--history", "4", "--beams", "5",
                "--batches", "1", "3", "--repeats", "1"],
    "preference.py": ["--device", "cpu", "--shape", "tiny", "--batch-sizes", "2", "4", "--mean-items", "5",
                      "--repeats", "1"],
    "kmeans.py": ["--device", "cpu", "--items", "1500", "--dim", "8", "--codes", "16", "--levels", "2",
                  "--iterations", "4", "--repeats", "1"],
    "balanced.py": ["--device", "cpu", "--items", "1500", "--flow-items", "700", "--dim", "8", "--codes", "16",
                    "--levels", "2", "--iterations", "3"],
    "encode.py": ["--device", "cpu", "--items", "3000", "--dim", "8", "--codes", "16"],
    "titles.py": ["--device", "cpu", "--shape", "tiny", "--items", "500", "--prompt", "12", "--beams", "5",
                  "--batches", "1", "3", "--generate-batches", "2", "--repeats", "1"],
    "serve.py": ["--device", "cpu", "--shape", "tiny", "--items", "500", "--seconds", "1", "--minutes", "0.03"],
    "prepare.py": ["--interactions", "3000", "--formats", "csv", "jsonl", "parquet"],
    "batch.py": ["--users", "300", "--input-users", "200", "--items", "50"],
}  # fmt: skip
SLOW = {"batch.py"}  # processes that load torch


PEERS = {"kmeans.py": "faiss", "balanced.py": "ortools", "encode.py": "faiss"}  # installed for the comparison alone


def run(name, monkeypatch, capsys):
    if name in PEERS:
        pytest.importorskip(PEERS[name])
    monkeypatch.setattr(sys, "argv", [name, *SMALL[name]])
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(FOLDER / name), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    return [json.loads(line) for line in lines if line.startswith('{"case"')]  # TRL prints what it logs, too


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in SMALL]
)
def test_a_benchmark_prints_a_line_per_case(name, monkeypatch, capsys):
    machine, *cases = run(name, monkeypatch, capsys)
    assert {"cpu", "torch", "transformers"} <= machine.keys()
    assert cases and all("case" in case for case in cases)


@pytest.mark.parametrize("name", ["constraint.py", "decode.py", "rollout.py"])
def test_a_wrong_trie_is_not_timed(name, monkeypatch, capsys):
    expand, allowed = SidTrie.expand, SidTrie.allowed
    monkeypatch.setattr(SidTrie, "allowed", lambda *arguments: ~allowed(*arguments))

    def without_first_child(*arguments):
        codes, nodes = expand(*arguments)
        nodes[..., 0] = -1
        return codes, nodes

    monkeypatch.setattr(SidTrie, "expand", without_first_child)
    with pytest.raises((AssertionError, SystemExit, ValueError)):  # the last: no legal token
        run(name, monkeypatch, capsys)


def test_siblings_that_see_one_another_are_not_timed(monkeypatch, capsys):
    def everyone(lengths, num_tokens, num_completions, num_run):
        size = num_tokens + num_completions * num_run
        return torch.ones(size, size, dtype=torch.bool).tril().expand(len(lengths), -1, -1)

    monkeypatch.setattr(siblings, "siblings_mask", everyone)
    with pytest.raises(SystemExit, match="shared and repeated prompts differ"):
        run("preference.py", monkeypatch, capsys)


def test_examples_that_differ_are_not_timed(monkeypatch, capsys):
    class OneRowLess(csv.DictReader):
        def __init__(self, file):
            file.readline()
            file.readline()
            super().__init__(file, fieldnames=["user_id", "item_id", "timestamp"])

    monkeypatch.setattr(csv, "DictReader", OneRowLess)
    with pytest.raises(SystemExit, match="make different examples"):
        run("prepare.py", monkeypatch, capsys)


def wrong_codes(codebooks, points, codes=ResidualCodebooks.codes):
    return (codes(codebooks, points) + 1) % codebooks.level_sizes[0]


@pytest.mark.parametrize(
    ("name", "module", "function", "wrong", "message"),
    [
        ("kmeans.py", residual, "lloyd", lambda points, start, iterations: start, "ours ends at distortion"),
        ("balanced.py", balanced, "balance_prices", lambda cost: cost.new_zeros(cost.shape[1]), "more than flow"),
        ("encode.py", ResidualCodebooks, "codes", wrong_codes, "of the codes are not those of faiss"),
    ],
)
def test_a_wrong_solver_or_code_is_not_timed(name, module, function, wrong, message, monkeypatch, capsys):
    monkeypatch.setattr(module, function, wrong)
    with pytest.raises(SystemExit, match=message):
        run(name, monkeypatch, capsys)
