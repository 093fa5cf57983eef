"""run: every stage on one's own files, from a log to recommendations, with sizes that the data choose.

`prepare` reads the files, and a plan of the other stages follows from the catalogue, with a sentence for each choice.
The LLM learns from the data and from two rankers, SASRec and ItemKNN, and is compared with them and others.

Each stage is the ordinary one on its own directory, so an interrupted run continues where it stopped and every
directory can be used afterwards. `llmrec quickstart` is this run on a known dataset.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path

from llmrec.configs import (
    EmbedConfig,
    EvaluateConfig,
    ExtendConfig,
    PrepareConfig,
    RunConfig,
    SftConfig,
    TeachConfig,
    TokenizeConfig,
)
from llmrec.configs.evaluate import TRAINED
from llmrec.data.catalog import Catalog
from llmrec.evaluation import tables
from llmrec.runtime.console import say, table, tell
from llmrec.runtime.manifest import JsonObject, read_manifest
from llmrec.stages import embed, evaluate, extend, prepare, sft, teach, tokenize
from llmrec.stages.plan import ITEM_KNN, SASREC, Plan, make_plan
from llmrec.stages.questions import answered

CATALOG, VIEWS, SID, BASE, CHECKPOINT, EVAL = "catalog", "views", "sid", "base", "checkpoint", "eval"
DIRECTORIES = (CATALOG, VIEWS, SID, SASREC, ITEM_KNN, BASE, CHECKPOINT, EVAL)
REQUEST = "request.jsonl"
PLAIN_ID = re.compile(r"\w[\w.:/+-]*", re.ASCII)  # an id that a shell takes as it is


def main(config: RunConfig) -> JsonObject:
    """Run all stages from data to evaluation.

    Returns:
        `out`, `model`, `choices` (a sentence for each), `seconds` per stage, `metrics` as in metrics.json, and `next`,
        a command that asks the model.

    Raises:
        ValueError: If the files cannot be read, are too small, or do not say what their columns are.
    """
    prepare.check(prepare_config(config))
    config = answered(config)
    say(f"llmrec run: everything is written to {config.out}/; after an interruption, the same command continues.")
    prepared = prepare.main(prepare_config(config))
    plan = make_plan(config, Catalog.load(prepared["out"]))
    return carry_out(config, prepared, plan)


def show(result: JsonObject, *sentences: str) -> None:
    """Print the result of `main`.

    Args:
        result: The result.
        sentences: Said before the last line, which is a command to go on with.
    """
    tables.show(result["metrics"])
    show_example(result["metrics"]["examples"][0])
    for sentence in (f"{Path(result['out']) / EVAL / evaluate.REPORT} has the rest.", *sentences):
        tell(sentence)
    tell(f"Next: {result['next']}")


def show_example(example: JsonObject) -> None:
    """Print the recommendations for a user beside the latest history."""
    history = [title or item_id for item_id, title in example["history"]]
    recommended = [title or item_id for item_id, title in example["recommended"]["seen_excluded"]]
    rows = [
        [history[i] if i < len(history) else "", i + 1, recommended[i] if i < len(recommended) else ""]
        for i in range(max(len(history), len(recommended)))
    ]
    target = example["target"][1] or example["target"][0]
    table(f"User {example['user_id']}, who went on to: {target}", ("latest history", "", "recommended"), rows)


def prepare_config(config: RunConfig) -> PrepareConfig:
    """Options of `prepare`."""
    options = {field.name: getattr(config, field.name) for field in dataclasses.fields(PrepareConfig)}
    return PrepareConfig(**{**options, "out": str(Path(config.out) / CATALOG)})


def carry_out(config: RunConfig, prepared: JsonObject, plan: Plan) -> JsonObject:
    """Say the plan, and run every stage after `prepare` on its own directory.

    Args:
        config: Options of the run.
        prepared: Result of `prepare`.
        plan: Settings of the other stages.

    Returns:
        The result of `main`.
    """
    choices = [_kept(config, prepared), *plan.reasons]
    for sentence in choices:
        say(sentence)
    out = {name: str(Path(config.out) / name) for name in DIRECTORIES}
    run_stages(config, plan, out)
    metrics = json.loads((Path(out[EVAL]) / evaluate.METRICS).read_text(encoding="utf-8"))
    return {
        "out": config.out,
        "model": plan.model,
        "choices": choices,
        "seconds": {name: read_manifest(path)["seconds"] for name, path in out.items()},
        "metrics": metrics,
        "next": next_command(metrics["examples"][0], plan, out),
    }


def _kept(config: RunConfig, counts: JsonObject) -> str:
    what = f"{counts['users']:,} users, {counts['items']:,} items and {counts['interactions']:,} interactions"
    k = counts["k_core"]
    suited = "the largest up to 5 that keeps half of the users with three interactions or more"
    why = "as asked for" if config.k_core is not None else suited
    return f"prepare: {what} are left by k-core {k}, {why}." if k else f"prepare: {what}; none was dropped (k-core 0)."


def run_stages(config: RunConfig, plan: Plan, out: dict[str, str]) -> None:
    """Run every stage after `prepare` on its own directory."""
    common: JsonObject = {"overwrite": config.overwrite, "seed": config.seed}
    on: JsonObject = {"catalog": out[CATALOG], **common}
    embed.main(
        EmbedConfig(out=out[VIEWS], views=plan.views, text_encoder="tfidf" if "text" in plan.views else None, **on)
    )
    tokenize.main(TokenizeConfig(out=out[SID], views=out[VIEWS], **plan.semantic_ids, **on))
    for ranker, options in plan.teachers.items():
        search = None if ranker in TRAINED else False  # for ItemKNN it took 32 s and gained .0006 valid ndcg@10
        teach.main(TeachConfig(out=out[ranker], ranker=ranker, options=options, search=search, **on))
    taught = [out[ranker] for ranker in plan.teachers]
    extend.main(ExtendConfig(out=out[BASE], sid=out[SID], model=plan.model, item_rows=plan.is_micro, **on))
    sft.main(SftConfig(out=out[CHECKPOINT], model=out[BASE], teacher=taught, **plan.fine_tuning, **on))
    baselines = [*plan.baselines, *taught]
    evaluate.main(EvaluateConfig(out=out[EVAL], model=out[CHECKPOINT], rank=plan.rank, baselines=baselines, **on))


def next_command(example: JsonObject, plan: Plan, out: dict[str, str]) -> str:
    """A command that asks the model for the recommendations of a user.

    Ids that a shell or the command line would read otherwise stand in a file of requests.
    """
    history = [item_id for item_id, _ in example["history"]]
    command = ["llmrec", "recommend", "--model", out[CHECKPOINT], "--catalog", out[CATALOG], "--rank", plan.rank]
    if all(PLAIN_ID.fullmatch(item_id) for item_id in history):
        return shlex.join([*command, "--history", *history])
    path = Path(out[EVAL]).parent / REQUEST
    path.write_text(json.dumps({"history": history}) + "\n", encoding="utf-8")
    return shlex.join([*command, "--input", str(path)])
