"""ensemble: mix the rankings of finished models; the mixture is chosen on valid and measured once on test.

Each member ranks both splits in both columns, and each of these shortlists is saved when it is done, so that an
interrupted run continues with the next one. metrics.json and per_user.parquet are those of `llmrec evaluate`, with the
mixture as `ours` and the members in the place of baselines; `llmrec compare` reads them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from llmrec.baselines.taught import RANKER, load_ranker
from llmrec.configs import CHECKPOINTS, EnsembleConfig
from llmrec.configs.ensemble import WAYS
from llmrec.configs.recommend import RankBy
from llmrec.data.catalog import Catalog
from llmrec.data.examples import Examples
from llmrec.evaluation import tables
from llmrec.evaluation.bootstrap import RESAMPLES
from llmrec.evaluation.ensemble.fusion import Fusion, Gated
from llmrec.evaluation.ensemble.search import Measured, best, search
from llmrec.evaluation.ensemble.shortlist import Shortlist, shortlist, without_seen
from llmrec.evaluation.metrics import ndcg
from llmrec.evaluation.protocol import COLUMNS, Outcome, Rank, per_batch, resumed
from llmrec.evaluation.ranking import default_num_beams
from llmrec.evaluation.runs import PER_USER, per_user
from llmrec.evaluation.summary import OURS, Outcomes, drawn_examples, summarise
from llmrec.evaluation.transitions import Transitions
from llmrec.evaluation.verdict import MIXTURE
from llmrec.reports.ensemble import written
from llmrec.reports.evaluation import render
from llmrec.runtime import processes
from llmrec.runtime.console import tell
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import MANIFEST, PARTIAL, JsonObject, content_hash, verify, write_json
from llmrec.runtime.stage_directory import SCRATCH, run_stage
from llmrec.stages.evaluate import METRICS, REPORT, held_out, sample
from llmrec.stages.evaluated_model import check_own, check_rank

ENSEMBLE = "ensemble.json"
CHOICE, RESULT = "valid", "test"  # the split that chooses the mixture, and the one that is reported
Lists = dict[tuple[str, str], list[Shortlist]]  # (split, column) -> the shortlist of each member


def main(config: EnsembleConfig) -> JsonObject:
    """Choose a mixture of the members, and compare it with each of them.

    Returns:
        `out` and the content of ensemble.json, with that of metrics.json as `metrics`.

    Raises:
        ValueError: If a member is unfinished, given twice or of another catalogue, or a split has no examples.
    """
    catalog = Catalog.load(config.catalog)
    check_members(config, catalog)
    drawn = {split: sample(*held_out(catalog, split), config.max_examples, config.seed) for split in (CHOICE, RESULT)}
    examples = {split: of_split for split, (of_split, _) in drawn.items()}

    def build(workdir: Path) -> JsonObject:
        depth = min(config.depth or default_num_beams(catalog.num_items, config.k), catalog.num_items)
        lists = shortlists(config, catalog, examples, depth, workdir)
        if processes.is_main():
            found = search({column: Fusion(lists[CHOICE, column], examples[CHOICE].targets) for column in COLUMNS},
                           ways(config), len(config.members), max(config.k))  # fmt: skip
            chosen = described(config, lists, examples[CHOICE], found, depth)
            outcomes = mixed(config, lists, examples[RESULT].targets, best(found))
            metrics = measured(config, outcomes, examples[RESULT], catalog, depth)
            write_json(workdir / ENSEMBLE, chosen)
            write_json(workdir / METRICS, metrics)
            pq.write_table(per_user(outcomes, drawn[RESULT][1], examples[RESULT], catalog), workdir / PER_USER)
            page = render(metrics, [], f"an ensemble on {config.catalog}", chosen)
            (workdir / REPORT).write_text(page, encoding="utf-8")
        return {name: len(of_split) for name, of_split in examples.items()}

    inputs = {"catalog": config.catalog, **{f"member {i}": path for i, path in enumerate(config.members, start=1)}}
    out = run_stage("ensemble", config, inputs, build)
    result, metrics = (json.loads((out / name).read_text(encoding="utf-8")) for name in (ENSEMBLE, METRICS))
    return {"out": str(out), **result, "metrics": metrics}


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    tables.show(result["metrics"], MIXTURE)
    tell(f"ours is the mixture that {CHOICE} chose: {written(result['mixture'])}.")
    tell(f"{Path(result['out']) / REPORT} has the rest.")


def check_members(config: EnsembleConfig, catalog: Catalog) -> None:
    """Refuse members that cannot be mixed, before any weights are read.

    Raises:
        ValueError: If a member is no finished checkpoint or ranker of this catalogue, is given twice, or has the name
            of the mixture.
    """
    if OURS in config.labels:
        raise ValueError(f"no member may be called '{OURS}', which is the name of the mixture; give other --names.")
    given: dict[tuple[str, RankBy], str] = {}
    for path, rank_by in zip(config.members, config.ranked_by, strict=True):
        if Path(path).name.endswith(PARTIAL) or (Path(path) / MANIFEST).is_file():
            verify(path, *CHECKPOINTS, "teach")
        if is_taught(path):
            load_ranker(path, catalog, torch.device("cpu"))
            if rank_by != "sid":
                raise ValueError(
                    f"member '{path}' is a ranker of `llmrec teach`, which has no rank_by; give sid for it."
                )
        else:
            check_own(path, catalog)
            if rank_by != "sid":
                check_rank(path, rank_by)
        found = content_hash(path), rank_by
        if found in given:
            raise ValueError(f"members '{given[found]}' and '{path}' are the same; each counts once.")
        given[found] = path


def ways(config: EnsembleConfig) -> list[str]:
    """The ways to try, from simple to complex."""
    asked = config.ways or [way for way in WAYS if way != Gated.way or len(config.members) == 2]
    return sorted(asked, key=WAYS.index)


def shortlists(
    config: EnsembleConfig, catalog: Catalog, examples: dict[str, Examples], depth: int, workdir: Path
) -> Lists:
    """Rank both splits in both columns with every member, one member in memory at a time."""
    lists: Lists = {(split, column): [] for split in examples for column in COLUMNS}
    for i, (path, rank_by) in enumerate(zip(config.members, config.ranked_by, strict=True)):
        load = functools.cache(functools.partial(ranker, path, rank_by, catalog, config.device, depth))
        for (split, column), found in lists.items():
            part, label = workdir / SCRATCH / f"member-{i + 1}-{split}-{column}.npz", config.labels[i]
            found.append(list_of(part, load, examples[split], depth, column, config, f"{label}, {split}, {column}"))
        if not is_taught(path):  # a taught ranker normalises what it excludes itself
            for split, of_split in examples.items():
                plain, excluded = (lists[split, column] for column in COLUMNS)
                excluded[i] = without_seen(excluded[i], plain[i], of_split)
    return lists


def is_taught(path: str) -> bool:
    """True for a directory of `llmrec teach`, False for a checkpoint."""
    return (Path(path) / RANKER).is_file()


def ranker(path: str, rank_by: RankBy, catalog: Catalog, device: str, depth: int) -> Rank:
    """Load a member."""
    if is_taught(path):
        return per_batch(load_ranker(path, catalog, resolve_device(device)).rank)
    from llmrec.recommender import Recommender  # transformers, whose import takes seconds

    recommender = Recommender.from_pretrained(path, device=device, rank=rank_by)
    return functools.partial(recommender.ranker.rank_batches, num_beams=depth)


def list_of(
    part: Path,
    load: Callable[[], Rank],
    examples: Examples,
    depth: int,
    column: str,
    config: EnsembleConfig,
    description: str,
) -> Shortlist:
    """Shortlist of one member, read from `part` if an earlier attempt finished it."""

    def rank() -> Shortlist:
        return shortlist(load(), examples, depth, column, config.batch_size, description)

    return resumed(part, Shortlist.load, rank, len(examples), f"ensemble: {description}")


def described(
    config: EnsembleConfig, lists: Lists, examples: Examples, found: Sequence[Measured], depth: int
) -> JsonObject:
    """Content of ensemble.json: the members and all mixtures on the valid examples, and the one that is chosen."""
    members = list[JsonObject]()
    for i, (name, path, rank_by) in enumerate(zip(config.labels, config.members, config.ranked_by, strict=True)):
        valid = {column: float(ndcg(lists[CHOICE, column][i].position, max(config.k)).mean()) for column in COLUMNS}
        valid["mean"] = sum(valid.values()) / len(valid)
        members.append({"name": name, "path": path, "rank_by": None if is_taught(path) else rank_by, "valid": valid})
    return {
        "metric": f"ndcg@{max(config.k)}",
        "num_valid": len(examples),
        "depth": depth,
        "members": members,
        "best_member": max(members, key=lambda member: member["valid"]["mean"])["name"],
        "mixture": best(found).described(),
        "best_by_way": [best([one for one in found if one.mixture.way == way]).described() for way in ways(config)],
        "grid": [one.described() for one in found],
    }


def mixed(config: EnsembleConfig, lists: Lists, targets: np.ndarray, chosen: Measured) -> Outcomes:
    """The answers of the mixture and of every member to the test examples."""
    k, outcomes = max(config.k), Outcomes()
    for column in COLUMNS:
        outcomes[OURS, column] = Fusion(lists[RESULT, column], targets).outcome(chosen.mixture, k)
    for i, name in enumerate(config.labels):
        for column in COLUMNS:
            one = lists[RESULT, column][i]
            outcomes[name, column] = Outcome(one.position, one.items[:, :k], one.invalid, one.seconds)
    return outcomes


def measured(
    config: EnsembleConfig, outcomes: Outcomes, examples: Examples, catalog: Catalog, depth: int
) -> JsonObject:
    """Content of metrics.json, in the form of `llmrec evaluate`."""
    return {
        "split": RESULT,
        "num_beams": depth,
        "bootstrap_samples": RESAMPLES,
        **summarise(
            outcomes,
            examples,
            config.k,
            catalog.training_counts,
            Transitions(catalog.train, catalog.num_items, examples),
            config.seed,
        ),
        "examples": drawn_examples(outcomes, examples, catalog, config.seed),
        "trained": None,
    }
