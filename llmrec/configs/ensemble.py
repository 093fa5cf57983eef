"""Options of `llmrec ensemble`."""

from __future__ import annotations

import typing
from dataclasses import dataclass

from llmrec.configs.options import Config, StageConfig, option, suggestion
from llmrec.configs.recommend import RankBy

RANK_BY = typing.get_args(RankBy)
WAYS = ("probabilities", "ranks", "scores", "gate")  # from simple to complex


@dataclass(kw_only=True)
class EnsembleConfig(StageConfig, Config):
    """Mix the rankings of finished models: valid examples choose the mixture, test examples measure it."""

    catalog: str = option("Directory written by `llmrec prepare`.")
    members: list[str] = option(
        "Two or more directories to mix: checkpoints of any training stage, and rankers of `llmrec teach`. The gate "
        "trusts the first one.",
        identity=False,
    )
    rank_by: list[str] | None = option(
        f"What each of `members` ranks by: {', '.join(RANK_BY)}, as for `rank` of `llmrec evaluate`; sid for a ranker "
        "of `llmrec teach`, which has no choice. The default is sid for all.",
        None,
    )
    names: list[str] | None = option("A name for each of `members`. The default is the path.", None)
    ways: list[str] | None = option(
        f"Ways to mix of which the valid examples choose one: {', '.join(WAYS)}. The default is all; the gate is for "
        "two members only.",
        None,
    )
    k: list[int] = option("Cut-offs of the metrics.", [5, 10], least=1)
    depth: int | None = option(
        "Number of items that each member contributes for an example, and beam width of a checkpoint. The default is "
        "min(items, max(50, 5k)).",
        None,
        least=1,
    )
    max_examples: int | None = option(
        "Use only random samples of this size of the valid and of the test examples. The default is all.", None, least=1
    )
    batch_size: int = option("Number of examples decoded together on one device.", 64, identity=False, least=1)
    device: str = option("Device of the members: auto, cpu or cuda.", "auto", identity=False)

    @property
    def ranked_by(self) -> list[RankBy]:
        """Scores that each member ranks by."""
        return typing.cast("list[RankBy]", self.rank_by) or ["sid"] * len(self.members)

    @property
    def labels(self) -> list[str]:
        """Name of each member in the results."""
        pairs = zip(self.members, self.ranked_by, strict=True)
        return self.names or [path if by == "sid" else f"{path} ({by})" for path, by in pairs]

    def problems(self) -> list[str]:
        """Sentences about options that do not go together."""
        found = []
        if self.rank_by is not None:
            if len(self.rank_by) != len(self.members):
                return [f"'rank_by' has {len(self.rank_by)} values for {len(self.members)} members; give one for each"]
            unknown = [by for by in self.rank_by if by not in RANK_BY]
            found += [f"unknown rank_by '{by}'; {suggestion(by, RANK_BY)}" for by in unknown]
        if len(self.members) < 2:
            found.append(f"'members' is {self.members}; two or more are needed for an ensemble")
        if self.names is not None and len(self.names) != len(self.members):
            found.append(f"'names' has {len(self.names)} names for {len(self.members)} members; give one for each")
        repeated = sorted({name for name in self.labels if self.labels.count(name) > 1})
        if repeated:
            found.append(f"'{'names' if self.names else 'members'}' repeats {', '.join(repeated)}; each counts once")
        for way in self.ways or ():
            if way not in WAYS:
                found.append(f"unknown way '{way}'; {suggestion(way, WAYS)}")
        if self.ways == [] or len(set(self.ways or ())) < len(self.ways or ()):
            found.append(f"'ways' is {self.ways}; one or more different ways are needed")
        if "gate" in (self.ways or ()) and len(self.members) > 2:
            found.append(f"the gate mixes two members, not {len(self.members)}; leave it out of 'ways'")
        if not self.k or len(set(self.k)) < len(self.k):
            found.append(f"'k' is {self.k}; one or more different integers are needed")
        elif self.depth is not None and self.depth < max(self.k):
            found.append(f"'depth' is {self.depth}; {max(self.k)} or more are needed to fill k = {self.k}")
        return found
