"""report.html: one evaluation as a page that needs nothing else, from the content of metrics.json and the training log.

No script, no font, no image is loaded: the page reads the same in ten years and on a machine without a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from llmrec.evaluation.exact import EXACT, lines
from llmrec.evaluation.learning import CUTOFF, NEAR
from llmrec.evaluation.protocol import COLUMNS
from llmrec.evaluation.report import NOT_JUDGED, OURS, slots_line
from llmrec.evaluation.svg import COLOURS, Line, legend, plot, short

TITLES = {"plain": "Plain: anything may be returned", "seen_excluded": "Seen excluded: items of the history are masked"}
AXES = {"popularity": "decile of the target's training popularity", "history": "items in the history"}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 1180px; margin: 2em auto;
       padding: 0 1.2em; }
h1 { margin-bottom: .2em; font-size: 1.6em; overflow-wrap: anywhere; }
h2 { margin-top: 2em; border-bottom: 1px solid #ddd; } h3 { margin-bottom: .4em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6em 0 1em; }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap; background: #fff; }
th:first-child, td:first-child { position: sticky; left: 0; text-align: left; min-width: 5em; max-width: 38vw;
                                 white-space: normal; overflow-wrap: break-word; }
th { color: #555; font-weight: 600; } tr.ours td { font-weight: 600; background: #fdf3ec; }
small { display: block; color: #666; font-weight: 400; }
.plots { display: flex; flex-wrap: wrap; gap: 1em 2em; }
.plots > div { flex: 1 1 25em; min-width: 0; max-width: 540px; }
figure { margin: 0; } figcaption { font-weight: 600; } svg { width: 100%; height: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.legend { position: sticky; top: 0; z-index: 1; padding: .3em 0; background: #fff; }
.legend span { margin-right: 1.4em; white-space: nowrap; }
.legend i { display: inline-block; width: 22px; margin-right: 6px; vertical-align: middle; }
"""


def render(metrics: dict[str, Any], training_log: list[dict[str, Any]], name: str) -> str:
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
    return _page(f"Evaluation of {name}", [_facts(metrics) + _trained(metrics.get("trained")), *sections])


def render_comparison(result: dict[str, Any]) -> str:
    """The page of `llmrec compare`, from what `llmrec.evaluation.compare.compare` returned."""
    reference = next(iter(result["systems"]))
    sections = [
        f"<p>{result['num_rows']:,} {escape(result['split'])} rows of {result['num_users']:,} users. Brackets are 95 % "
        "intervals over users; sd is the standard deviation over training seeds. A bold difference has an interval "
        "without 0.</p>"
    ]
    for column in COLUMNS:
        measured = {name: of[column] for name, of in result["systems"].items()}
        names = list(measured[reference])
        rows = [
            [name, str(result["num_seeds"][name]), *(_estimate(**found[metric]) for metric in names)]
            for name, found in measured.items()
        ]
        differences = [
            [name, *(_difference(of[column][metric]) for metric in names)] for name, of in result["differences"].items()
        ]
        text = f"<h2>{TITLES[column]}</h2>{_table(['run', 'seeds', *names], rows)}"
        if differences:
            text += f"<h3>Difference to {escape(reference)}, paired over users</h3>"
            text += _table(["run", *names], differences)
        sections.append(text)
    return _page("Comparison of runs", sections)


