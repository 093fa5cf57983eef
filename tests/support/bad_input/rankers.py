"""teach, and the directories that it writes where other stages read them."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from . import Break, Case
from .damage import cut, json_values, parquet, resealed, tensors, text, unfinished


def scores(*lines: tuple[object, ...], **renamed: str) -> Break:
    """A parquet file of scores: user, position, item and score of each line."""

    def write(path: Path) -> None:
        schema = {"user_id": pl.String, "position": pl.Int64, "item_id": pl.String, "score": pl.Float64}
        pl.DataFrame(lines, schema=schema, orient="row").rename(renamed).write_parquet(path)

    return write


def no_valid(path: Path) -> None:
    """A catalogue whose valid examples became test examples."""

    def change(table):
        labels = ["test" if label == "valid" else label for label in table["split"].to_pylist()]
        return table.set_column(table.column_names.index("split"), "split", [labels])

    resealed(parquet("split.parquet", change))(path)


def nan(found):
    found["values"][0] = float("nan")
    return found


MIX = "teach --ranker mixture --members @ranker"
OWN = "teach --ranker scores --scores @own.parquet"

CASES = {
    "no ranker": Case("teach", ("'ranker' is required: Ranker to fit",)),
    "unknown ranker": Case("teach --ranker sasrek", ("unknown ranker 'sasrek'", "did you mean 'sasrec'")),
    "unknown option of a ranker": Case(
        "teach --ranker sasrec --hiden 8", ("unknown key 'hiden'", "did you mean 'hidden'")
    ),
    "option of another ranker": Case("teach --ranker markov --hidden 8", ("unknown key 'hidden'",)),
    "hidden that heads cannot share": Case("teach --ranker sasrec --hidden 7", ("hidden is 7", "a multiple of 2")),
    "power of nothing": Case("teach --ranker markov --power 0", ("power is 0", "more than 0 is needed")),
    "no device": Case("teach --ranker markov --device abacus", ("Unknown device 'abacus'",)),
    "mixture of nothing": Case("teach --ranker mixture", ("members is None", "two or more directories")),
    "mixture of one": Case(MIX, ("a mixture needs two or more directories of `llmrec teach`",)),
    "mixture of the same": Case(f"{MIX} @ranker", ("are the same; each counts once",)),
    "member that does not exist": Case(f"{MIX} @absent", ("absent' is not a directory that llmrec finished",)),
    "member that is a catalogue": Case(f"{MIX} @catalog", ("written by `llmrec prepare`", "`llmrec teach` is needed")),
    "member that is unfinished": Case(f"{MIX} @catalog", ("ranker' is unfinished",), {"ranker": unfinished}),
    "member of another catalogue": Case(
        f"{MIX} @other_ranker --catalog @other", ("taught on another catalogue than", "Run `llmrec teach` on this one")
    ),
    "members of a ranker that mixes nothing": Case(
        "teach --ranker markov --members @ranker", ("'members' is for the ranker mixture, not for markov",)
    ),
    "views of a ranker that reads none": Case(
        "teach --ranker markov --views @views", ("'views' is for the ranker transition_graph",)
    ),
    "search for a network": Case("teach --ranker sasrec --search true", ("'search' is for the counted rankers",)),
    "valid of nothing": Case(
        "teach --ranker markov", ("has no 'valid' examples", "teach measures a ranker", "k_core"), {"catalog": no_valid}
    ),
    "valid of nothing for a network": Case(
        "teach --ranker gru4rec", ("has no 'valid' examples", "chooses its epoch"), {"catalog": no_valid}
    ),
    "scores of nothing": Case("teach --ranker scores", ("'scores' is needed: a parquet file",)),
    "scores that do not exist": Case(OWN, ("own.parquet' does not exist",)),
    "scores that are no parquet": Case(
        OWN, ("own.parquet' is not a parquet file",), {"own.parquet": text("user,item")}
    ),
    "scores without lines": Case(OWN, ("own.parquet has no lines",), {"own.parquet": scores()}),
    "scores in another column": Case(
        OWN, ("lacks the columns ['score']", "it has"), {"own.parquet": scores(("u", 0, "i", 1.0), score="points")}
    ),
    "scores of an unknown user": Case(
        OWN, ("names 1 users that", "first: ['nobody']"), {"own.parquet": scores(("nobody", 0, "item-0", 1.0))}
    ),
    "scores of an unknown item": Case(
        OWN,
        ("own.parquet: 1 item ids are not in", "['no such item']"),
        {"own.parquet": scores(("user-0", 0, "no such item", 1.0))},
    ),
    "scores that are no number": Case(
        OWN,
        ("own.parquet has 1 scores that are no finite number",),
        {"own.parquet": scores(("user-0", 0, "item-0", float("nan")))},
    ),
    "changed ranker": Case(
        "evaluate --baselines @ranker", ("ranker.json was changed", "llmrec teach"), {"ranker": cut("ranker.json")}
    ),
    "ranker of another catalogue": Case(
        "evaluate --baselines @ranker",
        ("taught on another catalogue",),
        {"ranker": resealed(json_values("ranker.json", catalog_sha256="0"))},
    ),
    "ranker that is not finite": Case(
        "evaluate --baselines @ranker",
        ("holds no whole ranker", "are not finite"),
        {"ranker": resealed(tensors("ranker.safetensors", nan))},
    ),
    "checkpoint as a baseline": Case("evaluate --baselines @checkpoint", ("written by `llmrec sft`", "`llmrec teach`")),
}
