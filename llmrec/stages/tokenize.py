"""tokenize: catalogue + views -> a semantic ID for every item, and a report on their quality.

Under `accelerate launch` every process makes the same semantic IDs: they share out k-means, the batches of trained
tokenizers and the encoding of the items. The first one writes them.

With `append` the new items of a catalogue get semantic IDs, and the published ones stay as they are. With `compare` the
reports of finished directories are compared, and nothing is made.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from math import prod
from pathlib import Path
from typing import cast

import torch

from llmrec import diagnostics
from llmrec.configs import TokenizeConfig
from llmrec.configs.tokenize import Collision
from llmrec.data.catalog import Catalog
from llmrec.reports import semantic_ids as page
from llmrec.runtime import processes
from llmrec.runtime.console import tell
from llmrec.runtime.device import refuse_beyond, resolve_device
from llmrec.runtime.manifest import JsonObject, verify, write_json
from llmrec.runtime.stage_directory import run_stage
from llmrec.sid.aliases import first_alias, join_aliases
from llmrec.sid.table import SidTable
from llmrec.tokenizers import Encoded, ItemTokenizer, collisions
from llmrec.tokenizers.append import REPORT, PublishedSids, append
from llmrec.tokenizers.config import make_tokenizer, method_options, sized_for, with_defaults
from llmrec.tokenizers.shared.collapse import collapsed
from llmrec.tokenizers.shared.vectors import MOST_FITTED
from llmrec.views import ItemViews, vector_shapes, view_files

PAGE = "report.html"


@dataclasses.dataclass(frozen=True)
class TokenizeResult:
    """Semantic IDs of a catalogue.

    Attributes:
        table: Semantic IDs of all items.
        encoded: Codes as the tokenizer gave them.
        tokenizer: Fitted.
        policy: Collision policy.
        notes: Sentences for the report.
    """

    table: SidTable
    encoded: Encoded
    tokenizer: ItemTokenizer
    policy: str
    notes: list[str]


def main(config: TokenizeConfig) -> JsonObject:
    """Fit the item tokenizer, encode the catalogue, resolve collisions, report.

    Returns:
        out and the content of report.json; with `compare`, what `llmrec.diagnostics.compare` returns.
    """
    if config.compare:
        return compare_reports(config.compare)
    published = PublishedSids.load(config.append, config.device) if config.append else None
    if published:
        tokenizer = published.tokenizer
        check_settled(config, published)
    else:
        tokenizer = make_tokenizer(config)
    policy = config.collision or default_policy(tokenizer, published)
    config = dataclasses.replace(config, collision=policy)
    check(config, tokenizer)
    if not published:
        check_memory(config, tokenizer)
    catalog = Catalog.load(config.catalog)
    if not published:
        config = with_defaults(sized_for(config, catalog.num_items))
        tokenizer = make_tokenizer(config)
    names = tokenizer.view_names if published and tokenizer.needs_views else config.view_names
    directory = config.views
    files = view_files(directory, names) if directory else {}
    planned = None if published else tokenizer.planned_sizes(catalog.num_items)
    if planned is not None:
        collisions.check_capacity(policy, catalog.num_items, planned)

    def build(workdir: Path) -> JsonObject:
        views = ItemViews.load(directory, catalog) if directory else ItemViews()
        used = ItemViews({name: views[name] for name in files})
        started = time.monotonic()
        if published:
            result = append_semantic_ids(published, catalog, used)
        else:
            result = fit_semantic_ids(tokenizer, catalog, used, policy, config.allow_collapse)
        seconds = time.monotonic() - started
        if not processes.is_main():
            return {}
        result.table.save(workdir)
        result.tokenizer.save_pretrained(workdir)
        write_report(workdir, config, catalog, views, result)
        return {
            "num_items": catalog.num_items,
            "num_levels": result.table.num_levels,
            "level_sizes": result.table.level_sizes,
            "fit_seconds": round(seconds, 1),  # of the semantic IDs alone, without the report
            **result.tokenizer.counts,
        }

    # A view file may have been added to the directory by hand: its content is part of what the codes depend on.
    inputs: dict[str, str | Path] = {"catalog": config.catalog, **({"views": directory} if directory else {})}
    inputs |= {f"view {name}": file for name, file in files.items()}
    inputs |= {"append": config.append} if config.append else {}
    out = run_stage("tokenize", config, inputs, build)
    return {"out": str(out), **read_report(out)}


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    if "out" not in result:
        diagnostics.show_comparison(result)
        return
    diagnostics.show(result)
    tell(f"{Path(result['out']) / PAGE} shows it with plots.")


def fit_semantic_ids(
    tokenizer: ItemTokenizer, catalog: Catalog, views: ItemViews, policy: str, allow_collapse: bool
) -> TokenizeResult:
    """Fit a tokenizer, and give all items semantic IDs.

    Args:
        tokenizer: Not fitted.
        catalog: Items and training sequences.
        views: Vectors that it reads.
        policy: Collision policy.
        allow_collapse: Accept a level that uses less than a tenth of its codes.

    Raises:
        ValueError: If the codes cannot be learned or told apart, or a level has collapsed.
    """
    aliases = tokenizer.fit(catalog, views).encode_aliases(catalog, views)
    found = [collapsed(encoded.codes, tokenizer.level_sizes) for encoded in aliases if not encoded.pieces]
    fallen = next(filter(None, found), None)  # of pieces most are no answer
    if fallen and not allow_collapse:
        raise ValueError(
            f"the codebooks have collapsed: {fallen}. Check the views, lower codebook_size or the learning rate, "
            "or set allow_collapse to keep such semantic IDs."
        )
    words = aliases[0].words
    if words is not None:
        table = SidTable(catalog.item_ids, aliases[0].codes, words=words)
        return TokenizeResult(table, aliases[0], tokenizer, policy, [])
    resolved = [collisions.resolve(policy, encoded, tokenizer.level_sizes) for encoded in aliases]
    codes, sizes, notes = zip(*resolved, strict=True)
    level_sizes = [max(level) for level in itertools.zip_longest(*sizes, fillvalue=0)]
    table = join_aliases(catalog.item_ids, codes, level_sizes, tokenizer.shares_codes, aliases[0].pieces)
    several = [f"Each item has {len(aliases)} semantic IDs; this report is of the first."] if len(aliases) > 1 else []
    return TokenizeResult(table, aliases[0], tokenizer, policy, [*several, *notes[0]])


def append_semantic_ids(published: PublishedSids, catalog: Catalog, views: ItemViews) -> TokenizeResult:
    """Keep published semantic IDs, and give the new items theirs."""
    grown = append(published, catalog, views)
    return TokenizeResult(grown.table, grown.encoded, published.tokenizer, published.policy, grown.notes)


def write_report(
    workdir: Path, config: TokenizeConfig, catalog: Catalog, views: ItemViews, result: TokenizeResult
) -> None:
    """Write report.json and report.html; neighbours are those in every view, codes those of the first alias."""
    shown = first_alias(result.table, result.tokenizer.shares_codes)
    vectors, reconstruction = result.encoded.vectors, result.encoded.reconstruction
    report = diagnostics.report(
        catalog, views or None, shown, result.encoded.codes, result.tokenizer.level_sizes, vectors,
        reconstruction, config.seed,
    )  # fmt: skip
    report |= {"method": result.tokenizer.method, "collision": result.policy, "sid_sha256": result.table.sha256}
    report["learned_levels"] = len(result.tokenizer.level_sizes)  # without that of a suffix
    report["notes"] = result.notes
    report["training"] = result.tokenizer.training_log or None
    report |= result.tokenizer.counts
    write_json(workdir / REPORT, report)
    html = page.render(report, catalog, shown, name=Path(config.out).name)
    (workdir / PAGE).write_text(html, encoding="utf-8")


def read_report(directory: str | Path) -> JsonObject:
    """Read report.json of a finished directory."""
    return json.loads((Path(directory) / REPORT).read_text(encoding="utf-8"))


def compare_reports(directories: list[str]) -> JsonObject:
    """Compare the reports of several directories.

    Raises:
        ValueError: If a directory is not a finished one of `llmrec tokenize`, or they are of different catalogues.
    """
    if len(set(directories)) < 2:
        raise ValueError(f"compare is {directories}; two different directories are needed at least.")
    for directory in directories:
        verify(Path(directory), "tokenize")
    return diagnostics.compare({directory: read_report(directory) for directory in directories})


def check_settled(config: TokenizeConfig, published: PublishedSids) -> None:
    """Refuse options that would change how published semantic IDs were made; those that say the same may stay.

    Raises:
        ValueError: With every option that differs.
    """
    kept = published.tokenizer
    settled: dict[str, object] = {"method": kept.method, "collision": published.policy}
    if kept.needs_views:
        settled["view_names"] = kept.view_names
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name in settled}
    default = {name: getattr(TokenizeConfig, name, None) for name in settled}
    wrong = {name: value for name, value in given.items() if value not in (default[name], settled[name])}
    settled |= method_options(kept)
    wrong |= {name: value for name, value in config.options.items() if value != settled.get(name)}
    if wrong:
        said = "; ".join(f"{name} is {value!r}, there {settled.get(name)!r}" for name, value in wrong.items())
        raise ValueError(f"'{config.append}' was made with other options, which append keeps: {said}. Leave these out.")


def default_policy(tokenizer: ItemTokenizer, published: PublishedSids | None) -> Collision:
    """Collision policy where the config names none."""
    if published:
        return cast("Collision", published.policy)  # another one is refused where items are appended
    return "accept" if tokenizer.tells_apart else "suffix_ordinal"


def check(config: TokenizeConfig, tokenizer: ItemTokenizer) -> None:
    """Refuse a config that cannot work, with every problem at once.

    Raises:
        ValueError: If the method, its views and the collision policy do not go together, or the device is not here.
    """
    problems, method = [], tokenizer.method
    if tokenizer.needs_views and config.views is None:
        problems.append(f"method '{method}' needs views, a directory written by `llmrec embed`")
    if not tokenizer.needs_views and config.collision in collisions.NEED_COSTS:
        problems.append(
            f"collision '{config.collision}' needs to know how far items are from codes, which '{method}' does not; "
            "use suffix_ordinal, suffix_if_collided or accept"
        )
    if tokenizer.tells_apart and config.collision != "accept" and not config.append:
        problems.append(f"method '{method}' tells items apart itself; set collision to accept")
    if tokenizer.num_aliases > 1 and tokenizer.shares_codes and config.collision == "suffix_if_collided":
        problems.append(
            "collision 'suffix_if_collided' ends semantic IDs at two levels, so that one of an alias could be the "
            "beginning of another's; use suffix_ordinal"
        )
    weights, names = getattr(tokenizer, "view_weights", None), config.view_names
    if not config.append and weights is not None and (names is None or len(weights) != len(names)):
        problems.append(f"view_weights is {weights} for view_names {names}; give one weight per name")
    if problems:
        raise ValueError("; ".join(problems) + ".")
    resolve_device(config.device)


def check_memory(config: TokenizeConfig, tokenizer: ItemTokenizer) -> None:
    """Refuse vectors of all items that would not fit, before the files of the views are verified, which takes long.

    Raises:
        ValueError: If the tokenizer holds more of them than the machine, or its GPU, has memory for.
    """
    if config.views is None or not tokenizer.holds_all_items:
        return
    shapes, device = vector_shapes(config.views, config.view_names), resolve_device(config.device)
    num_items, size = max((rows for rows, _ in shapes), default=0), 4 * sum(map(prod, shapes))  # of a copy in float32
    what = f"method '{tokenizer.method}' holds the vectors of all {num_items:,} items while it is fitted, which take"
    remedy = (
        f"Methods that do not place every item, such as rq_kmeans with balance none, learn from {MOST_FITTED:,} of "
        "them; or give fewer views."
    )
    refuse_beyond(2 * size, device, what, remedy)  # with what the codes leave of them
    refuse_beyond(size, torch.device("cpu"), what, remedy)  # on their way to a GPU
