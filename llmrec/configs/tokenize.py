"""Options of `llmrec tokenize`, which the options of the item tokenizer that is named complete."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from llmrec.configs.options import StageConfig, copied, option

if TYPE_CHECKING:
    from llmrec.tokenizers import ItemTokenizer


@dataclass(kw_only=True)
class TokenizeConfig(StageConfig):
    """Learn a semantic ID for every item from its views."""

    out: str | None = option("Directory to write; needed without `compare`.", None, identity=False)
    catalog: str | None = option("Directory written by `llmrec prepare`; needed without `compare`.", None)
    views: str | None = option(
        "Directory written by `llmrec embed`; p5_cid, atomic, random and sorted read it for the report alone.", None
    )
    view_names: list[str] | None = option("Views to use; all of the directory when left out.", None)
    method: Literal[
        "rq_kmeans",
        "rq_kmeans_plus",
        "rvq",
        "rq_vae",
        "cost",
        "letter",
        "simcit",
        "etegrec",
        "opq",
        "fsq",
        "hierarchical_kmeans",
        "gaoq",
        "p5_cid",
        "atomic",
        "random",
        "sorted",
    ] = option(
        "Item tokenizer; each has options of its own, which `--help` lists for the one that is named.", "rq_kmeans"
    )
    collision: Literal[
        "suffix_ordinal", "suffix_if_collided", "sinkhorn_reassign", "knn_cap", "hungarian_leaf", "accept"
    ] = option("How items with equal codes become distinct.", "suffix_ordinal")
    allow_collapse: bool = option("Keep semantic IDs of which a level uses hardly any codes.", False)
    append: str | None = option(
        "Directory of published semantic IDs, whose tokenizer gives the new items of `catalog` theirs; its method, "
        "views, options and collision policy hold.",
        None,
    )
    compare: list[str] | None = option("Directories to set beside each other, instead of making one.", None)
    device: str = option("Device of the tokenizer: auto, cpu or cuda.", "auto", identity=False)

    renamed: ClassVar[dict[str, str]] = {
        "probe": "removed: the probe is an experiment now, scripts/experiments/probe; it changed no decision",
    }

    @classmethod
    def completed(cls, given: dict[str, Any]) -> type[TokenizeConfig]:
        """With the options of the method, which its class declares; loads torch."""
        from llmrec.tokenizers import TOKENIZERS

        method = given.get("method", cls.method)
        if cls is not TokenizeConfig or method not in TOKENIZERS:
            return cls
        own, hints = {f.name for f in dataclasses.fields(cls)}, typing.get_type_hints(TOKENIZERS[method])
        return dataclasses.make_dataclass(
            cls.__name__,
            [(f.name, hints[f.name], copied(f)) for f in dataclasses.fields(TOKENIZERS[method]) if f.name not in own],
            bases=(cls,),
            kw_only=True,
            namespace={"__doc__": cls.__doc__, "__module__": cls.__module__},
        )

    def tokenizer(self) -> ItemTokenizer:
        """The tokenizer that the options describe, not fitted."""
        from llmrec.tokenizers import TOKENIZERS

        kind = TOKENIZERS[self.method]
        return kind(**{f.name: getattr(self, f.name) for f in dataclasses.fields(kind)})

    def problems(self) -> list[str]:
        needed = () if self.compare else ("out", "catalog")
        problems = [f"'{name}' is required" for name in needed if getattr(self, name) is None]
        names = self.view_names
        if names is not None and len(set(names)) < len(names):
            problems.append(f"view_names is {names}; name each view once")
        if type(self) is not TokenizeConfig:
            try:
                self.tokenizer()
            except ValueError as error:
                problems.append(str(error).removesuffix("."))
        return problems
