"""Weights that have gone bad are refused where they are read and before they are written, and never answer.

Law 7: no non-finite weight is loaded or saved, no non-finite score answers.
"""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LogitsProcessorList

from llmrec.configs import EvaluateConfig, RecommendConfig
from llmrec.decoding.beam_search import tree_beam_search
from llmrec.decoding.decoder import SidDecoder
from llmrec.decoding.generate import sid_generation_config
from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.decoding.ranker import SidRanker
from llmrec.decoding.sampling import tree_sample
from llmrec.evaluation.ranking import UNFILLED, Ranking, ScoresNotFinite
from llmrec.model.checkpoint import load_model, load_tokenizer, save_model
from llmrec.recommender import Recommender
from llmrec.runtime.manifest import MANIFEST
from llmrec.stages import evaluate, recommend
from tests.conftest import tiny_llm
from tests.decoding.test_item_ranking import HISTORIES, parts_of
from tests.support.decoding import NORMALIZE_OVER, prompts
from tests.support.extended import fine_tune

NAN, INF = math.nan, math.inf


def poisoned(directory, out, name, place, value):
    """A copy of a checkpoint in which one number of one tensor is `value`; the manifest, which would tell, is lost."""
    shutil.copytree(directory, out, ignore=shutil.ignore_patterns(MANIFEST))
    tensors = load_file(out / "model.safetensors")
    tensors[name].view(-1)[place] = value
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    path = out / "llmrec.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "binding"}))
    return out


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("model.embed_tokens.weight", -1, NAN),
        ("model.layers.0.mlp.up_proj.weight", 7, INF),
        ("model.layers.1.self_attn.q_norm.weight", 0, -INF),
        ("model.norm.weight", 5, NAN),
    ],
)
def test_bad_weights_are_refused_where_they_are_read(tuned, toy, tmp_path, name, place, value):
    bad = poisoned(tuned, tmp_path / "bad", name, place, value)
    message = (
        rf"1 of the weights in '{re.escape(str(bad))}', read as torch.float32, hold NaN or infinity, first: \['{name}'"
    )
    with pytest.raises(ValueError, match=message):
        load_model(bad)
    with pytest.raises(ValueError, match=message):
        Recommender.from_pretrained(bad, device="cpu")
    with pytest.raises(ValueError, match=message):
        recommend.main(RecommendConfig(model=str(bad), history=["item-1"], k=3, device="cpu"))
    with pytest.raises(ValueError, match=message):
        evaluate.main(
            EvaluateConfig(catalog=str(toy[0]), model=str(bad), out=str(tmp_path / "eval"), baselines=[], device="cpu")
        )


def test_values_that_a_narrower_type_cannot_hold_are_refused(tuned, tmp_path):
    large = poisoned(tuned, tmp_path / "large", "model.norm.weight", 3, 7e4)
    load_model(large, dtype=torch.float32)
    load_model(large, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"as torch.float16, hold NaN or infinity, first: \['model.norm.weight'\]"):
        load_model(large, dtype=torch.float16)
    huge = poisoned(tuned, tmp_path / "huge", "model.norm.weight", 3, 3.4e38)
    with pytest.raises(ValueError, match=r"read as torch.bfloat16, .*read it as float32"):
        load_model(huge, dtype=torch.bfloat16)


def test_bad_weights_are_not_saved(tuned, tmp_path):
    recommender = Recommender.from_pretrained(tuned, device="cpu")
    with torch.no_grad():
        recommender.model.get_input_embeddings().weight[recommender.sid_config.vocabulary.starts[0]] = NAN
    with pytest.raises(ValueError, match=r"hold NaN or infinity, first: \['model.embed_tokens.weight'\]. Nothing was"):
        recommender.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.safetensors"))
    model = tiny_llm(40).half()
    with torch.no_grad():
        model.base_model.norm.weight[0] = 65_504 * 2  # a merge that overflows
    with pytest.raises(ValueError, match=r"of type torch.float16, hold .*\['model.norm.weight'\].*use bfloat16"):
        save_model(model, load_tokenizer(tuned), tmp_path / "half")


@pytest.mark.parametrize("train", ["full", "lora", "sid_tokens"])
def test_a_stage_does_not_publish_what_its_last_step_broke(toy, tmp_path, monkeypatch, train):
    """The loss of the last step is finite, and the weights after it are not."""
    step = torch.optim.AdamW.step

    def breaking(self, *arguments, **options):
        found = step(self, *arguments, **options)
        with torch.no_grad():
            self.param_groups[0]["params"][0].view(-1)[0] = NAN
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", breaking)
    with pytest.raises(ValueError, match=r"weights to be saved in .* hold NaN or infinity, first: \['model\."):
        fine_tune(tmp_path / "sft", *toy, train=train, max_steps=1)
    assert not (tmp_path / "sft").exists()


