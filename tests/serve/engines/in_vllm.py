"""What `test_in_vllm.py` runs in the environment of vLLM: python -m tests.serve.engines.in_vllm TASK FOLDER OUT.

It answers with JSON, and leaves judging to the test, whose environment has llmrec's own search.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from vllm import LLM, SamplingParams

from llmrec.serve.engines.beams import search_beams
from llmrec.serve.engines.folder import ExportedFolder
from tests.support import vllm_interface

V1, V2 = (f"llmrec.serve.engines.vllm_{name}:SidTrieProcessor" for name in ("v1", "v2"))
ON = {"sid": True}


def engine(folder: str, **options) -> LLM:
    defaults = {"dtype": "float32", "enforce_eager": True, "max_model_len": 128, "max_num_seqs": 16, "max_logprobs": -1}
    return LLM(model=folder, logits_processors=[V1], **defaults, **options)


def prompts(exported: ExportedFolder) -> list[list[int]]:
    """Histories of one to three items; the test makes the same."""
    ids, count = exported.item_ids, len(exported.item_ids)
    return [exported.prompt([ids[(row + step) % count] for step in range(1 + row % 3)]) for row in range(8)]


def generate(llm: LLM, asked: list[list[int]], params) -> list[list[dict]]:
    found = llm.generate([{"prompt_token_ids": tokens} for tokens in asked], params, use_tqdm=False)
    return [
        [{"tokens": list(each.token_ids), "score": each.cumulative_logprob} for each in output.outputs]
        for output in found
    ]


def answers(folder: str) -> dict:
    """Greedy, sampled, unmasked and mixed requests, tokens that each step allowed, and rows of aborted requests."""
    exported = ExportedFolder(folder)
    llm, asked = engine(folder, logprobs_mode="processed_logprobs"), prompts(exported)
    levels = exported.mask.trie.num_levels
    greedy = SamplingParams(temperature=0, max_tokens=levels + 1, logprobs=0, extra_args=ON)
    off = SamplingParams(temperature=0, max_tokens=levels + 1, logprobs=0, extra_args={"sid": 0})
    sampled = SamplingParams(n=20, temperature=1, max_tokens=levels + 1, logprobs=0, seed=0, extra_args={"sid": 1})
    stepped = SamplingParams(temperature=1, max_tokens=levels + 1, logprobs=-1, seed=1, extra_args=ON)
    steps = llm.generate([{"prompt_token_ids": tokens} for tokens in asked], stepped, use_tqdm=False)
    return {
        "prompts": asked,
        "greedy": generate(llm, asked, greedy),
        "sampled": generate(llm, asked, sampled),
        "off": generate(llm, asked, off),
        "mixed": generate(llm, asked, [greedy if row % 2 else off for row in range(len(asked))]),
        "steps": [
            {"tokens": list(output.outputs[0].token_ids),
             "allowed": [sorted(token for token, found in step.items() if found.logprob > -math.inf)
                         for step in output.outputs[0].logprobs]}
            for output in steps
        ],
        "reused": reused_slots(llm, asked, greedy, off),
    }  # fmt: skip


def reused_slots(llm: LLM, asked: list[list[int]], greedy, off) -> dict:
    """Greedy answers to prompts 1 to 5; those of 3 to 5 come into the rows of requests that were aborted midway."""
    running, found = llm.llm_engine, {}

    def step():
        for output in running.step():
            if output.finished:
                found[output.request_id.split("-")[0]] = list(output.outputs[0].token_ids)

    def add(row, params):
        running.add_request(str(row), {"prompt_token_ids": asked[row]}, params)

    for row, params in enumerate((greedy, off, greedy)):
        add(row, params)
    step()
    step()
    running.abort_request(["0"])
    add(3, off)  # into the row of a request with a mask
    step()
    running.abort_request(["1"])
    add(4, greedy)  # into that of one without
    add(5, off)
    while running.has_unfinished_requests():
        step()
    return found


def beams(folder: str) -> dict:
    """Lists and scores of a narrow and of a full beam, and what is refused."""
    exported = ExportedFolder(folder)
    llm, asked = engine(folder, logprobs_mode="processed_logits"), prompts(exported)
    return {"prompts": asked, **{str(width): search_beams(llm, exported, asked, width) for width in (3, 50)}}


def contract(folder: str) -> dict:
    """What differs between the interfaces of this vLLM and those that the tests of CI stand on, and between loaders."""
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns as load_v1
    from vllm.v1.sample.logits_processor import validate_logits_processors_parameters as validate_v1
    from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors_params_validator
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns as load_v2

    differences = []
    for module, names in vllm_interface.NAMES.items():
        real = __import__(module, fromlist=["*"])
        for name, ours in names.items():
            theirs = getattr(real, name)
            methods = [each for each, value in vars(ours).items() if callable(value) or isinstance(value, classmethod)]
            for method in [each for each in methods if each not in ("__eq__", "__hash__", "__repr__", "__delattr__")]:
                pair = [list(inspect.signature(getattr(each, method)).parameters) for each in (ours, theirs)]
                if pair[0] != pair[1]:
                    differences.append(f"{module}.{name}.{method}: {pair[0]} here, {pair[1]} in vLLM")
            abstract = getattr(theirs, "__abstractmethods__", frozenset()) - set(vars(ours))
            differences += [f"{module}.{name} has no {method}" for method in abstract]
    validate_v2, refused = build_custom_logits_processors_params_validator([V2]), {}
    for name, validate in {"v1": lambda params: validate_v1([V1], params), "v2": validate_v2}.items():
        validate(SamplingParams(extra_args={"sid": 1}))
        try:
            validate(SamplingParams(extra_args={"sid": "yes"}))
        except VLLMValidationError as error:
            refused[name] = str(error)
    loaded = [each.__module__ for each in (*load_v1([V1]), *load_v2([V2]))]
    return {"differences": differences, "refused": refused, "loaded": loaded}


if __name__ == "__main__":
    task, folder, out = sys.argv[1:]
    Path(out).write_text(json.dumps(globals()[task](folder)), encoding="utf-8")
