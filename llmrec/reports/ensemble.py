"""The part of a page that says which mixture `llmrec ensemble` chose, from ensemble.json."""

from __future__ import annotations

from llmrec.evaluation.protocol import COLUMNS
from llmrec.reports.pages import Figure, Table
from llmrec.reports.svg import COLOURS, Line, plot
from llmrec.runtime.manifest import JsonObject

SHOWN = (*COLUMNS, "mean")


def written(mixture: JsonObject) -> str:
    """A mixture of ensemble.json in a few words.

    >>> written({"way": "probabilities", "weights": [0.3, 0.7]})
    'probabilities, weights 0.3 0.7'
    >>> written({"way": "gate", "steepness": 5, "threshold": 0.2})
    'gate, steepness 5, threshold 0.2'
    """
    if "weights" in mixture:
        return f"{mixture['way']}, weights {' '.join(f'{weight:.3g}' for weight in mixture['weights'])}"
    return f"{mixture['way']}, steepness {mixture['steepness']:g}, threshold {mixture['threshold']:g}"


def choice(result: JsonObject) -> JsonObject:
    """The members, the best mixture of each way, and, for two members, quality over the share of the first.

    Args:
        result: Content of ensemble.json.
    """
    lines = [(member["name"], member["valid"]) for member in result["members"]]
    lines += [(written(one), one["valid"]) for one in result["best_by_way"]]
    table = [[name, *(f"{valid[column]:.4f}" for column in SHOWN)] for name, valid in lines]
    return {
        "mixture": written(result["mixture"]),
        "num_valid": result["num_valid"],
        "metric": result["metric"],
        "members": [member["name"] for member in result["members"]],
        "table": Table(["member or mixture", *SHOWN], table),
        "figure": _over_share(result),
    }


def _over_share(result: JsonObject) -> Figure | None:
    """Quality on valid over the share of the first of two members; None for more members, or the gate alone."""
    drawn = []
    for colour, way in zip(COLOURS, dict.fromkeys(one["way"] for one in result["grid"]), strict=False):
        points = sorted((one["weights"][0], one["valid"]["mean"]) for one in result["grid"]
                        if one["way"] == way and len(one.get("weights", ())) == 2)  # fmt: skip
        if points:
            shares, values = zip(*points, strict=True)
            drawn.append(Line(way, shares, values, colour))
    if not drawn:
        return None
    axis = f"share of {result['members'][0]['name']}"
    return Figure(f"valid {result['metric']}, mean of both columns", plot(drawn, axis, from_zero=False), drawn)
