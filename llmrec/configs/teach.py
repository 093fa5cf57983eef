"""Options of `llmrec teach`; those of the ranker that `ranker` names stand in the block `options`."""

from __future__ import annotations

from dataclasses import dataclass

from llmrec.configs.evaluate import BASELINES, COUNTED
from llmrec.configs.options import Config, StageConfig, option, suggestion

MIXTURE, SCORES, GRAPH, CCFREC = "mixture", "scores", "transition_graph", "ccfrec"
RANKERS = (*BASELINES, CCFREC, MIXTURE, SCORES)
# Option -> the rankers that read it.
READ_BY = {
    "members": (MIXTURE,),
    "scores": (SCORES,),
    "sid": (CCFREC,),
    "views": (GRAPH, CCFREC),
    "view_names": (GRAPH, CCFREC),
}


@dataclass(kw_only=True)
class TeachConfig(StageConfig, Config):
    """Fit a classical ranker once and keep it, to be compared with, to be mixed, and to teach the LLM."""

    catalog: str = option("Directory written by `llmrec prepare`.")
    ranker: str = option(
        f"Ranker to fit: {', '.join(RANKERS)}. Each has options of its own, which `--help` lists for the ranker that "
        "is named."
    )
    options: dict[str, object] = option(
        "Options of the ranker: a block in YAML, and flags of their own on the command line.", {}
    )
    search: bool | None = option(
        "Choose on valid examples those options of item_knn and transition_graph that are not given, instead of taking "
        "the defaults. The default is true for the counted rankers.",
        None,
    )
    members: list[str] | None = option(
        "Two or more directories written by `llmrec teach`, which the ranker mixture mixes; valid examples choose the "
        "weights.",
        None,
        identity=False,
    )
    scores: str | None = option(
        "Parquet file with scores of your own for the ranker scores: user_id, position, item_id, score.", None
    )
    sid: str | None = option(
        "Directory written by `llmrec tokenize`, of whose codes ccfrec makes items; the paper has 20 levels of opq.",
        None,
    )
    views: str | None = option(
        "Directory written by `llmrec embed`. transition_graph compares items by its vectors, by default by the words "
        "of their text; ccfrec reads each view as one text of the items.",
        None,
    )
    view_names: list[str] | None = option("Views to use. The default is all views of the directory.", None)
    device: str = option("Device of the ranker: auto, cpu or cuda.", "auto", identity=False)

    def problems(self) -> list[str]:
        """Sentences about options that do not go together."""
        if self.ranker not in RANKERS:
            return [f"unknown ranker '{self.ranker}'; {suggestion(self.ranker, RANKERS)}"]
        found = [
            f"'{name}' is for the ranker {' or '.join(readers)}, not for {self.ranker}; leave it out"
            for name, readers in READ_BY.items()
            if getattr(self, name) is not None and self.ranker not in readers
        ]
        if self.search and self.ranker not in COUNTED:
            found.append(
                f"'search' is for the counted rankers {', '.join(COUNTED)}, not for {self.ranker}; leave it out"
            )
        if self.ranker == MIXTURE and len(self.members or ()) < 2:
            found.append(f"members is {self.members}; a mixture needs two or more directories of `llmrec teach`")
        if self.ranker == SCORES and self.scores is None:
            found.append("'scores' is needed: a parquet file with user_id, position, item_id and score")
        if self.ranker == CCFREC and self.sid is None:
            found.append("'sid' is needed: a directory of `llmrec tokenize`, such as of opq with num_levels 20")
        if self.view_names is not None and self.views is None:
            found.append("'views' is needed with view_names: a directory written by `llmrec embed`")
        return found
