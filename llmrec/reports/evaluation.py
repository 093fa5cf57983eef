"""The page of `llmrec evaluate`, from metrics.json and the training log."""

from __future__ import annotations

from collections.abc import Sequence

from llmrec.evaluation.exact import EXACT, lines
from llmrec.evaluation.learning import CUTOFF, NEAR, Point
from llmrec.evaluation.metrics import SHOWN, SLOT_METRICS, shown_names
from llmrec.evaluation.protocol import COLUMNS
from llmrec.evaluation.summary import OURS
from llmrec.evaluation.tables import NOT_VALIDATED, overlap_notes, reference_of, sample_notes, slots_line, strata_of
from llmrec.evaluation.verdict import MIXTURE, SERVED, of_evaluation
from llmrec.reports.ensemble import choice
from llmrec.reports.pages import Estimate, Figure, Table, render_page
from llmrec.reports.svg import COLOURS, Line, plot, short
from llmrec.runtime.manifest import JsonObject

TITLES = {
    "plain": "Plain: any item may be returned",
    "seen_excluded": "Seen excluded: items of the history are masked",
}
AXES = {"popularity": "decile of the target's training popularity", "history": "items in the history"}
KINDS = {"transition": "step from the last item to the target", "beam": "what the beam of ours found"}
UNITS = {"supervised": "items trained on", "seconds": "seconds, with validation"}


def render(
    metrics: JsonObject, training_log: Sequence[JsonObject], name: str, ensemble: JsonObject | None = None
) -> str:
    """Render the page.

    Args:
        metrics: Content of metrics.json.
        training_log: Content of the checkpoint's training_log.json; empty if it has none.
        name: Name of the evaluation.
        ensemble: Content of ensemble.json if ours is a mixture, which has no SIDs of its own.
    """
    curves = metrics.get("learning", {})  # absent from older evaluations
    known = {system: curve for system, curve in curves.items() if curve}
    return render_page(
        "evaluation.html.jinja",
        f"Evaluation of {name}",
        metrics=metrics,
        verdict=of_evaluation(metrics, *([] if ensemble is None else [MIXTURE])),
        overlap=[*overlap_notes(metrics), *sample_notes(metrics)],
        answers=_answers(metrics),
        k=max(metrics["k"]),
        trained=_trained(metrics.get("trained")),
        results=[_results(metrics, column) for column in COLUMNS],
        learning=_learning(known, _colours(metrics)) if known else None,
        reference=reference_of(metrics),
        not_validated=NOT_VALIDATED if OURS in curves and OURS not in known else None,
        training=_training(training_log),
        strata=_strata(metrics),
        exposure=_exposure(metrics),
        ensemble=None if ensemble is None else choice(ensemble),
        sid_usage=_sid_usage(metrics["sid_usage"]) if metrics.get("sid_usage") else None,
        exact=_exact(metrics.get(EXACT)),
    )


def _answers(metrics: JsonObject) -> JsonObject | None:
    """Recommendations for a few users, in the column with the better results; None in older evaluations."""
    if not metrics.get("examples"):
        return None
    reference, name = reference_of(metrics), f"ndcg@{max(metrics['k'])}"
    column = max(COLUMNS, key=lambda column: metrics["systems"][reference][column][name])
    users = [
        {
            "user_id": example["user_id"],
            "history": [title or item_id for item_id, title in example["history"]],
            "target": example["target"][1] or example["target"][0],
            "recommended": [
                {"title": title or item_id, "is_target": item_id == example["target"][0]}
                for item_id, title in example["recommended"][column]
            ],
        }
        for example in metrics["examples"]
    ]
    return {"served": SERVED[column], "users": users}


def _trained(identity: JsonObject | None) -> dict[str, str] | None:
    """Stage and settings that made the checkpoint."""
    if identity is None:
        return None
    settings = "\n".join(f"{key}: {value}" for key, value in identity.get("config", {}).items())
    return {"stage": identity["stage"], "settings": settings}


