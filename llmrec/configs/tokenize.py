"""Options of `llmrec tokenize`; those of the item tokenizer that `method` names stand in the block `options`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmrec.configs.options import Config, StageConfig, option

Collision = Literal["suffix_ordinal", "suffix_if_collided", "sinkhorn_reassign", "hungarian_leaf", "accept"]


@dataclass(kw_only=True)
class TokenizeConfig(StageConfig, Config):
    """Learn a semantic ID for every item from its views."""

    out: str = option("Directory to write; needed without `compare`.", "", identity=False)
    catalog: str = option("Directory written by `llmrec prepare`; needed without `compare`.", "")
    views: str | None = option(
        "Directory written by `llmrec embed`; p5_cid, titles, keywords, atomic, random and sorted read it for the "
        "report only.",
        None,
    )
    view_names: list[str] | None = option("Views to use. The default is all views of the directory.", None)
    method: str = option(
        "Item tokenizer. Each has options of its own, which `--help` lists for the method that is named.", "rq_kmeans"
    )
    options: dict[str, object] = option(
        "Options of the method: a block in YAML, and flags of their own on the command line.", {}
    )
    collision: Collision | None = option(
        "Policy for items with equal codes; docs/tokenize.md describes each. The default is suffix_ordinal, or accept "
        "for a method that tells items apart itself.",
        None,
    )
    allow_collapse: bool = option(
        "Accept a level that uses less than a tenth of its codes. Without this, the stage fails.", False
    )
    append: str | None = option(
        "Directory of published semantic IDs. Its tokenizer gives semantic IDs to the new items of `catalog`, with the "
        "same method, views, options and collision policy; others are refused.",
        None,
    )
    compare: list[str] | None = option("Compare the reports of these directories, and make no semantic IDs.", None)
    device: str = option("Device of the tokenizer: auto, cpu or cuda.", "auto", identity=False)

    renamed: ClassVar[dict[str, str]] = {
        "probe": "removed: the probe is an experiment now, scripts/experiments/probe; it changed no decision",
    }

    renamed_values: ClassVar[dict[str, dict[str, str]]] = {
        "collision": {"knn_cap": "removed: no recipe or paper here caps shared codes; use suffix_ordinal"},
    }

    def problems(self) -> list[str]:
        needed = () if self.compare else ("out", "catalog")
        problems = [f"'{name}' is required" for name in needed if not getattr(self, name)]
        names = self.view_names
        if names is not None and len(set(names)) < len(names):
            problems.append(f"view_names is {names}; name each view once")
        return problems
