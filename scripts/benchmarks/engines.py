"""One checkpoint, one length of prompts, several engines: users per second, latency, and answers that are no items.

    python scripts/benchmarks/engines.py --model run/checkpoint --catalog run/catalog --vllm VENV/bin/python

Test users with a history of at least `--history` items are asked for by their latest ones. Ours and transformers run in
this process, vLLM in the environment that `--vllm` names (`.ci/vllm` makes one), on the folder of `llmrec export`. Each
engine answers all users one by one, for the latency, and then together. Everything runs on one thread, in float32.
CPU seconds stand beside wall time, since they count on a busy machine too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmrec.serve.engines.folder import ExportedFolder

SAMPLES, TOP, REPEATS = 20, 10, 3
Answers = list[list[list[int]]]  # the token ids of each answer of each user, best first where they are ranked
KEY_FIGURES = [
    {"case": "ours, beams", "figure": "users_per_cpu_s", "over": {"case": "transformers, beams"}, "by": ["users"]},
]  # fmt: skip
RUNS = {"cpu-engines-micro": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="checkpoint")
    parser.add_argument("--catalog", required=True, help="directory of `llmrec prepare`")
    parser.add_argument("--vllm", required=True, help="python of an environment with vLLM")
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--history", type=int, default=20, help="items of each history")
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--batch", type=int, default=32, help="users together")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        prompts, folder = Path(directory) / "prompts.json", Path(directory) / "exported"
        measure_ours(args, prompts, folder)
        command = [args.vllm, __file__, str(folder), str(prompts)]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, check=True)


def measure_ours(args: argparse.Namespace, prompts: Path, folder: Path) -> None:
    """Time llmrec's search and `generate`, and write the prompts and the best answers for the other engines."""
    import torch
    from common import emit_machine
    from transformers import LogitsProcessorList

    from llmrec.cli import run
    from llmrec.data.catalog import Catalog
    from llmrec.decoding.decoder import SidDecoder
    from llmrec.decoding.generate import sid_generation_config
    from llmrec.decoding.logits_processor import SidLogitsProcessor
    from llmrec.decoding.sampling import tree_sample
    from llmrec.decoding.trie.trie import SidTrie
    from llmrec.model.checkpoint import SidConfig, load_model
    from llmrec.serve.engines.folder import ExportedFolder

    torch.set_num_threads(1)
    run(["export", "--model", args.model, "--to", "vllm", "--out", str(folder)])
    emit_machine()
    exported = ExportedFolder(folder)
    histories = Catalog.load(args.catalog).histories("test")
    kept = [each[-args.history :] for each in histories if len(each) >= args.history][: args.users]
    asked = [exported.prompt(history) for history in kept]
    sid_config, table, _ = SidConfig.load(args.model)
    model, trie = load_model(args.model), SidTrie(table)
    vocabulary, over = sid_config.vocabulary, sid_config.normalize_over
    decoder = SidDecoder(model, trie, vocabulary, args.beams, over)
    config = sid_generation_config(vocabulary, args.beams, args.beams)

    def tokens_of(codes: torch.Tensor) -> Answers:
        return [[[t for t in sid if t >= 0] for sid in sids] for sids in vocabulary.token_ids(codes.numpy()).tolist()]

    def padded(batch: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        size = max(map(len, batch))
        rows = [(size - len(tokens), tokens) for tokens in batch]
        mask = [[0] * absent + [1] * len(tokens) for absent, tokens in rows]
        return torch.tensor([[0] * absent + tokens for absent, tokens in rows]), torch.tensor(mask)

    def search(batch: Sequence[list[int]]) -> Answers:
        return tokens_of(decoder(*padded(batch)).codes)

    def sample(batch: Sequence[list[int]]) -> Answers:
        drawn = tree_sample(model, *padded(batch), trie, vocabulary, SAMPLES, True)
        return tokens_of(drawn.take(drawn.scores.argsort(dim=1, descending=True)).codes)

    def generate(batch: Sequence[list[int]]) -> Answers:
        ids, mask = padded(batch)
        processors = LogitsProcessorList([SidLogitsProcessor(trie, vocabulary, ids.shape[1], over)])
        constraint = {"generation_config": config, "logits_processor": processors}
        output = model.generate(ids, attention_mask=mask, **constraint)
        return output.sequences[:, ids.shape[1] :].view(len(ids), args.beams, -1).tolist()

    best = search(asked)
    prompts.write_text(json.dumps({"prompts": asked, "best": best, "beams": args.beams}), encoding="utf-8")
    for engine, answer in {"ours, beams": search, "ours, samples": sample, "transformers, beams": generate}.items():
        batch = 8 if answer is generate else args.batch
        measure(engine, answer, asked, batch, exported, best)


def measure_vllm(folder: str, prompts: Path) -> None:
    """Time vLLM under the processor and without it, in its environment."""
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "0", "OMP_NUM_THREADS": "1"}
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import BeamSearchParams

    from llmrec.serve.engines.beams import search_beams
    from llmrec.serve.engines.folder import ExportedFolder

    exported, given = ExportedFolder(folder), json.loads(prompts.read_text(encoding="utf-8"))
    asked, num_beams, levels = given["prompts"], given["beams"], exported.mask.trie.num_levels
    longest = max(map(len, asked)) + levels + 1
    llm = LLM(
        model=folder, logits_processors=["llmrec.serve.engines.vllm_v1:SidTrieProcessor"], dtype="float32",
        logprobs_mode="processed_logits", max_logprobs=2 * num_beams, max_model_len=longest, enforce_eager=True,
    )  # fmt: skip

    def sampled(batch: Sequence[list[int]], switch: bool) -> Answers:
        params = SamplingParams(
            n=SAMPLES, temperature=1, max_tokens=levels, logprobs=0, detokenize=False, extra_args={"sid": switch}
        )
        outputs = llm.generate([{"prompt_token_ids": tokens} for tokens in batch], params, use_tqdm=False)
        ranked = [sorted(output.outputs, key=lambda each: -each.cumulative_logprob) for output in outputs]
        return [[list(each.token_ids) for each in answers] for answers in ranked]

    def own_beams(batch: Sequence[list[int]]) -> Answers:
        params = BeamSearchParams(beam_width=num_beams, max_tokens=levels)
        outputs = llm.beam_search([{"prompt_token_ids": tokens} for tokens in batch], params)
        return [
            [beam.tokens[len(tokens) :] for beam in output.sequences]
            for tokens, output in zip(batch, outputs, strict=True)
        ]

    engines: dict[str, Callable[[Sequence[list[int]]], Answers]] = {
        "vLLM, samples": lambda batch: sampled(batch, True),
        "vLLM, beams of search_beams": lambda batch: search_beams(llm, exported, batch, num_beams)[0],
        "vLLM, samples without the mask": lambda batch: sampled(batch, False),
        "vLLM, its own beam_search": own_beams,
    }
    for engine, answer in engines.items():
        measure(engine, answer, asked, len(asked), exported, given["best"])


