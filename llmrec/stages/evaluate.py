"""evaluate: rank the whole catalogue for every held-out example, with the LLM and the baselines, and report intervals.

Without a model the baselines are evaluated alone, and the first one is what the others are compared with.

Each system in each column is saved when it is done, so that an interrupted run continues with the next one.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
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
from llmrec.evaluation.overlap import Overlap
from llmrec.evaluation.protocol import COLUMNS, Outcome, Rank, evaluate, per_batch, resumed
from llmrec.evaluation.ranking import default_num_beams
from llmrec.evaluation.runs import PER_USER, per_user
from llmrec.evaluation.summary import OURS, Outcomes, drawn_examples, sample_of, sid_usage, summarise
from llmrec.evaluation.transitions import Transitions
from llmrec.reports.evaluation import render
from llmrec.runtime import processes
from llmrec.runtime.console import say, tell
from llmrec.runtime.manifest import JsonObject, write_json
from llmrec.runtime.stage_directory import SCRATCH, run_stage
from llmrec.sid.table import SidTable
from llmrec.stages.evaluated_model import (
    check_rank,
    choose_power,
    find_overlap,
    head_of,
    load_table,
    shared_ranking,
    trained,
    training_log,
)

METRICS = "metrics.json"
REPORT = "report.html"
CURVE, POWER = "curve.json", "power.json"


def main(config: EvaluateConfig) -> JsonObject:
    """Evaluate a checkpoint, baselines or both.

    Returns:
        `out`, and the content of metrics.json.
    """
    check(config)
    trial = Trial.find(config)
    systems = [*([OURS] if config.model else []), *rows_of(config.named)]
    num_beams = config.num_beams or default_num_beams(trial.catalog.num_items, config.k, trial.table)

    def build(workdir: Path) -> JsonObject:
        outcomes: Outcomes = {}
        for system in systems:
            load = functools.cache(functools.partial(ranker, system, trial, num_beams, workdir))
            for column in COLUMNS:
                part = workdir / SCRATCH / f"{system}-{column}.npz"
                outcomes[system, column] = outcome_of(part, load, trial.examples, config, system, column)
        exact = exact_ranking(outcomes, trial, trial.table, workdir) if trial.table and config.exact_examples else None
        if processes.is_main():
            metrics = measured(outcomes, trial, num_beams)
            metrics["learning"] = learning_curves(config, workdir)
            metrics["exact"] = exact
            if (workdir / SCRATCH / POWER).is_file():
                metrics |= json.loads((workdir / SCRATCH / POWER).read_text(encoding="utf-8"))
            head = head_of(config.model)
            if head is not None:
                metrics |= {"head": head, "num_beams": None}
            write_json(workdir / METRICS, metrics)
            pq.write_table(per_user(outcomes, trial.places, trial.examples, trial.catalog), workdir / PER_USER)
            name = f"{config.model or 'baselines'} on {config.catalog}"
            page = render(metrics, training_log(config.model), name)
            (workdir / REPORT).write_text(page, encoding="utf-8")
        return {"num_examples": len(trial.examples), "num_items": trial.catalog.num_items}

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


@dataclasses.dataclass(frozen=True)
class Trial:
    """Catalogue, examples and checkpoint of an evaluation.

    Attributes:
        config: Options of the stage.
        catalog: Items that are ranked, and what the baselines learn from.
        examples: The n examples.
        places: (n,) their ascending positions in the split.
        num_held_out: Number of examples that they are drawn from.
        table: SIDs of the checkpoint, if there is one.
        overlap: What the catalogue has in common with the checkpoint, if it is not its own.
    """

    config: EvaluateConfig
    catalog: Catalog
    examples: Examples
    places: np.ndarray
    num_held_out: int
    table: SidTable | None = None
    overlap: Overlap | None = None

    @classmethod
    def find(cls, config: EvaluateConfig) -> Trial:
        """Read the inputs, and refuse what cannot be evaluated before weights are read.

        Raises:
            ValueError: If the catalogue, the checkpoint or a baseline cannot be used, or do not go together.
        """
        catalog = Catalog.load(config.catalog)
        table = load_table(config.model) if config.model else None
        examples, places = held_out(catalog, config.split)
        overlap = find_overlap(config.model, table, catalog, config.split) if config.model and table else None
        if config.model and config.rank != "sid":
            check_rank(config.model, config.rank)
        if overlap:
            check_kept_baselines(config.named, catalog, overlap)
            for note in overlap.facts["notes"]:
                say(f"evaluate: {note}")
            catalog, examples, places = overlap.catalog, overlap.examples, overlap.places
        check_baselines(config.named, catalog)
        drawn = sample(examples, places, config.max_examples, config.seed)
        return cls(config, catalog, *drawn, len(examples), table, overlap)

    @property
    def table_rows(self) -> np.ndarray:
        """(num_items,) item row of each item of the catalogue in the SID table."""
        return self.overlap.rows if self.overlap else np.arange(self.catalog.num_items)


def held_out(catalog: Catalog, split: str) -> tuple[Examples, np.ndarray]:
    """Held-out examples of a split.

    Returns:
        The n examples, and their (n,) positions in the split.

    Raises:
        ValueError: If there are none.
    """
    examples = catalog.examples(split)
    if len(examples) == 0:
        counts = {name: len(catalog.examples(name)) for name in SPLITS}
        raise ValueError(
            f"{catalog.source}/split.parquet has no '{split}' examples (examples per split: {counts}). "
            "Choose another --split, or run `llmrec prepare` with more users or a smaller k_core."
        )
    return examples, np.arange(len(examples))


def sample(examples: Examples, places: np.ndarray, max_examples: int | None, seed: int) -> tuple[Examples, np.ndarray]:
    """Draw examples with their (n,) positions, all of them if `max_examples` is None."""
    if max_examples is None:
        return examples, places
    drawn = examples.sample(max_examples, seed)
    return examples.take(drawn), places[drawn]


def check_kept_baselines(baselines: Sequence[str], catalog: Catalog, overlap: Overlap) -> None:
    """Refuse baselines that `llmrec teach` has kept and that rank items which the checkpoint does not know.

    Raises:
        ValueError: If there is one.
    """
    kept = [name for name in baselines if name not in BASELINES]
    if kept and overlap.catalog.num_items < catalog.num_items:
        raise ValueError(
            f"'{kept[0]}' ranks all {catalog.num_items} items of '{catalog.source}', of which the model knows "
            f"{overlap.catalog.num_items}. Evaluate it without --model, or name a baseline, which is fitted to these."
        )


def ranker(system: str, trial: Trial, num_beams: int, workdir: Path) -> Rank:
    """Load the checkpoint or a baseline that was kept, or fit one, and save the learning curve of a baseline."""
    config = trial.config
    if system not in (OURS, EXACT):
        fitted = named_baseline(rows_of(config.named)[system], trial.catalog, config.seed, config.device)
        if fitted.log and processes.is_main():
            (workdir / SCRATCH).mkdir(exist_ok=True)
            write_json(workdir / SCRATCH / f"{system}-{CURVE}", points_of_epochs(fitted.log))
        return per_batch(fitted.rank)
    from llmrec.decoding.grounding.ranker import GroundedRanker  # torch and transformers, whose imports take seconds
    from llmrec.recommender import Recommender

    recommender = Recommender.from_pretrained(
        config.model or "", device=config.device, rank=config.rank, length_penalty=config.length_penalty
    )
    if isinstance(recommender.ranker, GroundedRanker):
        valid = None if trial.overlap else trial.catalog.examples("valid")
        choose_power(recommender.ranker, valid, config.batch_size, workdir / SCRATCH / POWER)
    if trial.overlap:
        return shared_ranking(recommender.ranker, trial.overlap, num_beams)
    return functools.partial(recommender.ranker.rank_batches, num_beams=num_beams)


def outcome_of(
    part: Path, load: Callable[[], Rank], examples: Examples, config: EvaluateConfig, system: str, column: str
) -> Outcome:
    """Outcome of one system in one column, read from `part` if an earlier attempt finished it."""
    batch_size = {OURS: config.batch_size, EXACT: 1}.get(system, BATCH)

    def rank() -> Outcome:
        return evaluate(load(), examples, max(config.k), column, batch_size, f"{system}, {column}")

    return resumed(part, Outcome.load, rank, len(examples), f"evaluate: {system}, {column}")


def exact_ranking(outcomes: Outcomes, trial: Trial, table: SidTable, workdir: Path) -> JsonObject:
    """Rank a sample exactly, one example at a time as memory grows with N squared, and compare with the beam."""
    config, num_beams = trial.config, len(table.all_codes)
    drawn = draw_examples(len(trial.examples), config.exact_examples, config.seed)
    load = functools.cache(functools.partial(ranker, EXACT, trial, num_beams, workdir))
    result: JsonObject = {"num_examples": len(drawn), "num_beams": num_beams}
    for column in COLUMNS:
        part = workdir / SCRATCH / f"{EXACT}-{column}.npz"
        outcome = outcome_of(part, load, trial.examples.take(drawn), config, EXACT, column)
        result[column] = compare_with_beam(outcome, outcomes[OURS, column], drawn, config.k)
    return result


def measured(outcomes: Outcomes, trial: Trial, num_beams: int) -> JsonObject:
    """Content of metrics.json, except the learning curves and the exact ranking; without a model some is None."""
    config, catalog, examples, table = trial.config, trial.catalog, trial.examples, trial.table
    return {
        "split": config.split,
        "num_beams": num_beams if config.model else None,
        "rank": config.rank if config.model else None,
        "bootstrap_samples": RESAMPLES,
        "sample": sample_of(outcomes, trial.num_held_out, config.k, config.seed),
        **summarise(
            outcomes,
            examples,
            config.k,
            catalog.training_counts,
            Transitions(catalog.train, catalog.num_items, examples),
            config.seed,
        ),
        "sid_usage": sid_usage(table, trial.table_rows, outcomes) if table else None,
        "examples": drawn_examples(outcomes, examples, catalog, config.seed),
        "trained": trained(config.model) if config.model else None,
        "overlap": trial.overlap.facts if trial.overlap else None,
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
