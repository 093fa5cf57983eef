"""`extend --item-rows` and what follows it, on the architectures that users bring, tied and untied."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList

from llmrec.cli import main
from llmrec.configs import DpoConfig
from llmrec.decoding.generate import sid_generation_config
from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.checkpoint import SidConfig
from llmrec.recommender import Recommender
from llmrec.runtime import device
from llmrec.sid.table import SidTable
from llmrec.stages import dpo, extend
from tests.conftest import CODES
from tests.stages.test_evaluate_overlap import check_places
from tests.support.extended import extended, fine_tune, losses, same_weights, write_llm, write_sid
from tests.support.reinforced import reinforce
from tests.training.test_checkpoints import OPTIONS, start_and_kill

HISTORY = ["item-3", "item-6", "item-1"]


@pytest.fixture(params=["llama", "qwen2", "qwen3", "gemma3_text"])
def architecture(request) -> str:
    return request.param


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request) -> bool:
    return request.param


def embedding_of(directory) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(directory).get_input_embeddings().weight.detach()


def generated(directory) -> list[str]:
    """SIDs that plain transformers generates for HISTORY under the processor, best first."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    sid_config, table, _ = SidConfig.load(directory)
    prompt, mask = sid_config.encode(table.find_items({"history": HISTORY}), table, tokenizer)
    assert prompt[0, -1] == sid_config.vocabulary.items.start + 1
    processor = SidLogitsProcessor(SidTrie(table), sid_config.vocabulary, prompt.shape[1], sid_config.normalize_over)
    config = sid_generation_config(sid_config.vocabulary, num_beams=11, num_return_sequences=11)
    output = model.generate(
        prompt, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([processor])
    )
    texts = tokenizer.batch_decode(output.sequences[:, prompt.shape[1] :], skip_special_tokens=True)
    return ["".join(text.split()) for text in texts]


def recommended(directory) -> list[str]:
    """SIDs of the items that the Recommender returns for HISTORY, best first; once each."""
    recommender = Recommender.from_pretrained(directory, device="cpu")
    item_ids = recommender.recommend([HISTORY], k=12, exclude=None)[0][0]
    rows = recommender.table.find_items({"answer": item_ids})[0]
    text = recommender.sid_config.vocabulary.text
    return list(dict.fromkeys(text(recommender.table.codes([row])) for row in rows))


def test_rows_start_distinct_and_the_old_ones_stay(tmp_path, sid_table, architecture, tied):
    base = extended(tmp_path, sid_table, architecture, tied, item_rows=True)
    vocabulary = SidConfig.load(base)[0].vocabulary
    old, new = embedding_of(tmp_path / "llm"), embedding_of(base)
    assert torch.equal(new[: vocabulary.starts[0]], old[: vocabulary.starts[0]])
    rows = new[vocabulary.added_range.start : vocabulary.added_range.stop]
    assert len(rows) == 12 + 1 + 12
    cosine = cosine_similarity(rows[:, None], rows[None], dim=-1) - torch.eye(len(rows))
    assert cosine.max() < 0.9


@pytest.mark.parametrize("train", ["lora", "full"])
def test_what_sft_leaves_generates_and_recommends_the_same(tmp_path, toy, sid_table, architecture, tied, train):
    base, out = extended(tmp_path, sid_table, architecture, tied, item_rows=True), tmp_path / "sft"
    fine_tune(out, toy[0], base, train=train)
    vocabulary = SidConfig.load(out)[0].vocabulary
    assert vocabulary == SidConfig.load(base)[0].vocabulary
    before, after = embedding_of(base), embedding_of(out)
    is_equal = torch.isclose(before, after, atol=1e-7).all(dim=1)
    assert not is_equal[vocabulary.items.block].any(), "an item row that did not train"
    if train == "lora":
        assert is_equal[: vocabulary.starts[0]].all() and is_equal[vocabulary.added_range.stop :].all()
    sids = recommended(out)
    assert generated(out) == sids and len(sids) == 11  # two of the twelve items share one


def test_without_the_option_nothing_changes(tmp_path, sid_table, toy):
    """Law 13, down to the bytes of llmrec.json."""
    base = extended(tmp_path, sid_table, item_rows=False)
    assert same_weights(base, toy[1])
    assert (base / "llmrec.json").read_bytes() == (toy[1] / "llmrec.json").read_bytes()


def test_the_command_says_what_was_added(capsys, tmp_path, sid_table):
    sid, llm, out = write_sid(tmp_path / "sid", sid_table), write_llm(tmp_path / "llm"), tmp_path / "base"
    flags = ["--sid", str(sid), "--model", str(llm), "--out", str(out), "--item-rows"]
    assert main(["extend", *flags]) == 0
    assert "extend: 12 SID tokens, 12 item tokens" in capsys.readouterr().out
    items = json.loads((out / "llmrec.json").read_text())["vocabulary"]["items"]
    assert items == {"start": AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("<|item_0|>"), "num_items": 12,
                     "template": "<|item_{row}|>"}  # fmt: skip


