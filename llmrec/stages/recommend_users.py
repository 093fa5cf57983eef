"""recommend --users: answer a table of millions of users, a shard at a time.

Everything that is wrong with the users is found in one pass over the files, before the weights are read. A shard is a
parquet file that is written whole; an interrupted run continues with those that are missing. Under `accelerate launch`
each process takes the next shard that nobody has, so that none waits for a slower one. The users of a shard are
answered in the same batches whoever takes it, and whenever: the files are equal to the byte.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec.configs.recommend import RecommendConfig, UsersConfig
from llmrec.data.catalog import Catalog
from llmrec.data.columns import FALLBACK, HISTORY, ITEMS, UNKNOWN
from llmrec.data.requests.item_lists import MOST_PROBLEMS, complaint
from llmrec.data.requests.user_files import UserFiles
from llmrec.data.requests.user_table import UserTable
from llmrec.runtime import disk, processes
from llmrec.runtime.console import bar, progress, say
from llmrec.runtime.hub.checkpoints import resolve
from llmrec.runtime.manifest import JsonObject, read_manifest
from llmrec.runtime.stage_directory import SCRATCH, run_stage
from llmrec.serve.batch.permitted import REMEDY, local_table, permitted_by
from llmrec.sid.table import SidTable

COUNTS, USERS, COLD, FILTERS, NO_ITEMS = "counts", "users", "cold", "filters", "no_items"
TAKEN = "taken"  # directory with an empty file for each shard that a process has taken
AT_ONCE = 4096  # users that are answered before the progress bar moves


def main(config: RecommendConfig) -> JsonObject:
    """Write the answers to all users.

    Returns:
        `out`, and `counts`: of users, of those who got popular items, of unknown entries of histories, and of users
        for whom their filters left no item.

    Raises:
        ValueError: If the users, the options or the checkpoint cannot be used.
    """
    assert config.users is not None and config.out is not None, "the config refuses this"
    files = UserFiles.find(config.users)
    if Path(config.users).resolve() in Path(config.out).resolve().parents:
        raise ValueError(f"out '{config.out}' lies within users '{config.users}'; choose another --out.")
    table = load_table(config.model)
    check_options(config, table)
    size = config.shard_size
    shards = {
        f"part-{start // size:05d}.parquet": range(start, min(start + size, files.num_users))
        for start in range(0, files.num_users, size)
    }

    def build(workdir: Path) -> JsonObject:
        found = check_users(files, list(shards.values()), table, config)
        answer_shards(workdir, files, shards, config, found[COLD])
        processes.wait()
        total = sum((counts_in(workdir / name) for name in shards), Counter())
        counts = {name: total[name] for name in (USERS, FALLBACK, UNKNOWN, NO_ITEMS)}
        for note in notes_of(counts, found[FILTERS]):
            say(f"recommend: {note}.")
        return counts

    inputs = {"model": config.model, USERS: config.users}
    inputs |= {} if config.catalog is None else {"catalog": config.catalog}
    inputs |= {f"excluded {entry}": entry for entry in config.exclude or () if Path(entry).is_file()}
    out = run_stage("recommend", UsersConfig(**vars(config)), inputs, build, shards)
    return {"out": str(out), COUNTS: read_manifest(out)[COUNTS]}


def load_table(model: str) -> SidTable:
    """Read the SID table of a checkpoint, before its weights.

    Raises:
        ValueError: If it cannot be read.
    """
    table = local_table(model)
    if table is None:
        table = SidTable.load(resolve(model))
    return table


def check_options(config: RecommendConfig, table: SidTable) -> None:
    """Refuse filters that cannot be applied or leave no item, and say which items they name in vain.

    Raises:
        ValueError: If a condition is malformed, an item of --exclude is unknown, or no item is left.
    """
    catalog = None if config.catalog is None or config.where is None else Catalog.load(config.catalog)
    _, strangers = permitted_by(config, table, catalog)
    if strangers:
        say(f"recommend: --exclude names {len(strangers)} unknown items, which were left out.")


def check_users(files: UserFiles, parts: Sequence[range], table: SidTable, config: RecommendConfig) -> Counter[str]:
    """Read all users once; the processes share this out.

    Returns:
        Number of users without a known item, and of unknown entries of `exclude` and `allow`.

    Raises:
        ValueError: If a file cannot be read, or with the first lists that are not of (known) item_ids.
    """
    mine = parts[processes.rank() :: processes.count()]
    bad, counts = 0, Counter[str]()
    problems: list[tuple[int, str]] = []
    pairs = files.read(mine)
    total = sum(map(len, mine))
    for part, users in progress(pairs, "checking", total, unit_of_users(), size=lambda pair: len(pair[0])):
        asked = UserTable.of(users, table.row_of)
        number, first = asked.problems(config.unknown)
        bad, problems = bad + number, problems + [(part.start + row, text) for row, text in first]
        problems = problems[:MOST_PROBLEMS]
        counts[COLD] += int(asked.is_cold.sum())
        counts[FILTERS] += sum(ids.num_unknown for name, ids in asked.lists.items() if name != HISTORY)
    found = processes.gather([(bad, problems, counts)])
    bad = sum(number for number, _, _ in found)
    if bad:
        first = sorted(pair for _, pairs, _ in found for pair in pairs)
        sentences = [f"{files.place(user)}, {text}" for user, text in first]
        raise ValueError(f"users {complaint(sentences, bad, table.row_of)} {REMEDY}")
    return sum((counts for _, _, counts in found), Counter())


def answer_shards(
    workdir: Path, files: UserFiles, shards: dict[str, range], config: RecommendConfig, num_cold: int
) -> None:
    """Answer the shards that are missing, in this process those that no other takes."""
    taken = workdir / SCRATCH / TAKEN
    if processes.is_main():
        shutil.rmtree(taken, ignore_errors=True)
        taken.mkdir(parents=True)
    missing = {name: part for name, part in shards.items() if not (workdir / name).is_file()}
    missing = processes.gather([missing])[0]  # nobody writes before everybody has looked
    if not missing:
        return
    from llmrec.serve.batch.tables import TableRecommender  # imports torch, which takes seconds

    recommend = TableRecommender(config)
    if num_cold and recommend.recommender.record is None:
        raise ValueError(
            f"{num_cold} of {files.num_users} users have no known item in their history, but the checkpoint does not "
            "tell which items are popular, because an earlier llmrec wrote it. Train again, or leave these users out."
        )
    for note in recommend.recommender.given.notes() if recommend.recommender.given else ():
        say(f"recommend: {note}.")
    started, num_missing = time.monotonic(), sum(map(len, missing.values()))
    total, done = files.num_users, files.num_users - num_missing
    if processes.count() > 1:
        total, done = -(-num_missing // processes.count()), 0
    name_of = {part: name for name, part in missing.items()}
    with bar("recommend", total, unit_of_users(), done) as update:
        for part, users in files.read(shards_to_take(taken, missing)):
            write_shard(workdir / name_of[part], users, recommend, update)
    seconds = time.monotonic() - started
    processes.wait()
    say(f"recommend: {num_missing} users in {seconds:.1f} s, {num_missing / max(seconds, 1e-9):,.1f} users/s")


def shards_to_take(taken: Path, missing: dict[str, range]) -> Iterator[range]:
    """Yield the shards of this process: each belongs to the process that is the first to ask for it."""
    for name, part in missing.items():
        try:
            (taken / name).touch(exist_ok=False)
        except FileExistsError:
            continue
        yield part


def write_shard(
    path: Path, users: pa.Table, recommend: Callable[[pa.Table], pa.Table], update: Callable[..., None]
) -> None:
    """Answer the users of a shard, and write its file with their counts."""
    answers = []
    for start in range(0, users.num_rows, AT_ONCE):
        answers.append(recommend(users.slice(start, AT_ONCE)))
        update(advance=answers[-1].num_rows)
    table = pa.concat_tables(answers)
    counts = {
        USERS: table.num_rows,
        FALLBACK: table.num_rows - table[FALLBACK].null_count,
        UNKNOWN: pc.sum(pc.list_value_length(table[UNKNOWN])).as_py(),
        NO_ITEMS: pc.sum(pc.equal(pc.list_value_length(table[ITEMS]), 0)).as_py(),
    }
    with disk.replacing(path) as temporary:
        pq.write_table(table.replace_schema_metadata({COUNTS: json.dumps(counts)}), temporary)


def counts_in(path: Path) -> Counter[str]:
    """Counts that `write_shard` keeps in a file."""
    return Counter(json.loads(pq.read_schema(path).metadata[COUNTS.encode()]))


def unit_of_users() -> str:
    """Unit of a progress bar, which shows what this process does."""
    return "users" if processes.count() == 1 else f"users, 1 of {processes.count()} processes"


def notes_of(counts: JsonObject, num_filters: int) -> list[str]:
    """Sentences about what was left out and who got popular items."""
    notes = []
    if counts[UNKNOWN]:
        notes.append(f"{counts[UNKNOWN]} unknown items were left out of the histories")
    if num_filters:
        notes.append(f"{num_filters} unknown items were left out of what users exclude or allow")
    if counts[FALLBACK]:
        of = f"{counts[FALLBACK]} of {counts[USERS]}"
        notes.append(f"{of} users got the most popular items, as no known item is in their history")
    if counts[NO_ITEMS]:
        notes.append(f"{counts[NO_ITEMS]} of {counts[USERS]} users got no item, as their filters leave none")
    return notes
