"""Beam search over an engine's `generate`: the lists and scores of llmrec's own search.

The engine here is the model itself under the mask; `test_in_vllm.py` asks vLLM.
"""

from __future__ import annotations

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from llmrec.decoding.decoder import SidDecoder
from llmrec.serve.engines.beams import search_beams
from llmrec.serve.engines.folder import ExportedFolder
from llmrec.serve.engines.mask import rectangle
from tests.serve.engines.conftest import tables
from tests.support.decoding import NORMALIZE_OVER

PROCESSOR = "llmrec.serve.engines.vllm_v1:SidTrieProcessor"


class Engine:
    """What `search_beams` reads of vllm.LLM: it returns the most likely token, then the likeliest, -inf among them."""

    def __init__(self, checkpoint, **options):
        defaults = {"logits_processors": [PROCESSOR], "logprobs_mode": "processed_logits", "max_logprobs": 20}
        self.model, self.mask = checkpoint.model, ExportedFolder(checkpoint.folder).mask
        self.model_config, self.asked = SimpleNamespace(**defaults | options), []

    @torch.no_grad()
    def generate(self, requests, params, use_tqdm):
        assert params.temperature == 0 and params.max_tokens == 1 and params.extra_args["sid"] is True
        self.asked.append(len(requests))
        return [self.answer(request["prompt_token_ids"], params) for request in requests]

    def answer(self, tokens, params):
        logits = self.model(torch.tensor([tokens])).logits[:, -1]
        begun = tokens[len(tokens) - params.extra_args["sid_prefix"] :]
        self.mask.apply(logits, torch.tensor([0]), *rectangle([begun], self.mask.trie.num_levels))
        scores, ids = (found[0].tolist() for found in logits.topk(params.logprobs))
        found = SimpleNamespace(token_ids=[ids[0], *ids], logprobs=[scores[0], *scores])
        return SimpleNamespace(outputs=[SimpleNamespace(logprobs=found)])


@pytest.fixture(autouse=True)
def sampling_params(monkeypatch):
    module = sys.modules.get("vllm") or ModuleType("vllm")
    monkeypatch.setattr(module, "SamplingParams", SimpleNamespace, raising=False)
    monkeypatch.setitem(sys.modules, "vllm", module)


@pytest.mark.parametrize("kind", tables())
@pytest.mark.parametrize("normalize_over", NORMALIZE_OVER)
@pytest.mark.parametrize("num_beams", [1, 3, 20])
def test_the_search_is_that_of_llmrec(exported, kind, normalize_over, num_beams):
    checkpoint = exported(kind, normalize_over, length_penalty=1.0)
    vocabulary, folder = checkpoint.vocabulary, ExportedFolder(checkpoint.folder)
    histories = [[0], [1, 2], [3, 0, 2]]
    prompts = [folder.prompt([folder.item_ids[row] for row in rows]) for rows in histories]
    answers, scores = search_beams(Engine(checkpoint), folder, prompts, num_beams)
    decoder = SidDecoder(
        checkpoint.model, checkpoint.trie, vocabulary, num_beams, normalize_over, length_penalty=1.0, capture=False
    )
    beams = decoder(*checkpoint.sid_config.encode(histories, checkpoint.table, checkpoint.tokenizer))
    tokens = vocabulary.token_ids(beams.codes.numpy()).tolist()
    for row in range(len(histories)):
        filled = [place for place, score in enumerate(beams.scores[row].tolist()) if score > -math.inf]
        assert answers[row] == [tuple(t for t in tokens[row][place] if t >= 0) for place in filled]
        assert scores[row] == pytest.approx(beams.scores[row, filled].tolist(), abs=1e-5)


def test_only_beams_of_the_trie_are_asked(exported):
    """Twelve items of three levels: a wide beam asks for the root, its 4 children and their 8, and drops all others."""
    checkpoint = exported("fixed")
    engine, folder = Engine(checkpoint), ExportedFolder(checkpoint.folder)
    search_beams(engine, folder, [folder.prompt(["item-0"])], 50)
    below = {tuple(codes[:2]) for codes in checkpoint.table.all_codes.tolist()}
    assert engine.asked == [1, 4, len(below)]


@pytest.mark.parametrize(
    ("options", "num_beams", "problem"),
    [
        ({}, 0, "num_beams is 0; at least 1 is needed"),
        ({"logits_processors": None}, 2, "The engine has no SidTrieProcessor"),
        ({"logprobs_mode": "processed_logprobs"}, 2, "make it with 'processed_logits'"),
        ({"max_logprobs": 3}, 50, "max_logprobs 3; 4 is needed for 50 beams"),
    ],
)
def test_an_engine_of_other_options_is_refused(exported, options, num_beams, problem):
    checkpoint = exported("fixed")
    with pytest.raises(ValueError, match=problem):
        search_beams(Engine(checkpoint, **options), ExportedFolder(checkpoint.folder), [[9]], num_beams)


def test_no_prompt_and_all_logprobs(exported):
    checkpoint = exported("fixed")
    assert search_beams(Engine(checkpoint, max_logprobs=-1), ExportedFolder(checkpoint.folder), [], 5) == ([], [])