def measure(
    engine: str,
    answer: Callable[[Sequence[list[int]]], Answers],
    asked: list[list[int]],
    batch: int,
    exported: ExportedFolder,
    best: Answers,
) -> None:
    """Answer all users together, then one by one, and print what came out; first calls, which compile, do not count."""
    parts = [asked[start : start + batch] for start in range(0, len(asked), batch)]
    together = [timed(lambda: [each for part in parts for each in answer(part)]) for _ in range(REPEATS + 1)]
    answer(asked[:1])
    alone = [timed(lambda tokens=tokens: answer([tokens]))[1:] for tokens in asked]
    found = together[-1][0]
    wall, cpu = (median(times) for times in zip(*(spent for _, *spent in together[1:]), strict=True))
    items = [exported.items(answers) for answers in found]
    ours = [leading(exported.items(answers)) for answers in best]
    top = [len(set(leading(answers)) & set(expected)) / TOP for answers, expected in zip(items, ours, strict=True)]
    values = {
        "users": len(asked), "prompt_tokens": mean(map(len, asked)), "batch": batch, "users_per_s": len(asked) / wall,
        "users_per_cpu_s": len(asked) / cpu, "p50_ms": 1e3 * median(each[0] for each in alone),
        "p50_cpu_ms": 1e3 * median(each[1] for each in alone),
        "invalid": mean(not each for answers in items for each in answers),
        "items_per_user": mean(len({each for answer in answers for each in answer}) for answers in items),
        "of_best_10": mean(top), "load": os.getloadavg()[0],
    }  # fmt: skip
    shown = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in values.items()}
    print(json.dumps({"case": engine, **shown}), flush=True)


def leading(answers: list[list[str]]) -> list[tuple[str, ...]]:
    """The first answers that are items, each once, as the items of their SIDs."""
    return list(dict.fromkeys(tuple(items) for items in answers if items))[:TOP]


def timed(call: Callable[[], Answers]) -> tuple[Answers, float, float]:
    """Result, wall seconds and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    import sys

    if len(sys.argv) == 3 and not sys.argv[1].startswith("-"):
        measure_vllm(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