@pytest.fixture(scope="module")
def tuned_items(toy, tmp_path_factory):
    """Checkpoint of the sft stage with item rows; only read."""
    root = tmp_path_factory.mktemp("items")
    table = SidTable([f"item-{row}" for row in range(12)], CODES, level_sizes=[4, 4, 4])
    base = extended(root, table, item_rows=True)
    fine_tune(root / "sft", toy[0], base, train="full", max_steps=30, learning_rate=5e-3, batch_size=24, max_history=10)
    return root / "sft"


def run_json(capsys, *arguments) -> dict:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_evaluate_and_recommend_take_the_ranking(capsys, tmp_path, toy, tuned_items):
    shown = {}
    for rank in ("sid", "items", "mixture"):
        flags = ["--model", tuned_items, "--rank", rank, "--device", "cpu"]
        metrics = run_json(
            capsys,
            "evaluate",
            *flags,
            "--catalog",
            toy[0],
            "--out",
            tmp_path / rank,
            "--baselines",
            "popularity",
            "--k",
            "3",
        )
        assert metrics["rank"] == rank
        answer = run_json(capsys, "recommend", *flags, "--history", "item-3", "item-6", "--k", "12")["users"][0]
        shown[rank] = {item["item_id"]: item["score"] for item in answer["items"]}
        assert len(shown[rank]) == 10
        page = (tmp_path / rank / "report.html").read_text()
        assert ("by item rows" in page, "beams and item rows" in page) == (rank == "items", rank == "mixture")
    recommender = Recommender.from_pretrained(tuned_items, device="cpu", rank="mixture")
    assert recommender.sid_config.mixture_weight == 0.5
    for item_id, score in shown["mixture"].items():
        expected = math.log(0.5 * math.exp(shown["sid"][item_id]) + 0.5 * math.exp(shown["items"][item_id]))
        assert score == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("rank", ["items", "mixture"])
def test_a_later_catalogue_is_evaluated_in_every_ranking(capsys, tmp_path, tuned_items, rank):
    check_places(capsys, tuned_items, tmp_path, rank=rank)


def test_the_mixture_weight_is_saved(tmp_path, tuned_items):
    recommender = Recommender.from_pretrained(tuned_items, device="cpu")
    recommender.sid_config = dataclasses.replace(recommender.sid_config, mixture_weight=0.7)
    recommender.save_pretrained(tmp_path / "saved")
    assert SidConfig.load(tmp_path / "saved")[0] == recommender.sid_config


@pytest.mark.parametrize("stage", ["evaluate", "recommend"])
def test_a_ranking_that_needs_item_rows_is_refused_before_the_weights_are_read(capsys, tmp_path, toy, tuned, stage):
    own = {"evaluate": ["--catalog", toy[0], "--out", str(tmp_path / "out")], "recommend": ["--history", "item-3"]}
    plain = tmp_path / "plain"
    shutil.copytree(tuned, plain, ignore=shutil.ignore_patterns("model.safetensors", "manifest.json"))
    values = json.loads((plain / "llmrec.json").read_text())
    (plain / "llmrec.json").write_text(json.dumps({**values, "binding": None}))  # which would miss the weights
    assert main([stage, "--model", str(plain), "--rank", "items", *own[stage]]) == 2
    assert "has no item rows, so it ranks by 'sid' only; `llmrec extend --item-rows`" in capsys.readouterr().err


def test_a_wrong_mixture_weight_is_refused(tuned_items, tmp_path):
    shutil.copytree(tuned_items, tmp_path / "copy")
    values = json.loads((tmp_path / "copy" / "llmrec.json").read_text())
    (tmp_path / "copy" / "llmrec.json").write_text(json.dumps({**values, "mixture_weight": 1.5}))
    with pytest.raises(ValueError, match=r"mixture_weight is 1\.5; a number from 0 to 1 is needed"):
        SidConfig.load(tmp_path / "copy")


def test_items_and_mixtures_learn_what_comes_next(capsys, tmp_path, toy, tuned_items):
    """In the toy catalogue the next item follows from the last one."""
    for rank in ("sid", "items", "mixture"):
        flags = ["--model", tuned_items, "--rank", rank, "--device", "cpu", "--baselines", "popularity", "--k", "3"]
        metrics = run_json(capsys, "evaluate", *flags, "--catalog", toy[0], "--out", tmp_path / rank)
        assert metrics["systems"]["ours"]["plain"]["ndcg@3"] > 0.8, rank


