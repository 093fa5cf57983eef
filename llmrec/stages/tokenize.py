"""tokenize: catalogue + views -> a semantic ID for every item, and a report on their quality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmrec import collisions, diagnostics, processes
from llmrec.artifact import run_stage
from llmrec.catalog import Catalog
from llmrec.configs import TokenizeConfig
from llmrec.manifest import write_json
from llmrec.sid import SidTable
from llmrec.tokenizers import TOKENIZERS
from llmrec.views import ItemViews, view_files

REPORT = "report.json"


def main(config: TokenizeConfig) -> dict[str, Any]:
    """Fit the item tokenizer, encode the catalogue, resolve collisions, report.

    Returns:
        out and the content of report.json.
    """
    check(config)
    catalog = Catalog.load(config.catalog)
    files = view_files(config.views, config.view_names)
    tokenizer = TOKENIZERS[config.method].from_config(config)
    collisions.check_capacity(config.collision, catalog.num_items, tokenizer.level_sizes)

    def build(workdir: Path) -> dict[str, Any]:
        if not processes.is_main():
            return {}
        views = ItemViews.load(config.views, catalog, config.view_names)
        encoded = tokenizer.fit(catalog, views).encode(catalog, views)
        codes, level_sizes, notes = collisions.resolve(config.collision, encoded, tokenizer.level_sizes)
        sid_table = SidTable(catalog.item_ids, codes, level_sizes=level_sizes)
        report = {
            "num_items": catalog.num_items,
            "items_without_any_view": int((~views.known).sum()),
            "sid_sha256": sid_table.sha256,
            "expected_collision_rate": collisions.expected_collision_rate(catalog.num_items, tokenizer.level_sizes),
            "before_policy": diagnostics.collision_report(encoded.codes),
            "after_policy": diagnostics.collision_report(codes),
            "levels": diagnostics.level_report(sid_table),
            "reconstruction_cosine": encoded.reconstruction_cosine,
            "notes": notes,
        }
        sid_table.save(workdir)
        tokenizer.save_pretrained(workdir)
        write_json(workdir / REPORT, report)
        return {"num_items": catalog.num_items, "num_levels": sid_table.num_levels, "level_sizes": level_sizes}

    # A view file may have been added to the directory by hand: its content is part of what the codes depend on.
    inputs = {"catalog": config.catalog, "views": config.views, **{f"view {name}": f for name, f in files.items()}}
    out = run_stage("tokenize", config, inputs, build)
    report = json.loads((out / REPORT).read_text(encoding="utf-8"))
    diagnostics.show(report)
    return {"out": str(out), **report}


def check(config: TokenizeConfig) -> None:
    """Refuse a config that cannot work, with every problem at once.

    Raises:
        ValueError: If names and weights of views do not go together.
    """
    problems, names, weights = [], config.view_names, config.view_weights
    if names is not None and len(set(names)) < len(names):
        problems.append(f"view_names is {names}; name each view once")
    if weights is not None and (names is None or len(weights) != len(names)):
        problems.append(f"view_weights is {weights} for view_names {names}; give one weight per name")
    if weights is not None and not all(0 < weight < float("inf") for weight in weights):
        problems.append(f"view_weights is {weights}; positive numbers are needed")
    if problems:
        raise ValueError("; ".join(problems) + ".")
