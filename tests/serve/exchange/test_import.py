"""Checkpoints of other projects: answered as a prompt written by hand asks, whatever the order of their tokens."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from llmrec.cli import run
from llmrec.data.catalog import Catalog
from llmrec.model.checkpoint import SidConfig, load_model, load_tokenizer
from llmrec.recommender import Recommender
from llmrec.serve.exchange.openonerec import BASE
from tests.support.foreign import ALPHABETICAL, INDEX, byte_tokenizer, llama_tokenizer, save_foreign, save_onerec

HISTORY = ["3", "1", "0"]
MINIONEREC = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request. \n\n### Instruction:\nCan you predict the next possible "
    "item that the user may expect?\n\n### User Input: \nCan you predict the next possible item the user may "
    "expect, given the following chronological interaction history: "
    "<a_2><b_0><c_12>, <a_10><b_3><c_1>, <a_2><b_0><c_7>\n\n### Response:\n"
)
LCREC = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nThe user has interacted with items <a_2><b_0><c_12>, <a_10><b_3><c_1>, <a_2><b_0><c_7> in "
    "chronological order. Can you predict the next possible item that the user may expect?\n\n### Response:"
)
ONEREC = (
    "<|im_start|>system\n你是一个智能推荐助手，能够根据用户的浏览历史预测用户可能感兴趣的下一个内容。<|im_end|>\n"
    "<|im_start|>user\n根据以下用户浏览记录，请预测用户接下来可能观看的内容：\n"
    "<|sid_begin|><s_a_0><s_b_1><s_c_1><|sid_end|><|sid_begin|><s_a_1><s_b_1><s_c_0><|sid_end|>"
    "<|sid_begin|><s_a_0><s_b_0><s_c_0><|sid_end|>/no_think<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n<|sid_begin|>"
)


@torch.no_grad()
def scores_by_hand(model, tokenizer, prompt: str, sids: dict[str, str]) -> dict[str, float]:
    """Log-probability of the text of every item behind the text of a prompt, over the whole vocabulary."""
    start, scores = tokenizer.encode(prompt), {}
    for item, sid in sids.items():
        answer = tokenizer.encode(sid, add_special_tokens=False)[-3:]
        logits = model(torch.tensor([[*start, *answer]])).logits[0, len(start) - 1 : -1]
        scores[item] = float(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())
    return scores


def assert_answers(out, expected: dict[str, float], history=HISTORY):
    item_ids, scores = Recommender.from_pretrained(out, device="cpu").recommend(
        [history], k=len(expected), exclude=None
    )
    assert dict(zip(item_ids[0], scores[0], strict=True)) == pytest.approx(expected, abs=1e-4)
    assert scores[0] == sorted(scores[0], reverse=True)


SIDS = {item: "".join(tokens) for item, tokens in INDEX.items()}


@pytest.mark.parametrize("order", ["alphabetical", "shuffled", "apart"])
@pytest.mark.parametrize("tied", [True, False])
def test_minionerec_answers_as_its_own_prompt_asks(tmp_path, import_, order, tied):
    tokens = list(ALPHABETICAL)
    if order != "alphabetical":
        random.Random(3).shuffle(tokens)
    if order == "apart":
        tokens.insert(2, "<other>")
    model, tokenizer = save_foreign(tmp_path / "foreign", byte_tokenizer(), tokens, tied=tied)
    out = import_("minionerec", tmp_path / "foreign")
    assert_answers(out, scores_by_hand(model, tokenizer, MINIONEREC, SIDS))
    # Text and SIDs have the logits that they had, under ids that may be others.
    ours, our_tokenizer = load_model(out), load_tokenizer(out)
    texts = [MINIONEREC, "plain text", "<a_100> and <c_12>" + "<other>" * (order == "apart")]
    for text in texts:
        ids, our_ids = tokenizer.encode(text), our_tokenizer.encode(text)
        names = tokenizer.convert_ids_to_tokens(ids)
        assert our_tokenizer.convert_ids_to_tokens(our_ids) == names
        with torch.no_grad():
            before, after = model(torch.tensor([ids])).logits[0], ours(torch.tensor([our_ids])).logits[0]
        place = our_tokenizer.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
        torch.testing.assert_close(after[:, place], before)
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert (counts["items"], counts["sids"]) == (6, 5)
    assert counts["moved_rows"] == {"alphabetical": 0, "shuffled": 8, "apart": 9}[order]


def test_lcrec_of_a_llama_answers_as_its_own_prompt_asks(tmp_path, import_):
    model, tokenizer = save_foreign(tmp_path / "foreign", llama_tokenizer(), ALPHABETICAL, "llama", tied=False)
    out = import_("lcrec", tmp_path / "foreign")
    assert tokenizer.encode(LCREC)[0] == 1  # <s>
    assert_answers(out, scores_by_hand(model, tokenizer, LCREC, SIDS))


def test_a_collision_level_is_a_level_like_the_others(tmp_path, import_):
    index = {item: [*tokens, f"<d_{int(item) // 4}>"] for item, tokens in INDEX.items()}
    save_foreign(tmp_path / "foreign", llama_tokenizer(), sorted({t for row in index.values() for t in row}), "llama")
    _, table, _ = SidConfig.load(import_("lcrec", tmp_path / "foreign", index))
    assert table.num_levels == 4 and len(np.unique(table.all_codes, axis=0)) == 6


# pid 30 is <s_a_0><s_b_1><s_c_1>, 10 and 11 share <s_a_1><s_b_1><s_c_0>.
SID2PID = {
    str(0 * BASE**2 + 1 * BASE + 1): [{"pid": 30, "count": 5, "count_after_downsample": 1}],
    str(1 * BASE**2 + 1 * BASE + 0): [{"pid": 10, "count": 2}, {"pid": 11, "count": 1}],
    "0": [{"pid": 20, "count": 9}],
}
ONEREC_SIDS = {"30": "<s_a_0><s_b_1><s_c_1>", "10": "<s_a_1><s_b_1><s_c_0>", "20": "<s_a_0><s_b_0><s_c_0>"}


def test_openonerec_answers_as_its_own_prompt_asks(tmp_path, import_):
    model, tokenizer = save_onerec(tmp_path / "foreign")
    (tmp_path / "test.json").write_text('{"u": [30, 10, 20, 30]}')
    out = import_("openonerec", tmp_path / "foreign", SID2PID, test=tmp_path / "test.json")
    assert Catalog.load(out / "catalog").histories("test") == [["30", "10", "20"]]
    expected = scores_by_hand(model, tokenizer, ONEREC, {**ONEREC_SIDS, "11": ONEREC_SIDS["10"]})
    assert_answers(out, expected, ["30", "11", "20"])
    run(["export", "--model", str(out), "--to", "flashrec", "--out", str(tmp_path / "flashrec")])
    assert json.loads((tmp_path / "flashrec" / "sid_catalog.json").read_text())["1,1,0"] == ["10", "11"]


def test_another_prompt_can_be_given(tmp_path, import_):
    model, tokenizer = save_foreign(tmp_path / "foreign", byte_tokenizer(), ALPHABETICAL)
    (tmp_path / "prompt.txt").write_text("The user has {history} and wants:\n", encoding="utf-8")
    out = import_("minionerec", tmp_path / "foreign", prompt=tmp_path / "prompt.txt")
    prompt = "The user has <a_2><b_0><c_12>, <a_10><b_3><c_1>, <a_2><b_0><c_7> and wants:\n"
    assert_answers(out, scores_by_hand(model, tokenizer, prompt, SIDS))