def _results(metrics: JsonObject, column: str) -> JsonObject:
    """Tables of one column: every system, and the differences to the baselines."""
    names = shown_names(metrics["k"])
    systems = [
        [system, *(Estimate(columns[column][name], *columns[column]["intervals"][name]) for name in names)]
        for system, columns in metrics["systems"].items()
    ]
    differences = [
        [baseline, *(Estimate(**entry, is_difference=True) for entry in columns[column].values())]
        for baseline, columns in metrics["differences"].items()
    ]
    at_largest = [f"{name}@{max(metrics['k'])}" for name in SHOWN]
    return {
        "title": TITLES[column],
        "systems": Table(["system", *names], systems),
        "slots": slots_line(metrics, column),
        "differences": Table(["baseline", *at_largest], differences) if differences else None,
    }


def _learning(curves: JsonObject, colours: dict[str, str]) -> JsonObject:
    """Learning curves over trained items and over seconds, and the cost of coming near the best value."""
    drawn = {
        unit: [learning_curve(system, curve["curve"], unit, colours[system]) for system, curve in curves.items()]
        for unit in UNITS
    }
    table = []
    for system, curve in curves.items():
        near, last = curve["near"], curve["curve"][-1]
        needed = [f"{near[unit]:,.0f}" if near else "-" for unit in UNITS]
        table.append([system, f"{curve['best']:.4f}", *needed, *(f"{last[unit]:,.0f}" for unit in UNITS)])
    until = f"to {NEAR:.0%} of it"
    header = ["system", f"best valid ndcg@{CUTOFF}", f"items {until}", f"seconds {until}", "all items", "all seconds"]
    return {
        "legend": drawn["seconds"],
        "figures": [
            Figure(f"valid ndcg@{CUTOFF} over {axis}", plot(drawn[unit], axis, log_x=True))
            for unit, axis in UNITS.items()
        ],
        "table": Table(header, table),
    }


def learning_curve(name: str, points: Sequence[Point], unit: str, colour: str) -> Line:
    """Line of a learning curve over one of UNITS; the axis is logarithmic and has no 0."""
    return Line(name, [max(p[unit], 1e-3) for p in points], [p["ndcg"] for p in points], colour)


def _training(log: Sequence[JsonObject]) -> Figure | None:
    """Training loss over the steps; None if the log has none."""
    entries = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    if not entries:
        return None
    steps, losses = zip(*entries, strict=True)
    return Figure("training loss", plot([Line("loss", steps, losses, COLOURS[0])], "optimiser step", from_zero=False))


def _strata(metrics: JsonObject) -> JsonObject:
    """The shown metrics of every system: drawn where strata are in order, as tables where they are of several kinds."""
    families, drawn = [], list[Line]()
    for family, axis in AXES.items():
        strata = [stratum for stratum in metrics["strata"] if stratum["family"] == family]
        ticks = [f"{s['name'].removeprefix('decile ')}\n{short(s['num_examples'])}" for s in strata]
        figures = []
        for name in (f"{metric}@{max(metrics['k'])}" for metric in SHOWN):
            for column in COLUMNS:
                drawn = [
                    _with_interval(
                        system,
                        colour,
                        [s["systems"][system][column][name] for s in strata],
                        system == reference_of(metrics),
                    )
                    for system, colour in _colours(metrics).items()
                ]
                figures.append(Figure(f"{name}, {column}", plot(drawn, axis, ticks)))
        if OURS in metrics["systems"]:
            figures.append(_in_beam(strata, axis, ticks))
        families.append({"axis": axis, "figures": figures})
    kinds = [
        {"title": title, "tables": [_kinds(metrics, family, column) for column in COLUMNS]}
        for family, title in KINDS.items()
        if family != "beam" or OURS in metrics["systems"]
    ]
    return {"legend": drawn, "families": families, "kinds": kinds}


def _in_beam(strata: Sequence[JsonObject], axis: str, ticks: Sequence[str]) -> Figure:
    """Share of the targets of each stratum that the beam of ours found, in both columns."""
    shares = [
        Line(column, range(len(strata)), [s["in_beam"][column] for s in strata], COLOURS[0], dashed=bool(number))
        for number, column in enumerate(COLUMNS)
    ]
    return Figure("share of the targets that the beam of ours found", plot(shares, axis, ticks), shares)


