"""extend, sft, evaluate and recommend: models, checkpoints and histories."""

from __future__ import annotations

from . import Case
from .damage import (
    column,
    cut,
    folder,
    inside,
    json_values,
    other_words,
    parquet,
    pickled,
    removed,
    replaced_by,
    resealed,
    retyped,
    tensors,
    text,
    without,
    without_manifest,
)

SPLIT = "split.parquet"
EXTEND = "extend --model @plain"
VOCABULARY = {"level_sizes": [4], "starts": [9], "block_sizes": [4], "eos_token_id": 1}
REQUESTS = "recommend --input @users.jsonl"
ASKED = "recommend --history item-1"
WHERE = f"{ASKED} --catalog @catalog --where"


def plain(*steps) -> dict:
    """A causal LM of somebody else, with safetensors and a tokenizer, damaged."""
    return {"plain": without_manifest(removed("llmrec.json"), *steps)}


def bound(*steps) -> dict:
    """A checkpoint without a manifest, of an earlier version whose llmrec.json binds no files, damaged."""
    return {"plain": without_manifest(json_values("llmrec.json", binding=None), *steps)}


CASES = {
    "turns with a tokenizer of another method": Case("alternate", (
        "sid' holds semantic IDs of method 'rq_kmeans'", "`llmrec tokenize --method etegrec`")),
    "turns without semantic IDs": Case("alternate --sid @absent", ("absent' is not a directory that llmrec finished",)),
    "turns without alignment that ask for it": Case("alternate --align-after 0.7", (
        "align_after is 0.7 and freeze_after 0.6: nothing would be aligned", "set sia_weight and psa_weight to 0")),
    "turns in parts of a batch": Case("alternate --micro-batch-size 4", (
        "unknown key 'micro_batch_size'", "a batch is one forward pass", "gradient_checkpointing saves memory")),
    "turns with tasks": Case("alternate --tasks title_to_sid", (
        "unknown key 'tasks'", "alternate trains on histories only", "`llmrec sft`")),
    "a refinement before training": Case("refine --model @base", (
        "base' was written by `llmrec extend`", "`llmrec sft`")),
    "a refinement of all items and more": Case("refine --max-churn 2", ("max_churn is 2", "1")),
    "a refinement on another catalogue": Case("refine --catalog @other", ("another catalogue", "`llmrec extend`")),
    "unknown model": Case("extend --model nobody/nothing", ("'nobody/nothing' cannot be loaded", "Hub id", "path")),
    "model that is nowhere": Case("extend --model @absent", ("absent' cannot be loaded",)),
    "model without weights": Case(EXTEND, ("plain' cannot be loaded", "safetensors"),
                                  plain(removed("model.safetensors"))),
    "model as a pickle": Case(EXTEND, ("plain' cannot be loaded", "saved as safetensors"), plain(pickled)),
    "model cut off": Case(EXTEND, ("plain' cannot be loaded", "safetensors"), plain(cut("model.safetensors"))),
    "model with too few weights": Case(EXTEND, ("plain' lacks 1 weights of the Qwen3ForCausalLM", "model.norm.weight"),
                                       plain(tensors("model.safetensors", without("model.norm.weight")))),
    "model of another size than its config": Case(EXTEND, ("plain' lacks 3 weights", "another shape"),
                                                  plain(json_values("config.json", intermediate_size=96))),
    "model with a garbled config": Case(EXTEND, ("plain' cannot be loaded",), plain(inside("config.json", "{"))),
    "model of an unknown architecture": Case(EXTEND, ("plain' cannot be loaded", "abacus"),
                                             plain(json_values("config.json", model_type="abacus"))),
    "model that brings its own code": Case(
        EXTEND, ("plain' cannot be loaded",),
        plain(json_values("config.json", model_type="own", auto_map={"AutoConfig": "own.Own"}))),
    "model without a tokenizer": Case(EXTEND, ("plain' has no tokenizer", "next to its weights",),
                                      plain(removed("tokenizer.json"), removed("tokenizer_config.json"))),
    "tokenizer without an end": Case(EXTEND, ("has no eos_token",),
                                     plain(inside("tokenizer_config.json",
                                                  '{"tokenizer_class": "PreTrainedTokenizerFast"}'))),
    "model that is extended already": Case("extend --model @base", ("is a checkpoint of llmrec, which keeps its tokens",
                                                                     "leave out ['catalog']")),
    "model of no causal LM": Case("extend --sid @sid --model @plain --out @out", (
        "plain' cannot be loaded by AutoModelForCausalLM",),
        plain(json_values("config.json", model_type="vit", architectures=None)), given=False),
    "title vectors without titles": Case("extend --sid @sid --model @plain --sid-init titles --out @out",
                                         ("sid_init 'titles' needs the titles; set catalog",), plain(), given=False),
    "micro without titles": Case("extend --sid @sid --model micro --out @out",
                                 ("model 'micro' takes its words from the titles", "set catalog"), given=False),
    "micro of another catalogue than the SIDs": Case("extend --catalog @other", (
        "sid' has semantic IDs of other items than", "other'", "`llmrec tokenize` on this catalogue")),
    "micro of an odd size": Case("extend --micro-hidden 33", ("micro_hidden is 33", "multiple of 32")),
    "micro of no size": Case("extend --micro-layers 0 --micro-words 3 --spare-codes -1",
                             ("micro_layers is 0", "micro_words is 3", "spare_codes is -1")),
    "SIDs of another catalogue": Case("sft --catalog @other", ("base' was extended for another catalogue than",
                                                                "`llmrec tokenize` and `llmrec extend`")),
    "table that is not the checkpoint's": Case(
        "sft", ("sid_table.parquet is not the table this checkpoint was trained on", "Restore it"),
        {"base": resealed(parquet("sid_table.parquet", lambda t: t.take([1, 0, *range(2, len(t))])))}),
    "tokenizer that is not the checkpoint's": Case("sft", ("does not belong to this checkpoint", "llmrec extend"),
                                                   {"base": resealed(other_words)}),
    "garbled llmrec.json": Case("sft", ("llmrec.json cannot be read", "again"), {"base": resealed(cut("llmrec.json"))}),
    "llmrec.json without its keys": Case("sft", ("llmrec.json cannot be read",),
                                         {"base": resealed(inside("llmrec.json", '{"schema_version": 1}'))}),
    "llmrec.json of another type": Case("sft", ("llmrec.json cannot be read",),
                                        {"base": resealed(inside("llmrec.json", "[1]"))}),
    "llmrec.json of a newer llmrec": Case("sft", ("llmrec.json cannot be read", "schema version 99"),
                                          {"base": resealed(json_values("llmrec.json", schema_version=99))}),
    "tokenizer.json that is garbled": Case(EXTEND, ("plain' cannot be loaded by AutoTokenizer",),
                                           plain(inside("tokenizer.json", "{"))),
    "tokenizer.json of nothing": Case(EXTEND, ("plain' cannot be loaded by AutoTokenizer",),
                                      plain(inside("tokenizer.json", "{}"))),
    "tokenizer_config.json that is garbled": Case(EXTEND, ("plain' cannot be loaded by AutoTokenizer",),
                                                  plain(inside("tokenizer_config.json", "{"))),
    "checkpoint without a manifest, damaged": Case(
        "recommend --model @plain --history item-1", ("plain' is not as it was saved: tokenizer_config.json is missing",
                                                     "llmrec.model.bind"),
        {"plain": without_manifest(removed("tokenizer_config.json"))}),
    "history length of no number": Case("recommend --model @plain --history item-1",
                                        ("llmrec.json cannot be read", "max_history"),
                                        bound(json_values("llmrec.json", max_history="many"))),
    "prompt of no text": Case("recommend --model @plain --history item-1", ("llmrec.json cannot be read", "prompt"),
                              bound(json_values("llmrec.json", prompt={"instruction": 3}))),
    "scores of no kind": Case("recommend --model @plain --history item-1",
                              ("llmrec.json cannot be read", "normalize_over"),
                              bound(json_values("llmrec.json", normalize_over="nothing"))),
    "vocabulary of texts": Case("recommend --model @plain --history item-1", ("llmrec.json cannot be read", "integer"),
                                bound(json_values("llmrec.json", vocabulary=VOCABULARY | {"level_sizes": ["a"]}))),
    "vocabulary of uneven lists": Case(
        "recommend --model @plain --history item-1", ("llmrec.json cannot be read", "one number per level"),
        bound(json_values("llmrec.json", vocabulary=VOCABULARY | {"level_sizes": [4, 4]}))),
    "SIDs of fractions": Case("extend", ("sid_table.parquet", "code_0"), {
        "sid": resealed(parquet("sid_table.parquet", retyped("code_0", "double")))}),
    "SIDs with a gap": Case("extend", ("sid_table.parquet", "code_0"), {
        "sid": resealed(parquet("sid_table.parquet", column("code_0", None)))}),
    "SIDs with a code beyond its level": Case("extend", ("sid_table.parquet", "has code 99 at level 0"), {
        "sid": resealed(parquet("sid_table.parquet", column("code_0", 99)))}),
    "SIDs without codes": Case("extend", ("sid_table.parquet' needs the columns item_id and code_0",), {
        "sid": resealed(parquet("sid_table.parquet", lambda t: t.select(["item_id"])))}),
    "model that was never extended": Case("sft --model @plain", ("plain' is not a directory that llmrec finished",),
                                          plain()),
    "batch that cannot be shared": Case("sft --batch-size 10 --micro-batch-size 4", ("batch_size 10 does not divide",
                                                                                    "micro_batch_size 4")),
    "patience without evaluations": Case("sft --patience 2", ("patience counts validations and needs eval_steps",)),
    "no row to evaluate on": Case("sft --eval-steps 1 --eval-examples 0", ("eval_examples is 0; at least 1",)),
    "validation without examples": Case("sft --eval-steps 1", ("catalog' has no 'valid' examples", "llmrec prepare"),
                                           {"catalog": resealed(parquet(SPLIT, column("split", "train")))}),
    "checkpoint of another catalogue, trained on": Case("sft --model @checkpoint --catalog @other", (
        "checkpoint' was extended for another catalogue than",)),
    "4-bit weights trained in full": Case("sft --quantization nf4", ("'nf4' needs train 'lora'",)),
    "history beyond the context": Case("sft --max-history 9999", ("9999 + 1 items take", "lower max_history")),
    "chat template that is not there": Case("sft --chat-template", ("chat_template is true but the tokenizer has none",
                                                                    "set it to false")),
    "instruction of nothing": Case("sft --instruction ''", ("The instruction gives no tokens",)),
    "weights shared out by FSDP": Case("sft --train lora", ("under FSDP train must be 'full'", "ddp.yaml"),
                                       env={"ACCELERATE_USE_FSDP": "true"}),
    "weights shared out by DeepSpeed": Case("sft", ("told to use DeepSpeed", "ddp.yaml"),
                                            env={"ACCELERATE_USE_DEEPSPEED": "true"}),
    "unknown schedule": Case("sft --scheduler cosinus", ("scheduler", "'cosinus'", "cosine")),
    "schedule that needs options of its own": Case("sft --scheduler warmup_stable_decay",
                                                   ("scheduler", "choose from linear, cosine")),
    "GPU that is not here": Case("alternate --device cuda", ("llmrec alternate: device is 'cuda'",), needs="no gpu"),
    "unknown tracker": Case("sft --report-to wandbb", ("report_to", "'wandbb'", "wandb")),
    "numbers that cannot train": Case(
        "sft --epochs 0 --learning-rate -1 --dropout 2 --label-smoothing 1.5 --lora-rank 0 --save-steps 0",
        ("epochs is 0.0; more than 0", "learning_rate is -1.0", "dropout is 2.0; at most 1",
         "label_smoothing is 1.5", "lora_rank is 0", "save_steps is 0")),
    "unknown task": Case("sft --tasks title_to_sids", ("unknown task 'title_to_sids'", "did you mean 'title_to_sid'")),
    "weights for other tasks": Case("sft --tasks title_to_sid --task-weights 1 -1", (
        "task_weights has 2 numbers for 1 tasks", "every weight must be above 0")),
    "task without its column": Case("sft --tasks category_to_sids", ("needs one of the columns category, genres, brand",
                                                                    "items.parquet has item_id"),
                                    {"catalog": resealed(parquet("items.parquet", lambda t: t.select(
                                        ["item_id", "title"])))}),
    "neither histories nor tasks": Case("sft --histories false", ("histories is false and tasks is empty",)),
    "nothing to train on": Case("sft", ("has no training interactions", "k_core"),
                                {"catalog": resealed(parquet(SPLIT, column("split", "test")))}),
    "unknown baseline": Case("evaluate --baselines popularty", ("unknown baseline 'popularty'",
                                                                "did you mean 'popularity'")),
    "no model and no baseline": Case("evaluate --catalog @catalog --out @out", ("nothing to evaluate; give --model",),
                                     given=False),
    "cut-off of zero": Case("evaluate --k 0", ("'k' is [0]", "positive")),
    "fewer beams than answers": Case("evaluate --k 10 --num-beams 3", ("'num_beams' is 3; 10 or more are needed",)),
    "no examples": Case("evaluate --max-examples 0", ("max_examples is 0; at least 1",)),
    "nothing to evaluate on": Case("evaluate", ("split.parquet has no 'test' examples", "Choose another --split"),
                                   {"catalog": resealed(parquet(SPLIT, column("split", "train")))}),
    "checkpoint of another catalogue": Case("evaluate --catalog @other",
                                            ("is of other items than the model knows", "Give the catalogue")),
    "checkpoint that is nowhere": Case("evaluate --model @absent", ("absent' is not a directory", "llmrec sft")),
    "checkpoint without SIDs": Case("evaluate --model @plain", ("sid_table.parquet' does not exist",),
                                    plain(removed("sid_table.parquet"))),
    "checkpoint as a pickle": Case("evaluate --model @plain", ("cannot be loaded", "saved as safetensors"),
                                   plain(replaced_by("checkpoint"), json_values("llmrec.json", binding=None), pickled)),
    "no history and no file": Case("recommend", ("either --history", "--input", "not both or neither")),
    "history and file": Case(REQUESTS + " --history item-1", ("not both or neither",), {"users.jsonl": text("")}),
    "empty history": Case("recommend --history", ("--history is empty", "at least one item")),
    "unknown item in a history": Case("recommend --history ghost",
                                      ('--history, "history" names items', "does not know: ['ghost']")),
    "nothing asked for": Case("recommend --history item-1 --k 0", ("k is 0; at least 1",)),
    "model of nobody": Case("recommend --model nobody/nothing --history item-1",
                            ("'nobody/nothing' is neither a checkpoint directory nor a model", "Hub")),
    "model that is no checkpoint": Case("recommend --model @mine --history item-1",
                                        ("mine' has no llmrec.json", "`llmrec extend` makes one"), {"mine": folder()}),
    "absent requests": Case(REQUESTS, ("users.jsonl' does not exist",)),
    "no request": Case(REQUESTS, ("users.jsonl'", "no request"), {"users.jsonl": text("\n")}),
    "requests that are not UTF-8": Case(REQUESTS, ("users.jsonl' is not UTF-8",), {"users.jsonl": text(b"\xff\n")}),
    "bad rows of requests": Case(
        REQUESTS, ("users.jsonl", "line 2: not JSON", 'line 3: needs {"history"', 'line 5: "history" must be a list'),
        {"users.jsonl": text('{"history": ["item-1"]}\n{"history"\n{"histry": []}\n\n{"history": [1.5]}\n')}),
    "request with a misspelled filter": Case(REQUESTS, ("users.jsonl", "line 1", 'has "exlude"; write "exclude"'), {
        "users.jsonl": text('{"history": ["item-1"], "exlude": ["item-2"]}\n')}),
    "answers in a file of no kind": Case(ASKED + " --out @answers.csv", ("answers.csv' ends in '.csv'", ".parquet")),
    "answers over the requests": Case(REQUESTS + " --out @users.jsonl", ("is the input", "choose another --out"), {
        "users.jsonl": text('{"history": ["item-1"]}\n')}),
    "users without a catalogue": Case("recommend --user user-1", ("--user needs --catalog",)),
    "users that the catalogue lacks": Case("recommend --user ghost --catalog @catalog", (
        "--user names 1 of 1 users", "['ghost']", "--unknown skip")),
    "another catalogue's titles": Case(f"{ASKED} --catalog @other", (
        "of other items than the model knows", "90% are needed")),
    "more new items than items": Case(f"{ASKED} --k 3 --min-new 4", ("min_new is 4, more than k = 3",)),
    "request with an unknown item": Case(REQUESTS, ("users.jsonl", "line 3", "'ghost'"), {
        "users.jsonl": text('{"history": ["item-1"]}\n\n{"history": ["item-2", "ghost"]}\n')}),
    "conditions without a catalogue": Case(f"{ASKED} --where 'price <= 20'", ("--where needs --catalog",)),
    "no condition": Case(f"{WHERE}", ("--where is empty", "such as 'price <= 20'")),
    "condition in three words": Case(f"{WHERE} title = x", (
        "condition 'title': its value is String, not true or false", "condition '=': it names no column",
        "condition 'x': unknown column", "write one SQL expression")),
    "condition on an unknown column": Case(f"""{WHERE} "titel = 'a'" """, ("unknown column 'titel'",
                                                                           "did you mean 'title'")),
    "condition of the old syntax": Case(f"{WHERE} 'title contains a'", (
        "condition 'title contains a': 'contains' is no SQL", "column ILIKE '%value%'")),
    "condition without quotes around text": Case(f"{WHERE} 'title = tea'", ("unknown column 'tea'",
                                                                            "text stands in single quotes")),
    "condition that compares words": Case(f"{WHERE} 'title <= 20'", (
        "condition 'title <= 20': cannot compare", 'title is String; text can be read as a number: try_cast("title"')),
    "condition against no number": Case(f"""{WHERE} "try_cast(title AS DOUBLE) < 'cheap'" """, ("cannot compare",)),
    "condition that reads a file": Case(f"""{WHERE} "title IN (SELECT a FROM read_csv('/etc/hosts'))" """, (
        "unknown column 'SELECT'",)),
    "conditions that nothing meets": Case(
        f"""{WHERE} "item_id IN ('item-1', 'item-2')" "title = 'zzz'" --model @absent""",
        ("none of the 30 items", "'item_id IN ('item-1', 'item-2')' is met by 2", "'title = 'zzz'' is met by 0")),
    "conditions that only unknown items meet": Case(
        f"""{ASKED} --catalog @catalog --where "item_id = 'ghost'" """,
        ("the model knows none of the items that meet --where",),
        {"catalog": resealed(parquet("items.parquet", column("item_id", "ghost", 0)),
                             parquet(SPLIT, lambda split: split.slice(0, 0)))}),
    "request that excludes an unknown item": Case(REQUESTS, ("users.jsonl", "line 1", "exclude", "'ghost'"), {
        "users.jsonl": text('{"history": ["item-1"], "exclude": ["ghost"]}\n')}),
}  # fmt: skip
