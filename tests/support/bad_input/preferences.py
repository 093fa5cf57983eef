"""dpo: preferences, where it starts from, and its options."""

from __future__ import annotations

import json

from . import Case
from .damage import folder, removed, text, without_manifest

GIVEN_FILE = "dpo --preferences @pairs.jsonl"
PAIR = {"history": ["item-1"], "target": "item-2", "negatives": ["item-3"]}


def pairs(**changes: object) -> dict:
    """A preference file of eight rows, all with the changes."""
    return {"pairs.jsonl": text("\n".join([json.dumps({**PAIR, **changes})] * 8))}


CASES = {
    "unknown target": Case(GIVEN_FILE, ("pairs.jsonl'", "8 item ids are not in", "'nothing'"), pairs(target="nothing")),
    "unknown negatives": Case(GIVEN_FILE, ("pairs.jsonl'", "first: ['x'"), pairs(negatives=["x", "item-3"])),
    "target among the negatives": Case(
        GIVEN_FILE, ("pairs.jsonl'", "the target, or an item with its semantic ID, among the negatives (8, first"),
        pairs(negatives=["item-3", "item-2"])),
    "no negatives": Case(GIVEN_FILE, ("no negatives (8, first: [0, 1, 2])",), pairs(negatives=[])),
    "preferences that are nowhere": Case(GIVEN_FILE, ("pairs.jsonl' does not exist", "parquet or JSONL")),
    "preferences of other columns": Case(GIVEN_FILE, ("pairs.jsonl' lacks the columns ['history', 'target'",),
                                         {"pairs.jsonl": text('{"chosen": "item-1"}')}),
    "preferences with one oracle for all": Case(GIVEN_FILE, ("oracle is of type double, but lists numbers",),
                                                pairs(oracle=0.7)),
    "preferences that are no JSON": Case(GIVEN_FILE, ("pairs.jsonl' is not a file",), {"pairs.jsonl": text("hello")}),
    "oracle for a softmax": Case(GIVEN_FILE, ("pairs.jsonl' has an oracle column", "set loss to dpo"),
                                 pairs(oracle=[0.7])),
    "start that was not fine-tuned": Case("dpo --model @base", ("was written by `llmrec extend`", "llmrec sft")),
    "start that is an adapter": Case("dpo --model @adapter", ("adapter' is an adapter, not a merged model",),
                                     {"adapter": folder("adapter_config.json")}),
    "start without its manifest": Case("dpo --model @checkpoint", ("checkpoint",),
                                       {"checkpoint": without_manifest(removed("llmrec.json"))}),
    "start of another catalogue": Case("dpo --catalog @other", ("was extended for another catalogue",)),
    "unknown source": Case("dpo --negative-sources beams", ("unknown negative source 'beams'", "did you mean 'beam'")),
    "source twice": Case("dpo --negative-sources beam beam", ("name at least one, and each once",)),
    "shares of the sources": Case("dpo --negative-weights 0 1", ("negative_weights", "removed: every source gives")),
    "smoothing of all pairs": Case("dpo --label-smoothing 0.1", ("label_smoothing", "removed:", "oracle")),
    "4-bit weights": Case("dpo --quantization nf4", ("quantization", "removed:", "gradient_checkpointing")),
    "too few prompts": Case("dpo --batch-size 1000 --micro-batch-size 8",
                            ("prompts to train on, fewer than batch_size 1000",)),
    "batch that cannot be shared out": Case("dpo --batch-size 10 --micro-batch-size 4", ("batch_size 10 does not",)),
}  # fmt: skip
