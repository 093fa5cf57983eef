"""report.html of `llmrec evaluate` and the page of `llmrec compare`, from metrics.json and the training log."""

from __future__ import annotations

from html import escape

from llmrec.evaluation.exact import EXACT, lines
from llmrec.evaluation.learning import CUTOFF, NEAR
from llmrec.evaluation.protocol import COLUMNS
from llmrec.evaluation.report import NOT_VALIDATED, OURS, slots_line
from llmrec.reports.html import figure, grid, page, table
from llmrec.reports.svg import COLOURS, Line, legend, plot, short
from llmrec.runtime.manifest import JsonObject

TITLES = {"plain": "Plain: anything may be returned", "seen_excluded": "Seen excluded: items of the history are masked"}
AXES = {"popularity": "decile of the target's training popularity", "history": "items in the history"}


def render(metrics: JsonObject, training_log: list[JsonObject], name: str) -> str:
    """The page.

    Args:
        metrics: Content of metrics.json.
        training_log: Content of the checkpoint's training_log.json; empty where there is none.
        name: What was evaluated.
    """
    sections = [
        *(_headline(metrics, column) for column in COLUMNS),
        _learning(metrics.get("learning", {}), dict(_coloured(metrics))),
        _training(training_log),
        _strata(metrics),
        _popularity_bias(metrics),
        _sid_usage(metrics["sid_usage"], max(metrics["k"])),
        _exact(metrics),
    ]
    return page(f"Evaluation of {name}", [_facts(metrics) + _trained(metrics.get("trained")), *sections])


def _facts(metrics: JsonObject) -> str:
    return (
        f"<p>{metrics['num_examples']:,} {escape(metrics['split'])} examples of {metrics['num_users']:,} users; "
        f"all {metrics['num_items']:,} items are ranked; {metrics['num_beams']} beams. "
        f"{metrics['target_in_history']:.2%} of the targets are in the history. "
        f"Brackets are 95 % intervals over users ({metrics['bootstrap_samples']:,} resamples); they say nothing of "
        "other training seeds. A bold difference has an interval without 0.</p>"
    )


def _trained(identity: JsonObject | None) -> str:
    """What made the checkpoint, folded up."""
    if identity is None:
        return ""
    settings = "\n".join(f"{key}: {value}" for key, value in identity.get("config", {}).items())
    summary = f"The checkpoint is of <code>llmrec {escape(identity['stage'])}</code>, with these settings"
    return f"<details><summary>{summary}</summary><pre>{escape(settings)}</pre></details>"


def _headline(metrics: JsonObject, column: str) -> str:
    names = [*(f"{name}@{k}" for name in ("recall", "ndcg") for k in metrics["k"]), f"mrr@{max(metrics['k'])}"]
    rows = []
    for system, columns in metrics["systems"].items():
        found = columns[column]
        rows.append([system, *(_estimate(found[name], *found["intervals"][name]) for name in names)])
    text = f"<h2>{TITLES[column]}</h2>{table(['system', *names], rows)}<p>{escape(slots_line(metrics, column))}</p>"
    differences = [
        [baseline, *(_difference(found) for found in of[column].values())]
        for baseline, of in metrics["differences"].items()
    ]
    if not differences:
        return text
    header = ["baseline", *next(iter(metrics["differences"].values()))[column]]
    return f"{text}<h3>Ours - baseline, paired over users</h3>{table(header, differences)}"


def _exact(metrics: JsonObject) -> str:
    if not metrics.get(EXACT):
        return ""
    header, rows = lines(metrics[EXACT])
    note = (
        f"<p>On {metrics[EXACT]['num_examples']:,} examples every SID was scored too. found@k is the share of the "
        f"exact first k that {metrics['num_beams']} beams found.</p>"
    )
    cells = [[name, *(f"{value:.4f}" for value in values)] for name, values in rows]
    return f"<h2>What the beam costs</h2>{note}{table(header, cells)}"


def _strata(metrics: JsonObject) -> str:
    text, lines = "", []
    for family, axis in AXES.items():
        plots = []
        strata = [stratum for stratum in metrics["strata"] if stratum["family"] == family]
        ticks = [f"{s['name'].removeprefix('decile ')}\n{short(s['num_examples'])}" for s in strata]
        for name in (f"recall@{max(metrics['k'])}", f"ndcg@{max(metrics['k'])}"):
            for column in COLUMNS:
                found = {system: [s["systems"][system][column][name] for s in strata] for system in metrics["systems"]}
                lines = [_with_interval(system, colour, found[system]) for system, colour in _coloured(metrics)]
                plots.append(figure(f"{name}, {column}", plot(lines, axis, ticks)))
        text += f"<h3>By {axis}</h3>{grid(plots)}"
    note = (
        "<p>Deciles are tenths of the training interactions, 1 the least popular; cold items have none. Grey numbers "
        "count the rows; bars are the intervals of ours. A pointer on a mark shows its value and interval.</p>"
    )
    return f"<h2>By stratum</h2>{note}{legend(lines)}{text}"


