"""prepare: read a raw dataset, filter it, split it, and write a catalogue that is checked for leaks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
from pyarrow.dataset import dataset as of_file

from llmrec.configs import PrepareConfig
from llmrec.data import split as splits
from llmrec.data.catalog import SPLITS, Catalog
from llmrec.data.catalog_files import write
from llmrec.data.columns import HISTORY, ITEM_ID, SPLIT, TARGET, TITLE, USER_ID
from llmrec.data.filters.append import SETTLED, Published
from llmrec.data.filters.keep import keep
from llmrec.data.intake.read import read_items, read_tables
from llmrec.data.known_datasets import known_source, locate
from llmrec.data.public_formats import Dataset
from llmrec.data.report.facts import data_facts
from llmrec.data.report.held_out import split_facts
from llmrec.data.report.steps import summary
from llmrec.data.report.times import refuse_mixed_units
from llmrec.data.report.verdicts import verdicts
from llmrec.data.simulator import simulate, simulated_size
from llmrec.reports.catalog import PAGE, render
from llmrec.runtime import processes
from llmrec.runtime.console import say, table, tell
from llmrec.runtime.manifest import JsonObject, read_manifest
from llmrec.runtime.stage_directory import run_stage

APPEND_TO = "append_to"
METHODS = {"leave_one_out": splits.leave_one_out, "temporal": splits.temporal}


def main(config: PrepareConfig) -> JsonObject:
    """Write the catalogue directory `config.out`.

    Returns:
        `out`, the counts `users`, `items`, `interactions`, `train`, `valid`, `test`, and the data `report`.

    Raises:
        ValueError: If the config, the input files or their split cannot be used; see docs/prepare.md.
    """
    processes.refuse_several("prepare")
    check(config)
    files = find_files(config)
    out = run_stage("prepare", config, files, lambda directory: build(config, files, directory))
    counts = read_manifest(out)["counts"]
    for verdict in counts["report"]["verdicts"]:
        if verdict["kind"] == "warning":
            say(f"prepare: warning: {verdict['says']} {verdict['remedy']}")
    return {"out": str(out), **counts}


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    table("Kept at each step", ["", "users", "items", "interactions"], summary(result["report"]["steps"]))
    examples = ", ".join(f"{result[name]:,} {name}" for name in SPLITS)
    tell(f"Examples: {examples}. Items in the catalogue: {result['items']:,}.")
    tell(f"Written to {result['out']}; {Path(result['out']) / PAGE} shows the data, and what a model has to beat.")


def build(config: PrepareConfig, files: dict[str, Path], directory: Path) -> JsonObject:
    """Make the catalogue, and describe it.

    Returns:
        Counts for the manifest.

    Raises:
        ValueError: If the files or their split cannot be used.
    """
    report = make(config, files, directory)
    report |= held_out_facts(directory, config.seed)  # now that the tables that `make` read are out of the memory
    report["verdicts"] = verdicts(report)
    (directory / PAGE).write_text(render(report, Path(config.out).name), encoding="utf-8")
    return {
        "users": report["behaviour"]["users"],
        "items": report["fields"]["items"],
        "interactions": report["behaviour"]["interactions"],
        "k_core": report["k_core"],
        **{name: report["split"][name]["examples"] for name in SPLITS},
        "report": report,
    }


def make(config: PrepareConfig, files: dict[str, Path], directory: Path) -> JsonObject:
    """Read, filter, split, check and write.

    Returns:
        The report, without what it says of the held-out examples.

    Raises:
        ValueError: If the files or their split cannot be used.
    """
    published = Published.load(files[APPEND_TO]) if APPEND_TO in files else None
    config = settled(config, published) if published else config
    dataset = read(config, files, published)
    dataset = dataclasses.replace(dataset, interactions=splits.with_codes(dataset.interactions))
    check_split(config, dataset)
    if not dataset.order_only:
        refuse_mixed_units(dataset.interactions, config.dataset or str(config.interactions))
    dataset, interactions, report = keep(config, dataset, published)
    notes, items = list(dataset.notes), dataset.items
    if published:
        notes.append(new_items(published, items, interactions, report["k_core"]))
        old, added = items[: published.num_items], items[published.num_items :]
        items = pl.concat([old, splits.shuffle_items(added, config.seed)])
    else:
        if report["k_core"] or config.min_weight is not None:
            items = items.filter(pl.col(ITEM_ID).is_in(splits.different(interactions[ITEM_ID]).implode()))
        items = splits.shuffle_items(items, config.seed)
    for note in notes:
        say(note)
    rows = split(config, dataset, interactions)
    splits.check_no_leak(rows, interactions, by_time=config.split == "temporal")
    write(directory, items, interactions, rows)
    return report | {"notes": notes} | data_facts(dataset, interactions, items)


def settled(config: PrepareConfig, published: Published) -> PrepareConfig:
    """Options with those that the catalogue has decided already.

    Raises:
        ValueError: If another value was given for one of them.
    """
    default = {field.name: field.default for field in dataclasses.fields(config)}
    kept = {name: published.config[name] for name in SETTLED if name in published.config}
    wrong = [name for name, value in kept.items() if getattr(config, name) not in (default[name], value)]
    if wrong:
        said = ", ".join(f"{name} is {getattr(config, name)!r}, there {kept[name]!r}" for name in wrong)
        raise ValueError(f"'{published.source}' was prepared with other options, which stay: {said}. Leave these out.")
    return dataclasses.replace(config, **kept)


def new_items(published: Published, items: pl.DataFrame, interactions: pl.DataFrame, k: int) -> str:
    """Sentence on the items that were not in the catalogue."""
    added = items[published.num_items :][ITEM_ID]
    counts = interactions.filter(pl.col(ITEM_ID).is_in(added.implode()))[ITEM_ID].value_counts()["count"]
    few = len(added) - int((counts >= k).sum())
    return (
        f"{len(added):,} new items follow the {published.num_items:,} of '{published.source}', whose rows stay. "
        f"{few:,} of the new ones have fewer than {k} interactions and are kept all the same."
    )


def held_out_facts(directory: Path, seed: int) -> JsonObject:
    """Facts about the split that was written, and what a model has to beat."""
    from llmrec.baselines.reach import reach  # torch, whose import takes seconds

    items = pq.read_table(directory / "items.parquet", columns=[ITEM_ID, TITLE])
    catalog = Catalog(items, of_file(directory / "split.parquet", format="parquet"), str(directory))
    return {"split": split_facts(catalog), "baselines": reach(catalog, seed=seed)}


def check(config: PrepareConfig) -> None:
    """Refuse options that do not go together, before any file is read.

    Raises:
        ValueError: If the options name no source of data, two sources, or items without interactions, or the result
            would lie in its input.
    """
    problems = []
    own = config.interactions or (config.append_to and config.items)
    if (config.dataset is None) == (own is None):
        problems.append("give either --dataset (a known name) or --interactions (a file), not both or neither")
    if config.items is not None and not own:
        problems.append("--items goes with --interactions; a known dataset brings its own items")
    if config.append_to is not None and (config.dataset is not None or config.num_users is not None):
        problems.append("--append-to goes with your own files and all users, not with --dataset or --num-users")
    of_a_file = ("weight_column", "item_file_column", "separator", "order_only")
    problems += [
        f"--{name.replace('_', '-')} goes with --interactions"
        for name in of_a_file
        if getattr(config, name) and not own
    ]
    if config.item_file_column is not None and config.items is None:
        problems.append("--item-file-column goes with --items")
    if config.unknown_items != "error" and not (config.interactions and config.items):
        problems.append("--unknown-items goes with --interactions and --items")
    if config.separator is not None and (not config.separator or set(config.separator) & set('"\r\n')):
        problems.append(f"--separator is {config.separator!r}; give the text between two cells, without quotes")
    out = Path(config.out).resolve()
    problems += [
        f"--out '{out}' lies in the directory '{source}', of which it would become a part; choose another --out"
        for source in (config.interactions, config.items)
        if source is not None and Path(source).is_dir() and Path(source).resolve() in out.parents
    ]
    if problems:
        raise ValueError("; ".join(problems))


def check_split(config: PrepareConfig, dataset: Dataset) -> None:
    """Refuse a split that the dataset does not allow.

    Raises:
        ValueError: If the dataset lacks the published split or the times that are asked for, or has a published split
            that is not asked for.
    """
    name = config.dataset or config.interactions
    if dataset.split is None and config.split == "published":
        raise ValueError(f"'{name}' has no published split; set --split leave_one_out or temporal.")
    if dataset.split is not None and (config.split != "published" or config.k_core):
        raise ValueError(
            f"'{name}' has a published split, which results are compared on; set --split published --k-core 0."
        )
    if dataset.split is not None and config.min_weight is not None:
        raise ValueError(f"'{name}' has a published split, which results are compared on; leave --min-weight out.")
    if dataset.order_only and config.split == "temporal":
        raise ValueError(
            f"'{name}' has no times, only the order of each user's history, so nothing can be split by time; "
            "set --split leave_one_out."
        )


def find_files(config: PrepareConfig) -> dict[str, Path]:
    """Find the raw files of the run: name of the file, or of the option that gives it -> path."""
    if simulated_size(config.dataset):
        return {}
    if config.dataset is not None:
        return locate(known_source(config.dataset))
    named = ("interactions", "items", APPEND_TO)
    return {name: Path(path) for name in named if (path := getattr(config, name)) is not None}


def read(config: PrepareConfig, files: dict[str, Path], published: Published | None) -> Dataset:
    """Read the raw dataset: simulated, a known one, or the user's own files."""
    size = simulated_size(config.dataset)
    if size:
        return simulate(*size, config.seed).dataset
    if config.dataset is not None:
        return known_source(config.dataset).read(*files.values())
    if "interactions" not in files:
        return read_items(
            files["items"],
            item_column=config.item_file_column or config.item_column,
            title_column=config.title_column,
            separator=config.separator,
        )
    return read_tables(
        files["interactions"],
        files.get("items"),
        user_column=config.user_column,
        item_column=config.item_column,
        timestamp_column=config.timestamp_column,
        title_column=config.title_column,
        weight_column=config.weight_column,
        item_file_column=config.item_file_column,
        separator=config.separator,
        order_only=config.order_only,
        known_items=published.items[ITEM_ID] if published else None,
        allow_unknown=config.unknown_items != "error",
    )


def split(config: PrepareConfig, dataset: Dataset, interactions: pl.DataFrame) -> pl.DataFrame:
    """Make the examples of the users in `interactions`.

    Raises:
        ValueError: If train, valid or test would have no example.
    """
    if config.split == "published" and dataset.split is not None:
        user, item = interactions.schema[USER_ID], interactions.schema[ITEM_ID]
        kinds = {USER_ID: user, HISTORY: pl.List(item), TARGET: item}
        rows = dataset.split.cast(kinds, strict=False)  # type: ignore[arg-type]
        rows = rows.join(interactions, on=USER_ID, how="semi", maintain_order="left")
    else:
        rows = METHODS[config.split](interactions, config.max_history)
    without = [name for name in SPLITS if name not in rows[SPLIT]]
    if without:
        num_users = interactions[USER_ID].n_unique()
        raise ValueError(
            f"{interactions.height} interactions of {num_users} users leave no {without} example; "
            "leave_one_out needs a user with 3 interactions, temporal 10 interactions after users' first ones. "
            "Give more data, lower --k-core or raise --num-users."
        )
    return rows