def _page(title: str, parts: Sequence[str]) -> str:
    title = escape(title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    body = f"<h1>{title}</h1>{''.join(f'<section>{part}</section>' for part in parts if part)}"
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>{body}</body></html>\n'


def _facts(metrics: dict[str, Any]) -> str:
    return (
        f"<p>{metrics['num_rows']:,} {escape(metrics['split'])} rows of {metrics['num_users']:,} users; "
        f"all {metrics['num_items']:,} items are ranked; {metrics['num_beams']} beams. "
        f"{metrics['target_in_history']:.2%} of the targets are in the history. "
        f"Brackets are 95 % intervals over users ({metrics['bootstrap_samples']:,} resamples); they say nothing of "
        "other training seeds. A bold difference has an interval without 0.</p>"
    )


def _trained(identity: dict[str, Any] | None) -> str:
    """What made the checkpoint, folded up."""
    if identity is None:
        return ""
    settings = "\n".join(f"{key}: {value}" for key, value in identity.get("config", {}).items())
    summary = f"The checkpoint is of <code>llmrec {escape(identity['stage'])}</code>, with these settings"
    return f"<details><summary>{summary}</summary><pre>{escape(settings)}</pre></details>"


def _headline(metrics: dict[str, Any], column: str) -> str:
    names = [*(f"{name}@{k}" for name in ("recall", "ndcg") for k in metrics["k"]), f"mrr@{max(metrics['k'])}"]
    rows = []
    for system, columns in metrics["systems"].items():
        found = columns[column]
        rows.append([system, *(_estimate(found[name], *found["intervals"][name]) for name in names)])
    text = f"<h2>{TITLES[column]}</h2>{_table(['system', *names], rows)}<p>{escape(slots_line(metrics, column))}</p>"
    differences = [
        [baseline, *(_difference(found) for found in of[column].values())]
        for baseline, of in metrics["differences"].items()
    ]
    if not differences:
        return text
    header = ["baseline", *next(iter(metrics["differences"].values()))[column]]
    return f"{text}<h3>Ours - baseline, paired over users</h3>{_table(header, differences)}"


def _exact(metrics: dict[str, Any]) -> str:
    if not metrics.get(EXACT):
        return ""
    header, rows = lines(metrics[EXACT])
    note = (
        f"<p>On {metrics[EXACT]['num_rows']:,} rows every SID was scored too. found@k is the share of the exact first "
        f"k that {metrics['num_beams']} beams found.</p>"
    )
    cells = [[name, *(f"{value:.4f}" for value in values)] for name, *values in rows]
    return f"<h2>What the beam costs</h2>{note}{_table(header, cells)}"


def _strata(metrics: dict[str, Any]) -> str:
    text, lines = "", []
    for family, axis in AXES.items():
        plots = []
        strata = [stratum for stratum in metrics["strata"] if stratum["family"] == family]
        ticks = [f"{s['name'].removeprefix('decile ')}\n{short(s['num_rows'])}" for s in strata]
        for name in (f"recall@{max(metrics['k'])}", f"ndcg@{max(metrics['k'])}"):
            for column in COLUMNS:
                found = {system: [s["systems"][system][column][name] for s in strata] for system in metrics["systems"]}
                lines = [_with_interval(system, colour, found[system]) for system, colour in _coloured(metrics)]
                plots.append(_figure(f"{name}, {column}", plot(lines, axis, ticks)))
        text += f"<h3>By {axis}</h3>{_grid(plots)}"
    note = (
        "<p>Deciles are tenths of the training interactions, 1 the least popular; cold items have none. Grey numbers "
        "count the rows; bars are the intervals of ours. A pointer on a mark shows its value and interval.</p>"
    )
    return f"<h2>By stratum</h2>{note}{legend(lines)}{text}"


def _popularity_bias(metrics: dict[str, Any]) -> str:
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
        plots.append(_figure(f"share of what is shown, {column}", plot(lines, "decile of training popularity", ticks)))
    k = max(metrics["k"])
    names = [f"{name}@{k}" for name in ("coverage", "gini", "novelty", "popularity_percentile")]
    header = ["system", f"coverage@{k}", f"gini@{k}", f"novelty@{k}, bits", f"popularity percentile@{k}"]
    tables = ""
    for column in COLUMNS:
        rows = [[s, *(f"{of[column][name]:.3f}" for name in names)] for s, of in metrics["systems"].items()]
        tables += f"<h3>{column}</h3>{_table(header, rows)}"
    note = (
        f"<p>Share of the first {k} places that each decile of the items gets. A system without popularity bias would "
        "follow the targets. Grey numbers count the items of a decile.</p>"
    )
    return f"<h2>Popularity bias</h2>{note}{legend(lines)}{_grid(plots)}{tables}"


def _sid_usage(levels: list[dict[str, Any]], k: int) -> str:
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
    drawn = _figure("effective codes over the size of the codebook", plot(lines, "", ticks))
    table = _table(["used / effective", "codes", *names.values()], rows)
    return f"<h2>SID usage</h2>{note}{legend(lines)}{_grid([drawn])}{table}"


def _learning(curves: dict[str, Any], colours: dict[str, str]) -> str:
    known = {system: curve for system, curve in curves.items() if curve}
    missing = "" if not curves or OURS in known else f"<p>Of ours: {escape(NOT_JUDGED)}</p>"
    if not known:
        return missing and f"<h2>Learning</h2>{missing}"
    plots, rows = [], []
    for unit, axis in {"supervised": "items trained on", "seconds": "seconds, judging included"}.items():
        lines = [_learning_line(system, curve["curve"], unit, colours[system]) for system, curve in known.items()]
        plots.append(_figure(f"valid ndcg@{CUTOFF} over {axis}", plot(lines, axis, log_x=True)))
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
    return f"<h2>Learning</h2>{note}{missing}{legend(lines)}{_grid(plots)}{_table(header, rows)}"


def _learning_line(system: str, curve: list[dict[str, float]], unit: str, colour: str) -> Line:
    places = [max(point[unit], 1e-3) for point in curve]  # the axis is logarithmic
    return Line(system, places, [point["ndcg"] for point in curve], colour)


def _training(log: list[dict[str, Any]]) -> str:
    entries = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    if not entries:
        return ""
    steps, losses = zip(*entries, strict=True)
    drawn = plot([Line("loss", steps, losses, COLOURS[0])], "optimiser step", from_zero=False)
    return f"<h2>Training</h2>{_grid([_figure('training loss', drawn)])}"


def _coloured(metrics: dict[str, Any]) -> list[tuple[str, str]]:
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


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = []
    for first, *cells in rows:
        of_ours = ' class="ours"' if first == OURS else ""
        body.append(f"<tr{of_ours}><td>{escape(first)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _figure(caption: str, drawn: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{drawn}</figure>"


def _grid(parts: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(f"<div>{part}</div>" for part in parts)}</div>'