def _kinds(metrics: JsonObject, family: str, column: str) -> Table:
    """Table of the strata of a family in one column: a line for each system and metric."""
    strata = [stratum for stratum in strata_of(metrics, column) if stratum["family"] == family]
    lines: list[list[str | Estimate]] = [
        ["share of the examples", "", *(f"{s['num_examples'] / metrics['num_examples']:.1%}" for s in strata)],
    ]
    if OURS in metrics["systems"]:
        lines.append(["targets in the beam", "", *(f"{s['in_beam'][column]:.1%}" for s in strata)])
    for name in (f"{metric}@{max(metrics['k'])}" for metric in SHOWN):
        for system in metrics["systems"]:
            lines.append([system, name, *(Estimate(**s["systems"][system][column][name]) for s in strata)])
    return Table([column, "metric", *(stratum["name"] for stratum in strata)], lines)


def _with_interval(system: str, colour: str, entries: Sequence[dict[str, float]], is_reference: bool) -> Line:
    """Line of one system. Only the intervals of the reference are drawn, because all of them would hide one another."""
    low, high = ([entry[end] for entry in entries] if is_reference else () for end in ("low", "high"))
    return Line(system, range(len(entries)), [entry["mean"] for entry in entries], colour, low, high)


def _exposure(metrics: JsonObject) -> JsonObject:
    """Shares of the popularity bins in the shown items, and the metrics of the shown items."""
    bins, figures, drawn = metrics["exposure"], [], list[Line]()
    ticks = [f"{b['name'].removeprefix('decile ')}\n{short(b['num_items'])}" for b in bins]
    x = range(len(bins))
    fixed = [
        Line("training interactions", x, [b["training_share"] for b in bins], "#000", dashed=True),
        Line("targets", x, [b["target_share"] for b in bins], "#999", dashed=True),
    ]
    for column in COLUMNS:
        drawn = [
            Line(system, x, [b["slot_share"][system][column] for b in bins], colour)
            for system, colour in _colours(metrics).items()
        ] + fixed
        svg = plot(drawn, "decile of training popularity", ticks)
        figures.append(Figure(f"share of the shown items, {column}", svg))
    names = [f"{name}@{max(metrics['k'])}" for name in SLOT_METRICS]
    header = ["system", *(name.replace("_", " ") for name in names)]
    tables = {
        column: [[system, *(f"{of[column][name]:.3f}" for name in names)] for system, of in metrics["systems"].items()]
        for column in COLUMNS
    }
    columns = [{"name": column, "table": Table(header, table)} for column, table in tables.items()]
    return {"legend": drawn, "figures": figures, "columns": columns}


def _sid_usage(levels: Sequence[JsonObject]) -> JsonObject:
    """Codes of each level in the catalogue and in what ours shows."""
    names = {"catalog": "catalogue", **{column: f"shown by ours, {column}" for column in COLUMNS}}
    styles = {"catalog": ("#000", False), "plain": (COLOURS[0], False), "seen_excluded": (COLOURS[0], True)}
    drawn = []
    for name, (colour, dashed) in styles.items():
        share = [level[name]["effective"] / level["codebook_size"] for level in levels]
        drawn.append(Line(names[name], range(len(levels)), share, colour, dashed=dashed))
    table = [
        [f"level {level['level']}", str(level["codebook_size"])]
        + [f"{level[name]['used']} / {level[name]['effective']:.1f}" for name in names]
        for level in levels
    ]
    ticks = [f"level {level['level']}\n{level['codebook_size']} codes" for level in levels]
    return {
        "legend": drawn,
        "figure": Figure("effective codes as a share of the codebook", plot(drawn, "", ticks)),
        "table": Table(["used / effective", "codes", *names.values()], table),
    }


def _exact(measured: JsonObject | None) -> JsonObject | None:
    """Table of the exact ranking and the beam; None if no example was ranked exactly."""
    if not measured:
        return None
    header, rows = lines(measured)
    table = Table(header, [[name, *(f"{value:.4f}" for value in values)] for name, values in rows])
    return {"num_examples": measured["num_examples"], "table": table}


def _colours(metrics: JsonObject) -> dict[str, str]:
    """Colour of each system, the same throughout the page."""
    return {system: COLOURS[i % len(COLOURS)] for i, system in enumerate(metrics["systems"])}