# Scores: weights that broke after they were checked, and models that overflow


def break_row(model, vocabulary):
    with torch.no_grad():
        model.get_input_embeddings().weight[vocabulary.starts[-1] + 1] = NAN


def break_norm(model, vocabulary):
    with torch.no_grad():
        model.base_model.norm.weight[0] = INF


def overflow(model, vocabulary):
    """Finite weights whose products are not: a hidden state beyond float32."""
    with torch.no_grad():
        model.base_model.layers[1].mlp.down_proj.weight.fill_(3e38)


BROKEN = pytest.mark.parametrize("broken", [break_row, break_norm, overflow])


@BROKEN
@pytest.mark.parametrize("normalize_over", NORMALIZE_OVER)
def test_no_search_answers_with_nan(llm, trie, vocabulary, broken, normalize_over):
    broken(llm, vocabulary)
    with pytest.raises(ScoresNotFinite, match=r"the score NaN after the prompt of row \d.*float32"):
        tree_beam_search(llm, *prompts(), trie, vocabulary, 4, normalize_over)
    with pytest.raises(ScoresNotFinite, match="the score NaN"):
        SidDecoder(llm, trie, vocabulary, 4, normalize_over)(*prompts())
    for replacement in (True, False):
        with pytest.raises(ScoresNotFinite, match="the score NaN"):
            tree_sample(llm, *prompts(), trie, vocabulary, 11, replacement)


LOOPS = pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"do_sample": True}, {}], ids=["beams", "sampling", "greedy"]
)


def answer(model, trie, vocabulary, options, free_text=False, others=()):
    ids, mask = prompts()
    processor = SidLogitsProcessor(trie, vocabulary, ids.shape[1], free_text=free_text)
    config = sid_generation_config(vocabulary, **options)
    processors = LogitsProcessorList([processor, *others])
    return model.generate(input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=processors)


@LOOPS
@pytest.mark.parametrize("broken", [break_norm, overflow])
@pytest.mark.parametrize("free_text", [False, True])
def test_no_generate_loop_answers_with_nan(llm, trie, vocabulary, broken, options, free_text):
    broken(llm, vocabulary)
    with pytest.raises(ValueError, match=r"scores legal tokens of row \d with NaN or infinity: it overflows"):
        answer(llm, trie, vocabulary, options, free_text)


def test_beams_of_generate_end_at_one_broken_row(llm, trie, vocabulary):
    break_row(llm, vocabulary)
    with pytest.raises(ValueError, match=r"scores legal tokens of row \d with NaN or infinity: it overflows"):
        answer(llm, trie, vocabulary, {"num_beams": 3})


@BROKEN
@pytest.mark.parametrize("rank", ["sid", "items", "mixture"])
def test_no_ranking_has_a_score_of_nan(sid_table, broken, rank):
    model, sid_config = parts_of(sid_table)
    ranker = SidRanker(model, sid_table, sid_config, [4, 5], rank=rank)
    assert np.isfinite(ranker.rank(HISTORIES, 5).scores).any()
    if broken is break_row and rank == "items":  # that of a code, which the histories do not have
        return
    broken(model, sid_config.vocabulary)
    with pytest.raises(ScoresNotFinite, match=r"rankings are not finite, first nan in ranking \d of the batch"):
        ranker.rank(HISTORIES, 5)


def test_one_bad_history_of_a_batch_is_named(sid_table):
    """A single user whose prompt has the broken token; the others' answers would be right."""
    model, sid_config = parts_of(sid_table, tied=False)
    ranker = SidRanker(model, sid_table, sid_config, [4, 5], rank="items")
    with torch.no_grad():
        model.get_input_embeddings().weight[sid_config.vocabulary.starts[0] + 3] = NAN
    histories = [np.array(rows) for rows in ([0], [9, 1], [2])]  # only item 9 has code 3 first
    with pytest.raises(ScoresNotFinite, match=r"scores of 1 of 3 rankings are not finite, first nan in ranking 1"):
        ranker.rank(histories, 5)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_rankings_of_any_ranker_have_finite_scores(value):
    items, scores = np.array([[3, 1], [2, UNFILLED]]), np.array([[0.5, 0.1], [0.2, -INF]])
    Ranking(items, items, scores)
    broken = scores.copy()
    broken[0, 1] = value
    with pytest.raises(ScoresNotFinite, match="1 of 2 rankings are not finite"):
        Ranking(items, items, broken)
