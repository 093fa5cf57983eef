"""embed: catalogue -> one file of item vectors per view."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmrec import processes
from llmrec.artifact import SCRATCH, run_stage
from llmrec.catalog import Catalog
from llmrec.configs import EmbedConfig
from llmrec.console import say
from llmrec.device import resolve_device
from llmrec.manifest import read_manifest
from llmrec.views import SUFFIX, ItemViews, View
from llmrec.views.collaborative import collaborative_view
from llmrec.views.text import TFIDF, encoder_view, load_encoder, render_texts, tfidf_view

VIEWS = ("text", "collaborative")


def main(config: EmbedConfig) -> dict[str, Any]:
    """Build every view of `config.views` that the output directory does not have yet.

    Returns:
        out, num_items and, per view, its dimension and number of missing items.
    """
    check(config)
    catalog = Catalog.load(config.catalog)
    if "text" in config.views:
        render_texts(catalog, config.text_template)

    def build(workdir: Path) -> dict[str, Any]:
        for name in config.views:
            file = workdir / (name + SUFFIX)
            view = None if file.exists() else build_view(name, config, catalog, workdir / SCRATCH)
            if view is not None:
                view.save(file)
        return counts(workdir, catalog, config) if processes.is_main() else {}

    out = run_stage("embed", config, {"catalog": config.catalog}, build)
    result = read_manifest(out)["counts"]
    for name, view in result["views"].items():
        say(f"{name}: {view['dim']} dimensions, {view['missing']} of {result['num_items']} items missing")
    return {"out": str(out), **result}


def check(config: EmbedConfig) -> None:
    """Refuse a config that cannot work, with every problem at once.

    Raises:
        ValueError: If an option is at fault, or the device is not here.
    """
    problems = []
    if not config.views or len(set(config.views)) < len(config.views) or set(config.views) - set(VIEWS):
        problems.append(f"views is {config.views}; name each of {', '.join(VIEWS)} at most once, and one at least")
    if "text" in config.views and config.text_encoder is None:
        problems.append(f"text_encoder is needed for the view 'text': a sentence-transformers model or '{TFIDF}'")
    if problems:
        raise ValueError("; ".join(problems) + ".")
    resolve_device(config.device)


def build_view(name: str, config: EmbedConfig, catalog: Catalog, scratch: Path) -> View | None:
    """One view; None in the processes that only helped to build it."""
    if name == "text" and config.text_encoder != TFIDF:
        encoder = load_encoder(config.text_encoder, config.device)
        return encoder_view(catalog, encoder, config.text_encoder, config.text_template, config.batch_size, scratch)
    if not processes.is_main():
        return None
    if name == "text":
        return tfidf_view(catalog, config.text_template, config.text_dim, config.seed)
    return collaborative_view(catalog, config.collaborative_dim, config.collaborative_window, config.seed)


def counts(workdir: Path, catalog: Catalog, config: EmbedConfig) -> dict[str, Any]:
    """What the manifest says of the views, from the files themselves, which are so checked once more."""
    views = ItemViews.load(workdir, catalog, config.views)
    facts = {name: {"dim": v.vectors.shape[1], "missing": int(v.missing.sum())} for name, v in views.items()}
    return {"num_items": catalog.num_items, "views": facts}