def test_the_mixture_weight_is_chosen_on_valid_and_saved(capsys, tmp_path, toy, tuned_items):
    options = {"train": "lora", "max_steps": 4, "eval_steps": 2, "learning_rate": 1e-4}
    counts = fine_tune(tmp_path / "sft", toy[0], tuned_items, **options)
    assert "sft: mixture weight" in capsys.readouterr().err
    by_rank = counts["valid_ndcg@10_by_rank"]
    assert by_rank["mixture"] >= max(by_rank["sid"], by_rank["items"]) > 0.5
    assert SidConfig.load(tmp_path / "sft")[0].mixture_weight == counts["mixture_weight"]
    assert (20 * counts["mixture_weight"]) == pytest.approx(round(20 * counts["mixture_weight"]))
    measured = {
        rank: [
            run_json(
                capsys, "evaluate", "--model", tmp_path / "sft", "--rank", rank, "--split", "valid", "--k", "10",
                "--catalog", toy[0], "--out", tmp_path / rank, "--baselines", "popularity", "--device", "cpu",
            )["systems"]["ours"][column]["ndcg@10"]
            for column in ("plain", "seen_excluded")
        ]
        for rank in ("sid", "items")
    }  # fmt: skip
    assert {rank: sum(values) / 2 for rank, values in measured.items()} == pytest.approx(
        {rank: by_rank[rank] for rank in measured}, abs=1e-6
    )


def test_without_item_rows_the_weight_of_their_loss_changes_nothing(tmp_path, toy):
    for name, weight in (("one", 1.0), ("zero", 0.0)):
        fine_tune(tmp_path / name, *toy, item_weight=weight)
    assert same_weights(tmp_path / "one", tmp_path / "zero")


def test_item_tokens_do_not_compete_with_codes(tmp_path, toy, tuned_items):
    with pytest.raises(ValueError, match=r"has item tokens, which are never written .* set normalize_over to level"):
        fine_tune(tmp_path / "sft", toy[0], tuned_items, normalize_over="vocabulary")


@pytest.mark.parametrize("train", ["lora", "full"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(monkeypatch, tmp_path, toy, tuned_items, train):
    ours = {"train": train, "eval_steps": 2, "item_dropout": 0.3, "item_decay": 0.5}
    fine_tune(tmp_path / "whole", toy[0], tuned_items, **OPTIONS, **ours)
    start_and_kill(monkeypatch, tmp_path / "sft", (toy[0], tuned_items), 4, **ours)
    fine_tune(tmp_path / "sft", toy[0], tuned_items, **OPTIONS, **ours)
    assert losses(tmp_path / "sft") == losses(tmp_path / "whole")
    assert same_weights(tmp_path / "sft", tmp_path / "whole")
    assert SidConfig.load(tmp_path / "sft")[0] == SidConfig.load(tmp_path / "whole")[0]


@pytest.mark.parametrize("stage", ["dpo", "grpo"])
def test_law_5_preference_stages_start_from_the_checkpoint_and_keep_its_item_rows(tmp_path, toy, tuned_items, stage):
    """Prompts show item tokens, answers are SIDs: the first loss of DPO is ln 2, and nothing of the rows moves."""
    out = tmp_path / stage
    if stage == "dpo":
        options = {
            "negatives": 1,
            "max_steps": 2,
            "batch_size": 6,
            "lora_rank": 4,
            "logging_steps": 1,
            "warmup_steps": 0,
        }
        dpo.main(DpoConfig(out=str(out), catalog=toy[0], model=str(tuned_items), device="cpu", **options))
        assert losses(out)[0] == pytest.approx(math.log(2), abs=1e-5)
    else:
        reinforce(out, toy[0], tuned_items)
    assert SidConfig.load(out)[0].vocabulary == SidConfig.load(tuned_items)[0].vocabulary
    assert torch.equal(embedding_of(out), embedding_of(tuned_items))
    sids = recommended(out)
    assert generated(out) == sids and len(sids) == 11


@pytest.mark.parametrize(("is_tied", "needed"), [(True, 12 * 32 * 4), (False, 12 * 32 * 4 * 2)])
def test_rows_that_do_not_fit_are_refused_before_the_table_is_read(
    capsys, tmp_path, sid_table, monkeypatch, is_tied, needed
):
    llm = write_llm(tmp_path / "llm", tied=is_tied)
    sid = write_sid(tmp_path / "sid", sid_table)
    command = ["extend", "--sid", str(sid), "--model", str(llm), "--item-rows", "--out", str(tmp_path / "base")]
    monkeypatch.setattr(device, "memory_of", lambda _: needed - 1)
    monkeypatch.setattr(SidTable, "load", None)
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "for 12 items" in said and f"({needed:,} bytes) of memory" in said and "Leave item_rows out" in said
    monkeypatch.undo()
    for module in (device, extend):
        monkeypatch.setattr(module, "memory_of", lambda _: needed)
    assert main(command) == 0
    assert f"({3 * needed:,} bytes) in training with AdamW" in capsys.readouterr().err
