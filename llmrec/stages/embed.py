"""embed: turn the items of a catalogue into vectors, one file per view."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from llmrec.configs import EmbedConfig
from llmrec.configs.embed import VIEW_NAMES
from llmrec.configs.options import suggestion
from llmrec.data.catalog import Catalog
from llmrec.runtime import processes
from llmrec.runtime.console import tell
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject, read_manifest, write_json
from llmrec.runtime.stage_directory import SCRATCH, run_stage
from llmrec.views import SUFFIX, ItemViews, View
from llmrec.views.append import OldViews
from llmrec.views.collaborative import WINDOW, collaborative_view
from llmrec.views.external import external_view
from llmrec.views.famae import famae_view, item_fields
from llmrec.views.famae_network import HEADS
from llmrec.views.hold_out import hold_out
from llmrec.views.lightgcn import lightgcn_view
from llmrec.views.sasrec import sasrec_view
from llmrec.views.spatial import FREQUENCIES, NEIGHBOURS, coordinates, geographic_view, spatial_view
from llmrec.views.text import TFIDF, TFIDF_DIM, encoder_view, load_encoder, new_tfidf_view, render_texts, tfidf_view
from llmrec.views.tfidf import FILE as TFIDF_FILE
from llmrec.views.tfidf import Tfidf

TRAINED: dict[str, Callable[[Catalog, int, int, str], View]] = {"sasrec": sasrec_view, "lightgcn": lightgcn_view}
SECONDS = "seconds.json"
EXTERNAL = re.compile(r"([A-Za-z0-9_-]+)=(.+)")  # the name becomes that of a file


def main(config: EmbedConfig) -> JsonObject:
    """Build every view of `config.views` that the output directory does not have yet.

    Returns:
        `out`, `num_items`, `views` (dimension and number of missing items of each) and `seconds` of each view.
    """
    old = None
    if config.append is not None:
        old = OldViews.load(config.append, Catalog.load(config.catalog))
        config = settled(config, old)
    check(config)
    catalog, files = Catalog.load(config.catalog), external_files(config)
    external = {name: external_view(name, path, catalog) for name, path in files.items()}
    if "text" in config.views:
        render_texts(catalog, config.text_template)
    if not {"spatial", "geographic"}.isdisjoint(config.views):
        coordinates(catalog)
    learned = () if old else config.views
    if "famae" in learned:
        item_fields(catalog)
    if not {"famae", *TRAINED}.isdisjoint(learned):
        hold_out(catalog, config.seed)

    def build(workdir: Path) -> JsonObject:
        for name in config.views:
            file, started = workdir / (name + SUFFIX), time.monotonic()
            view = None if file.exists() else build_view(name, config, catalog, external, workdir, old)
            if view is not None and processes.is_main():
                note_seconds(workdir, name, time.monotonic() - started)
                view.save(file)
        return counts(workdir, catalog, config) if processes.is_main() else {}

    inputs = {"catalog": config.catalog, **{f"external {name}": path for name, path in files.items()}}
    inputs |= {"append": config.append} if config.append is not None else {}
    out = run_stage("embed", config, inputs, build, reused=[TFIDF_FILE, *(name + SUFFIX for name in config.views)])
    result = read_manifest(out)["counts"]
    return {"out": str(out), **result}


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    for name, view in result["views"].items():
        tell(f"{name}: {view['dim']} dimensions, {view['missing']} of {result['num_items']} items missing")
    tell(f"Written to {result['out']}")


def check(config: EmbedConfig) -> None:
    """Refuse a config that cannot work, with every problem at once.

    Raises:
        ValueError: If options cannot work, or this machine does not have the device.
    """
    problems, given = external_problems(config), external_files(config)
    if not config.views or len(set(config.views)) < len(config.views):
        problems.append(f"views is {config.views}; name each view at most once, and one at least")
    known = [*VIEW_NAMES, *given, *(config.views if config.append else [])]
    for name in config.views:
        if name not in known:
            problems.append(f"views is {config.views}; there is no '{name}': {suggestion(name, known)}")
    if "text" in config.views and config.text_encoder is None:
        problems.append(f"text_encoder is needed for the view 'text': a sentence-transformers model or '{TFIDF}'")
    if "sasrec" in config.views and config.collaborative_dim % 2:
        problems.append(f"collaborative_dim is {config.collaborative_dim}; the two heads of 'sasrec' need an even one")
    if "famae" in config.views and config.famae_dim % HEADS:
        problems.append(f"famae_dim is {config.famae_dim}; the heads of 'famae' need a multiple of {HEADS}")
    if problems:
        raise ValueError("; ".join(problems) + ".")
    resolve_device(config.device)


def external_files(config: EmbedConfig) -> dict[str, str]:
    """Name -> path of every entry of `config.external` that is well-formed."""
    return {match[1]: match[2] for match in map(EXTERNAL.fullmatch, config.external) if match}


def external_problems(config: EmbedConfig) -> list[str]:
    """Sentences about entries of `config.external` that cannot work, whatever their files hold."""
    problems: list[str] = []
    seen: set[str | None] = set()
    for entry in config.external:
        match = EXTERNAL.fullmatch(entry)
        name = match[1] if match else None
        if name is None:
            problems.append(f"external '{entry}' is not name=path, with a name of letters, digits, _ and -")
        elif name in VIEW_NAMES:
            problems.append(f"external '{entry}' has the name of a view of llmrec's own; choose another")
        elif name in seen:
            problems.append(f"external names '{name}' twice; give every file a name of its own")
        elif name not in config.views:
            problems.append(f"external gives '{name}', but views is {config.views}; add it there")
        seen.add(name)
    return problems


def settled(config: EmbedConfig, old: OldViews) -> EmbedConfig:
    """Options with those that the old views have decided already.

    Raises:
        ValueError: If another value was given for one of them.
    """
    text = old.views["text"].provenance if "text" in old.views else {}
    kept: JsonObject = {"views": list(old.views)}
    kept |= {"text_encoder": text["encoder"], "text_template": text["template"]} if "encoder" in text else {}
    default = {"views": EmbedConfig(out="", catalog="").views, "text_encoder": None, "text_template": "{text}"}
    given = {name: getattr(config, name) for name in kept}
    wrong = [name for name, value in given.items() if value not in (default[name], kept[name])]
    if wrong:
        said = ", ".join(f"{name} is {given[name]!r}, there {kept[name]!r}" for name in wrong)
        raise ValueError(f"'{old.directory}' was made with other options, which append keeps: {said}. Leave these out.")
    return dataclasses.replace(config, **kept)


def build_view(
    name: str,
    config: EmbedConfig,
    catalog: Catalog,
    external: Mapping[str, View],
    workdir: Path,
    old: OldViews | None = None,
) -> View | None:
    """Build one view, or let an old one grow; None in processes that have no part in it, or only helped to build it."""
    if old is None:
        return fitted_view(name, config, catalog, external, workdir)
    new = None
    if name == "text" and config.text_encoder == TFIDF:
        model = Tfidf.load(old.directory)
        model.save(workdir)
        new = new_tfidf_view(catalog, config.text_template, model, old.num_items)
    elif name == "text" and config.text_encoder is not None:
        encoder = load_encoder(config.text_encoder, config.device)
        new = encoder_view(
            catalog, encoder, config.text_encoder, config.text_template, config.batch_size, workdir / SCRATCH,
            old.num_items,
        )  # fmt: skip
    elif name == "geographic":
        new = geographic_view(catalog, FREQUENCIES)
    return old.grown(name, external.get(name, new), catalog) if processes.is_main() else None


def fitted_view(
    name: str, config: EmbedConfig, catalog: Catalog, external: Mapping[str, View], workdir: Path
) -> View | None:
    """Build one view from a whole catalogue; None as in `build_view`."""
    dim, seed, encoder = config.collaborative_dim, config.seed, config.text_encoder
    if name == "text" and encoder is not None and encoder != TFIDF:
        model = load_encoder(encoder, config.device)
        return encoder_view(catalog, model, encoder, config.text_template, config.batch_size, workdir / SCRATCH)
    # Views that are trained, in every process: they would otherwise wait for the first one longer than they may.
    if name == "famae":
        return famae_view(catalog, config.famae_dim, seed, config.device)
    if name in TRAINED:
        return TRAINED[name](catalog, dim, seed, config.device)
    if not processes.is_main():
        return None
    if name == "text":
        return tfidf_view(catalog, config.text_template, TFIDF_DIM, seed, keep=workdir)
    if name == "spatial":
        return spatial_view(catalog, dim, NEIGHBOURS, seed)
    if name == "geographic":
        return geographic_view(catalog, FREQUENCIES)
    if name == "collaborative":
        return collaborative_view(catalog, dim, WINDOW, seed)
    return external[name]


def counts(workdir: Path, catalog: Catalog, config: EmbedConfig) -> JsonObject:
    """Facts about the views for the manifest, read from the files themselves, which checks them once more."""
    views = ItemViews.load(workdir, catalog, config.views)
    facts = {name: {"dim": v.vectors.shape[1], "missing": int(v.missing.sum())} for name, v in views.items()}
    return {"num_items": catalog.num_items, "views": facts, "seconds": seconds_of(workdir)}


def note_seconds(workdir: Path, name: str, seconds: float) -> None:
    """Keep the seconds of a view: a killed run does not build it again, and the cost of semantic IDs includes it."""
    (workdir / SCRATCH).mkdir(exist_ok=True)
    write_json(workdir / SCRATCH / SECONDS, {**seconds_of(workdir), name: round(seconds, 1)})


def seconds_of(workdir: Path) -> dict[str, float]:
    """View -> seconds of the attempt that built it, for the views built so far."""
    file = workdir / SCRATCH / SECONDS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
