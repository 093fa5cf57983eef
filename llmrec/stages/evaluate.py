"""evaluate: rank the whole catalogue for every held-out example, with the LLM and the baselines, and report intervals.

Without a model the baselines are evaluated alone, and the first one is what the others are compared with.

Each system in each column is saved when it is done, so that an interrupted run continues with the next one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from llmrec.baselines.by_name import baseline_problems, check_baselines, named_baseline, rows_of
from llmrec.baselines.counted import BATCH
from llmrec.configs import EvaluateConfig
from llmrec.configs.evaluate import BASELINES
from llmrec.data.catalog import SPLITS, Catalog
from llmrec.data.examples import Examples
from llmrec.evaluation import tables
from llmrec.evaluation.bootstrap import RESAMPLES
from llmrec.evaluation.exact import EXACT, compare_with_beam, draw_examples
from llmrec.evaluation.learning import ITEMS_NDCG, NDCG, learning, points_of_epochs, points_of_log
from llmrec.evaluation.protocol import COLUMNS, Outcome, Rank, evaluate, per_batch, resumed
from llmrec.evaluation.ranking import default_num_beams
from llmrec.evaluation.runs import PER_USER, per_user
from llmrec.evaluation.summary import OURS, Outcomes, drawn_examples, sid_usage, summarise
from llmrec.evaluation.transitions import Transitions
from llmrec.reports.evaluation import render
from llmrec.runtime import processes
from llmrec.runtime.console import tell
from llmrec.runtime.manifest import MANIFEST, PARTIAL, JsonObject, content_hash, read_manifest, verify, write_json
from llmrec.runtime.stage_directory import SCRATCH, run_stage
from llmrec.sid.item_tokens import ItemTokens
from llmrec.sid.table import SidTable

METRICS = "metrics.json"
REPORT = "report.html"
TRAINING_LOG = "training_log.json"
CURVE = "curve.json"


def main(config: EvaluateConfig) -> JsonObject:
    """Evaluate a checkpoint, baselines or both.

    Returns:
        `out`, and the content of metrics.json.
    """
    check(config)
    catalog = Catalog.load(config.catalog)
    table = check_model(config.model, catalog) if config.model else None
    places, examples = sample(catalog, config.split, config.max_examples, config.seed)
    if config.model:
        check_catalog_of(config.model, catalog)
        if config.rank != "sid":
            check_item_rows(config.model)
    check_baselines(config.named, catalog)
    systems = [*([OURS] if config.model else []), *rows_of(config.named)]
    num_beams = config.num_beams or default_num_beams(catalog.num_items, config.k, table)

    def build(workdir: Path) -> JsonObject:
        outcomes: Outcomes = {}
        for system in systems:
            load = functools.cache(functools.partial(ranker, system, config, catalog, num_beams, workdir))
            for column in COLUMNS:
                part = workdir / SCRATCH / f"{system}-{column}.npz"
                outcomes[system, column] = outcome_of(part, load, examples, config, system, column)
        exact = None
        if table and config.exact_examples:
            exact = exact_ranking(outcomes, examples, catalog, table, config, workdir)
        if processes.is_main():
            metrics = measured(outcomes, examples, catalog, table, config, num_beams)
            metrics["learning"] = learning_curves(config, workdir)
            metrics["exact"] = exact
            head = head_of(config.model)
            if head is not None:
                metrics |= {"head": head, "num_beams": None}
            write_json(workdir / METRICS, metrics)
            pq.write_table(per_user(outcomes, places, examples, catalog), workdir / PER_USER)
            name = f"{config.model or 'baselines'} on {config.catalog}"
            page = render(metrics, training_log(config.model), name)
            (workdir / REPORT).write_text(page, encoding="utf-8")
        return {"num_examples": len(examples), "num_items": catalog.num_items}

    inputs = {"catalog": config.catalog} | ({"model": config.model} if config.model else {})
    kept = {row: name for row, name in rows_of(config.named).items() if name not in BASELINES}
    out = run_stage("evaluate", config, inputs | {f"baseline {row}": path for row, path in kept.items()}, build)
    return {"out": str(out), **json.loads((out / METRICS).read_text(encoding="utf-8"))}


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    tables.show(result)
    tell(f"{Path(result['out']) / REPORT} has the rest.")


def check(config: EvaluateConfig) -> None:
    """Refuse a config that cannot be evaluated, with every problem at once.

    Raises:
        ValueError: If the cut-offs, the beam width or the baselines are wrong.
    """
    problems = []
    if not config.k or min(config.k) < 1 or len(set(config.k)) < len(config.k):
        problems.append(f"'k' is {config.k}; one or more different positive integers are needed")
    elif config.num_beams is not None and config.num_beams < max(config.k):
        problems.append(f"'num_beams' is {config.num_beams}; {max(config.k)} or more are needed to fill k = {config.k}")
    problems += config.problems_without_model()
    problems += baseline_problems(config.named, (OURS, EXACT))
    if problems:
        raise ValueError("; ".join(problems))


def check_model(model: str, catalog: Catalog) -> SidTable:
    """Refuse a checkpoint whose SID table does not have the items of the catalogue in their order.

    The check comes before the weights are read.

    Returns:
        The SID table.

    Raises:
        ValueError: If `model` is no directory, or has other items than the catalogue, or another order of them.
    """
    if not Path(model).is_dir():
        if Path(f"{model}{PARTIAL}").is_dir():
            read_manifest(model)  # raises an error that says that it is unfinished
        raise ValueError(
            f"model '{model}' is not a directory; give the output of `llmrec sft` or `llmrec extend`, "
            "or download a Hub model first with `hf download`."
        )
    if (Path(model) / MANIFEST).is_file():
        verify(model)  # before any file of it is read
    table = SidTable.load(model)
    item_ids = table.item_ids
    if item_ids == catalog.item_ids:
        return table
    known = set(item_ids)
    missing = [item_id for item_id in catalog.item_ids if item_id not in known][:3]
    difference = f"first missing: {missing}" if missing else "in another order or with items that the catalogue lacks"
    raise ValueError(
        f"model '{model}' has SIDs for {len(item_ids)} items, catalogue '{catalog.source}' has {catalog.num_items} "
        f"({difference}). Evaluate on the catalogue that it was trained on, or run `llmrec tokenize`, `extend` and "
        "`sft` again on this one."
    )


def check_catalog_of(model: str, catalog: Catalog) -> None:
    """Refuse a checkpoint that was made on another split of the same items, which may have trained on test targets.

    Raises:
        ValueError: If it was, or the llmrec.json of the checkpoint is absent or does not belong to its SID table.
    """
    from llmrec.model.checkpoint import SidConfig  # transformers, whose import takes seconds

    _, _, details = SidConfig.load(model)
    if details.get("catalog_sha256") not in (None, content_hash(catalog.source)):
        raise ValueError(
            f"model '{model}' was made on another split of the items of '{catalog.source}', whose training examples "
            "may contain the targets that are tested here. Evaluate on the catalogue that it was made on, or run "
            "`llmrec embed`, `tokenize`, `extend` and `sft` on this one."
        )


def head_of(model: str | None) -> str | None:
    """Kind of the head that a checkpoint answers by; None without one, or without a model."""
    if model is None:
        return None
    from llmrec.model.checkpoint import SidConfig

    head = SidConfig.load(model)[0].vocabulary.head
    return None if head is None else head.kind


def check_item_rows(model: str) -> None:
    """Refuse a checkpoint without item rows, before its weights are read.

    Raises:
        ValueError: If it has none.
    """
    from llmrec.model.checkpoint import SidConfig

    ItemTokens.required(SidConfig.load(model)[0].vocabulary.items)


def sample(catalog: Catalog, split: str, max_examples: int | None, seed: int) -> tuple[np.ndarray, Examples]:
    """Draw the examples to evaluate, all of them if `max_examples` is None.

    Returns:
        (n,) ascending positions in the split, and the n examples.

    Raises:
        ValueError: If the split has no examples.
    """
    examples = catalog.examples(split)
    if len(examples) == 0:
        counts = {name: len(catalog.examples(name)) for name in SPLITS}
        raise ValueError(
            f"{catalog.source}/split.parquet has no '{split}' examples (examples per split: {counts}). "
            "Choose another --split, or run `llmrec prepare` with more users or a smaller k_core."
        )
    if max_examples is None:
        return np.arange(len(examples)), examples
    drawn = examples.sample(max_examples, seed)
    return drawn, examples.take(drawn)


def ranker(system: str, config: EvaluateConfig, catalog: Catalog, num_beams: int, workdir: Path) -> Rank:
    """Load the checkpoint or a baseline that was kept, or fit one, and save the learning curve of a baseline."""
    if system not in (OURS, EXACT):
        fitted = named_baseline(rows_of(config.named)[system], catalog, config.seed, config.device)
        if fitted.log and processes.is_main():
            (workdir / SCRATCH).mkdir(exist_ok=True)
            write_json(workdir / SCRATCH / f"{system}-{CURVE}", points_of_epochs(fitted.log))
        return per_batch(fitted.rank)
    from llmrec.recommender import Recommender  # torch and transformers, whose imports take seconds

    recommender = Recommender.from_pretrained(config.model or "", device=config.device, rank=config.rank)
    return functools.partial(recommender.ranker.rank_batches, num_beams=num_beams)


def outcome_of(
    part: Path, load: Callable[[], Rank], examples: Examples, config: EvaluateConfig, system: str, column: str
) -> Outcome:
    """Outcome of one system in one column, read from `part` if an earlier attempt finished it."""
    batch_size = {OURS: config.batch_size, EXACT: 1}.get(system, BATCH)

    def rank() -> Outcome:
        return evaluate(load(), examples, max(config.k), column, batch_size, f"{system}, {column}")

    return resumed(part, Outcome.load, rank, len(examples), f"evaluate: {system}, {column}")


def exact_ranking(
    outcomes: Outcomes, examples: Examples, catalog: Catalog, table: SidTable, config: EvaluateConfig, workdir: Path
) -> JsonObject:
    """Rank a sample exactly, one example at a time as memory grows with N squared, and compare with the beam."""
    drawn = draw_examples(len(examples), config.exact_examples, config.seed)
    load = functools.cache(functools.partial(ranker, EXACT, config, catalog, len(table.all_codes), workdir))
    result: JsonObject = {"num_examples": len(drawn), "num_beams": len(table.all_codes)}
    for column in COLUMNS:
        part = workdir / SCRATCH / f"{EXACT}-{column}.npz"
        outcome = outcome_of(part, load, examples.take(drawn), config, EXACT, column)
        result[column] = compare_with_beam(outcome, outcomes[OURS, column], drawn, config.k)
    return result


def measured(
    outcomes: Outcomes, examples: Examples, catalog: Catalog, table: SidTable | None, config: EvaluateConfig, beams: int
) -> JsonObject:
    """Content of metrics.json, except the learning curves and the exact ranking; without a model some is None."""
    return {
        "split": config.split,
        "num_beams": beams if config.model else None,
        "rank": config.rank if config.model else None,
        "bootstrap_samples": RESAMPLES,
        **summarise(
            outcomes,
            examples,
            config.k,
            catalog.training_counts,
            Transitions(catalog.train, catalog.num_items),
            config.seed,
        ),
        "sid_usage": sid_usage(table, outcomes) if table else None,
        "examples": drawn_examples(outcomes, examples, catalog, config.seed),
        "trained": trained(config.model) if config.model else None,
    }


def learning_curves(config: EvaluateConfig, workdir: Path) -> JsonObject:
    """Learning curves of ours and of each trained baseline, whose points `ranker` has saved."""
    validated = {"sid": NDCG, "items": ITEMS_NDCG}  # a mixture is not ranked during training
    points = {}
    if config.model:
        log = training_log(config.model) if config.rank in validated else []
        points[OURS] = points_of_log(log, validated.get(config.rank, NDCG))
    for system in rows_of(config.named):
        curve = workdir / SCRATCH / f"{system}-{CURVE}"
        if curve.is_file():
            points[system] = json.loads(curve.read_text(encoding="utf-8"))
    return {system: learning(of) for system, of in points.items()}


def trained(model: str) -> JsonObject | None:
    """The stage, config and input hashes that made the checkpoint; None for a copy without a manifest."""
    return read_manifest(model)["identity"] if (Path(model) / MANIFEST).is_file() else None


def training_log(model: str | None) -> list[JsonObject]:
    """The log of the training of a checkpoint, step by step; empty if it has none, or there is no model."""
    path = Path(model or "") / TRAINING_LOG
    return json.loads(path.read_text(encoding="utf-8")) if model and path.is_file() else []
