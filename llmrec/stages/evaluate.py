"""evaluate: rank the whole catalogue for every held-out row, ours and the baselines, and say how sure the numbers are.

Each system in each column is saved when it is done, so that an interrupted run continues with the next one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.baselines.by_name import BASELINES, baseline
from llmrec.baselines.checks import check_trainable
from llmrec.baselines.counted import BATCH
from llmrec.configs import EvaluateConfig
from llmrec.configs.evaluate import TRAINED
from llmrec.configs.options import suggestion
from llmrec.data import columns
from llmrec.data.catalog import SPLITS, Catalog
from llmrec.data.examples import Examples
from llmrec.evaluation.exact import EXACT, beside, draw_rows
from llmrec.evaluation.learning import learning, points_of_epochs, points_of_log
from llmrec.evaluation.protocol import COLUMNS, Outcome, Rank, evaluate, per_batch
from llmrec.evaluation.ranking import default_num_beams
from llmrec.evaluation.report import OURS, Outcomes, show, sid_usage, summarise
from llmrec.reports.evaluation import render
from llmrec.runtime import processes
from llmrec.runtime.console import say
from llmrec.runtime.manifest import MANIFEST, PARTIAL, JsonObject, content_hash, read_manifest, write_json
from llmrec.runtime.stage_directory import SCRATCH, run_stage
from llmrec.sid.table import SidTable

METRICS = "metrics.json"
PER_USER = "per_user.parquet"
REPORT = "report.html"
TRAINING_LOG = "training_log.json"
CURVE = "curve.json"


def main(config: EvaluateConfig) -> JsonObject:
    """Evaluate a checkpoint beside the baselines and print the comparison.

    Returns:
        The content of metrics.json.
    """
    check(config)
    catalog = Catalog.load(config.catalog)
    table = check_model(config.model, catalog)
    indices, rows = sample(catalog, config)
    check_training_rows(config.model, catalog)
    for name in set(config.baselines).intersection(TRAINED):
        check_trainable(name, catalog)
    num_beams = config.num_beams or default_num_beams(catalog.num_items, config.k)

    def build(workdir: Path) -> JsonObject:
        outcomes: Outcomes = {}
        for system in (OURS, *config.baselines):
            load = functools.cache(functools.partial(ranker, system, config, catalog, num_beams, workdir))
            for column in COLUMNS:
                part = workdir / SCRATCH / f"{system}-{column}.npz"
                outcomes[system, column] = resumed(part, load, rows, config, system, column)
        exact = exhaustive(outcomes, rows, catalog, table, config, workdir) if config.exact_rows else None
        if processes.is_main():
            metrics = measured(outcomes, rows, catalog, table, config, num_beams)
            metrics["learning"] = learned(config, workdir)
            metrics["exact"] = exact
            write_json(workdir / METRICS, metrics)
            pq.write_table(per_user(outcomes, indices, rows, catalog), workdir / PER_USER)
            page = render(metrics, training_log(config.model), f"{config.model} on {config.catalog}")
            (workdir / REPORT).write_text(page, encoding="utf-8")
        return {"num_rows": len(rows), "num_items": catalog.num_items}

    out = run_stage("evaluate", config, {"catalog": config.catalog, "model": config.model}, build)
    metrics = json.loads((out / METRICS).read_text(encoding="utf-8"))
    show(metrics)
    return metrics


def check(config: EvaluateConfig) -> None:
    """Refuse a config that cannot be evaluated, with every problem at once.

    Raises:
        ValueError: If cut-offs, beams or baselines are at fault.
    """
    problems = []
    if not config.k or min(config.k) < 1 or len(set(config.k)) < len(config.k):
        problems.append(f"'k' is {config.k}; one or more different positive integers are needed")
    elif config.num_beams is not None and config.num_beams < max(config.k):
        problems.append(f"'num_beams' is {config.num_beams}; {max(config.k)} or more are needed to fill k = {config.k}")
    for name in config.baselines:
        if name not in BASELINES:
            problems.append(f"unknown baseline '{name}'; {suggestion(name, BASELINES)}")
    sized = config.sasrec_hidden is not None or config.sasrec_layers is not None
    if sized and "sasrec" not in config.baselines:
        problems.append(f"sasrec_hidden or sasrec_layers is given, but baselines is {config.baselines}; add sasrec")
    if (config.sasrec_hidden or 0) % 2:
        problems.append(f"sasrec_hidden is {config.sasrec_hidden}; its two heads need an even number")
    if len(set(config.baselines)) < len(config.baselines):
        problems.append(f"'baselines' repeats a name: {config.baselines}")
    if problems:
        raise ValueError("; ".join(problems))


def check_model(model: str, catalog: Catalog) -> SidTable:
    """Refuse a checkpoint whose SID table is not in the order of the catalogue, before its weights are read.

    Returns:
        The table.

    Raises:
        ValueError: If it is no directory, or has other items than the catalogue, or another order of them.
    """
    if not Path(model).is_dir():
        if Path(f"{model}{PARTIAL}").is_dir():
            read_manifest(model)  # says that it is unfinished
        raise ValueError(
            f"model '{model}' is not a directory; give the output of `llmrec sft` or `llmrec extend`, "
            "or download a Hub model first with `hf download`."
        )
    table = SidTable.load(model)
    item_ids = table.item_ids
    if item_ids == catalog.item_ids:
        return table
    known = set(item_ids)
    missing = [item_id for item_id in catalog.item_ids if item_id not in known][:3]
    found = f"first missing: {missing}" if missing else "in another order or with items that the catalogue lacks"
    raise ValueError(
        f"model '{model}' has SIDs for {len(item_ids)} items, catalogue '{catalog.source}' has {catalog.num_items} "
        f"({found}). Evaluate on the catalogue that it was trained on, or run `llmrec tokenize`, `extend` and `sft` "
        "again on this one."
    )


def check_training_rows(model: str, catalog: Catalog) -> None:
    """Refuse a checkpoint whose weights or SIDs learned from another split of the same items: it may hold test targets.

    Raises:
        ValueError: If it did, or the checkpoint's llmrec.json is absent or not the one of its SID table.
    """
    from llmrec.model.checkpoint import (
        SidConfig,  # transformers, whose seconds no config that is refused above should cost
    )

    _, _, details = SidConfig.load(model)
    if details.get("catalog_sha256") not in (None, content_hash(catalog.source)):
        raise ValueError(
            f"model '{model}' was made on another split of the items of '{catalog.source}', whose training rows may "
            "hold what is tested here. Evaluate on the catalogue that it was made on, or run `llmrec embed`, "
            "`tokenize`, `extend` and `sft` on this one."
        )


def sample(catalog: Catalog, config: EvaluateConfig) -> tuple[np.ndarray, Examples]:
    """The rows to evaluate and their positions in the split.

    Returns:
        (n,) ascending positions, and the n rows at them.

    Raises:
        ValueError: If the split has no rows.
    """
    rows = catalog.examples(config.split)
    if len(rows) == 0:
        counts = {split: len(catalog.examples(split)) for split in SPLITS}
        raise ValueError(
            f"{catalog.source}/split.parquet has no '{config.split}' rows (rows per split: {counts}). "
            "Choose another --split, or run `llmrec prepare` with more users or a smaller k_core."
        )
    if config.max_rows is None:
        return np.arange(len(rows)), rows
    drawn = rows.sample(config.max_rows, config.seed)
    return drawn, rows.take(drawn)


def ranker(system: str, config: EvaluateConfig, catalog: Catalog, num_beams: int, workdir: Path) -> Rank:
    """How a system ranks; loads the checkpoint, or fits the baseline on the training rows, and keeps its log."""
    if system not in (OURS, EXACT):
        size = {"hidden": config.sasrec_hidden, "layers": config.sasrec_layers} if system == "sasrec" else {}
        given = {name: value for name, value in size.items() if value is not None}
        fitted = baseline(system, catalog, config.seed, config.device, **given)
        if system in TRAINED and processes.is_main():
            (workdir / SCRATCH).mkdir(exist_ok=True)
            write_json(workdir / SCRATCH / f"{system}-{CURVE}", points_of_epochs(fitted.log))
        return per_batch(fitted.rank)
    from llmrec.recommender import Recommender  # torch and transformers, whose seconds no refused config should cost

    recommender = Recommender.from_pretrained(
        config.model, device=config.device, precision=config.precision, compiled=config.compile
    )
    return functools.partial(recommender.ranker.rank_batches, num_beams=num_beams)


def resumed(
    part: Path, load: Callable[[], Rank], rows: Examples, config: EvaluateConfig, system: str, column: str
) -> Outcome:
    """Outcome of one system in one column, from an earlier attempt where that finished it."""
    if part.is_file():
        return Outcome.load(part)
    batch_size = {OURS: config.batch_size, EXACT: 1}.get(system, BATCH)
    outcome = evaluate(load(), rows, max(config.k), column, batch_size, f"{system}, {column}")
    speed = len(rows) / max(outcome.seconds, 1e-9)
    say(f"evaluate: {system}, {column}: {len(rows)} rows in {outcome.seconds:.1f} s, {speed:,.1f} rows/s")
    if processes.is_main():
        outcome.save(part)
    return outcome


def exhaustive(
    outcomes: Outcomes, rows: Examples, catalog: Catalog, table: SidTable, config: EvaluateConfig, workdir: Path
) -> JsonObject:
    """The exact ranking of a sample of the rows beside the beam's; row by row, as memory grows with N squared."""
    drawn = draw_rows(len(rows), config.exact_rows, config.seed)
    load = functools.cache(functools.partial(ranker, EXACT, config, catalog, len(table.all_codes), workdir))
    found: JsonObject = {"num_rows": len(drawn), "num_beams": len(table.all_codes)}
    for column in COLUMNS:
        part = workdir / SCRATCH / f"{EXACT}-{column}.npz"
        outcome = resumed(part, load, rows.take(drawn), config, EXACT, column)
        found[column] = beside(outcome, outcomes[OURS, column], drawn, config.k)
    return found