def _popularity_bias(metrics: JsonObject) -> str:
    bins, plots, lines = metrics["exposure"], [], []
    ticks = [f"{b['name'].removeprefix('decile ')}\n{short(b['num_items'])}" for b in bins]
    x = range(len(bins))
    fixed = [
        Line("training interactions", x, [b["training_share"] for b in bins], "#000", dashed=True),
        Line("targets", x, [b["target_share"] for b in bins], "#999", dashed=True),
    ]
    for column in COLUMNS:
        shares = {system: [b["slot_share"][system][column] for b in bins] for system in metrics["systems"]}
        lines = [Line(system, x, shares[system], colour) for system, colour in _coloured(metrics)] + fixed
        plots.append(figure(f"share of what is shown, {column}", plot(lines, "decile of training popularity", ticks)))
    k = max(metrics["k"])
    names = [f"{name}@{k}" for name in ("coverage", "gini", "novelty", "popularity_percentile")]
    header = ["system", f"coverage@{k}", f"gini@{k}", f"novelty@{k}, bits", f"popularity percentile@{k}"]
    tables = ""
    for column in COLUMNS:
        rows = [[s, *(f"{of[column][name]:.3f}" for name in names)] for s, of in metrics["systems"].items()]
        tables += f"<h3>{column}</h3>{table(header, rows)}"
    note = (
        f"<p>Share of the first {k} places that each decile of the items gets. A system without popularity bias would "
        "follow the targets. Grey numbers count the items of a decile.</p>"
    )
    return f"<h2>Popularity bias</h2>{note}{legend(lines)}{grid(plots)}{tables}"


def _sid_usage(levels: list[JsonObject], k: int) -> str:
    names = {"catalog": "catalogue", **{column: f"shown by ours, {column}" for column in COLUMNS}}
    styles = {"catalog": ("#000", False), "plain": (COLOURS[0], False), "seen_excluded": (COLOURS[0], True)}
    lines = []
    for name, (colour, dashed) in styles.items():
        share = [level[name]["effective"] / level["codebook_size"] for level in levels]
        lines.append(Line(names[name], range(len(levels)), share, colour, dashed=dashed))
    rows = [
        [f"level {level['level']}", str(level["codebook_size"])]
        + [f"{level[name]['used']} / {level[name]['effective']:.1f}" for name in names]
        for level in levels
    ]
    note = (
        f"<p>Codes of each level that the catalogue has, and that ours shows in the first {k} places: used, and "
        "effective (2^entropy, the number of equally frequent codes that would be as varied).</p>"
    )
    ticks = [f"level {level['level']}\n{level['codebook_size']} codes" for level in levels]
    drawn = figure("effective codes over the size of the codebook", plot(lines, "", ticks))
    numbers = table(["used / effective", "codes", *names.values()], rows)
    return f"<h2>SID usage</h2>{note}{legend(lines)}{grid([drawn])}{numbers}"


def _learning(curves: JsonObject, colours: dict[str, str]) -> str:
    known = {system: curve for system, curve in curves.items() if curve}
    missing = "" if not curves or OURS in known else f"<p>Of ours: {escape(NOT_VALIDATED)}</p>"
    if not known:
        return missing and f"<h2>Learning</h2>{missing}"
    plots, rows = [], []
    for unit, axis in {"supervised": "items trained on", "seconds": "seconds, judging included"}.items():
        lines = [_learning_line(system, curve["curve"], unit, colours[system]) for system, curve in known.items()]
        plots.append(figure(f"valid ndcg@{CUTOFF} over {axis}", plot(lines, axis, log_x=True)))
    for system, curve in known.items():
        near, last = curve["near"], curve["curve"][-1]
        needed = [f"{near[unit]:,.0f}" if near else "-" for unit in ("supervised", "seconds")]
        spent = [f"{last[unit]:,.0f}" for unit in ("supervised", "seconds")]
        rows.append([system, f"{curve['best']:.4f}", *needed, *spent])
    best, until = f"best valid ndcg@{CUTOFF}", f"to {NEAR:.0%} of it"
    header = ["system", best, f"items {until}", f"seconds {until}", "items in all", "seconds in all"]
    note = (
        "<p>On valid rows, plain. An item counts as often as it was trained on; seconds are wall time with judging, on "
        "whatever machine each system was trained on.</p>"
    )
    return f"<h2>Learning</h2>{note}{missing}{legend(lines)}{grid(plots)}{table(header, rows)}"


def _learning_line(system: str, curve: list[dict[str, float]], unit: str, colour: str) -> Line:
    places = [max(point[unit], 1e-3) for point in curve]  # the axis is logarithmic
    return Line(system, places, [point["ndcg"] for point in curve], colour)


def _training(log: list[JsonObject]) -> str:
    entries = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    if not entries:
        return ""
    steps, losses = zip(*entries, strict=True)
    drawn = plot([Line("loss", steps, losses, COLOURS[0])], "optimiser step", from_zero=False)
    return f"<h2>Training</h2>{grid([figure('training loss', drawn)])}"


def _coloured(metrics: JsonObject) -> list[tuple[str, str]]:
    """Each system with its colour, the same one throughout the page."""
    return [(system, COLOURS[i % len(COLOURS)]) for i, system in enumerate(metrics["systems"])]


def _with_interval(system: str, colour: str, found: list[dict[str, float]]) -> Line:
    """Line of one system; only ours has its intervals drawn, all of them would hide one another."""
    low, high = ([entry[end] for entry in found] if system == OURS else () for end in ("low", "high"))
    return Line(system, range(len(found)), [entry["mean"] for entry in found], colour, low, high)


def _estimate(mean: float, low: float, high: float, sd: float | None = None, sign: str = "") -> str:
    spread = "" if sd is None else f"<small>sd {sd:.4f}</small>"
    return f"{mean:{sign}.4f}<small>[{low:{sign}.4f}, {high:{sign}.4f}]</small>{spread}"


def _difference(found: dict[str, float]) -> str:
    text = _estimate(**found, sign="+")
    return f"<b>{text}</b>" if found["low"] > 0 or found["high"] < 0 else text