def measured(
    outcomes: Outcomes, rows: Examples, catalog: Catalog, table: SidTable, config: EvaluateConfig, num_beams: int
) -> JsonObject:
    """Content of metrics.json."""
    return {
        "split": config.split,
        "num_beams": num_beams,
        "bootstrap_samples": config.bootstrap_samples,
        **summarise(outcomes, rows, config.k, catalog.training_counts, config.bootstrap_samples, config.seed),
        "sid_usage": sid_usage(table, outcomes),
        "trained": trained(config.model),
    }


def learned(config: EvaluateConfig, workdir: Path) -> JsonObject:
    """Learning curves of ours and of each trained baseline, whose points `ranker` has kept."""
    points = {OURS: points_of_log(training_log(config.model))}
    for system in config.baselines:
        if system in TRAINED:
            points[system] = json.loads((workdir / SCRATCH / f"{system}-{CURVE}").read_text(encoding="utf-8"))
    return {system: learning(of) for system, of in points.items()}


def per_user(outcomes: Outcomes, indices: np.ndarray, rows: Examples, catalog: Catalog) -> pa.Table:
    """One line per system, column and row of the split: the target and where it stands.

    Returns:
        Table with system, column, user_id, row (position in the split), target (item_id), start, size, group; the last
        three as in `llmrec.evaluation.metrics.Position`.
    """
    targets = [catalog.item_ids[row] for row in rows.targets]
    tables = []
    for (system, column), outcome in outcomes.items():
        data = {
            "system": [system] * len(rows),
            "column": [column] * len(rows),
            columns.USER_ID: rows.user_ids,
            "row": indices,
            columns.TARGET: targets,
            **outcome.position._asdict(),
        }
        tables.append(pa.table(data))
    return pa.concat_tables(tables)


def trained(model: str) -> JsonObject | None:
    """What made the checkpoint: stage, config and hashes of inputs; None for a copy without a manifest."""
    return read_manifest(model)["identity"] if (Path(model) / MANIFEST).is_file() else None


def training_log(model: str) -> list[JsonObject]:
    """What training logged, step by step; empty where the checkpoint has no log."""
    path = Path(model) / TRAINING_LOG
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
