"""The page of `llmrec tokenize`: plots and tables of a report, and titles under prefixes.

Shapes: N items, L levels.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.diagnostics.judgements import judgements
from llmrec.diagnostics.tables import Cell, ReportTable, facts, level_name, tables
from llmrec.reports.pages import Figure, Table, render_page
from llmrec.reports.svg import COLOURS, Line, plot
from llmrec.reports.tokenizer_training import trainings
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.table import EMPTY, SidTable

RANKS = 40  # points of a rank plot
SECOND_CODES, TITLES = 5, 4  # second codes shown of each first code, and titles shown of each second code


def render(report: JsonObject, catalog: Catalog, sid_table: SidTable, name: str) -> str:
    """Render the page.

    Args:
        report: Result of `llmrec.diagnostics.report`; `notes` and `training` are shown if it has them.
        catalog: Catalogue with the titles of the items.
        sid_table: The semantic IDs.
        name: Name of the semantic IDs.
    """
    codes_NL = sid_table.codes(np.arange(sid_table.num_items))
    return render_page(
        "semantic_ids.html.jinja",
        f"Semantic IDs of {name}",
        judgements=judgements(report),
        facts=facts(report),
        levels=_levels(report, codes_NL),
        tables=[_table(part) for part in tables(report)],
        trainings=trainings(report.get("training")),
        prefixes=_prefixes(catalog, codes_NL),
        second_codes=SECOND_CODES,
        titles_of_each=TITLES,
    )


def _table(part: ReportTable) -> JsonObject:
    table = Table(part.header, [[_text(cell) for cell in row] for row in part.rows])
    return {"title": part.title, "note": part.note, "table": table}


def _text(value: Cell) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def _levels(report: JsonObject, codes_NL: np.ndarray) -> list[Figure]:
    """Use of the codes, conditional entropy, and the share of the items under the most frequent codes."""
    levels = report["levels"]
    ticks = [f"level {level_name(report, of)}\n{of['codebook_size']} codes" for of in levels]
    x = range(len(levels))
    use = [
        Line("codes used", x, [of["usage"] for of in levels], COLOURS[1]),
        Line("perplexity / codes", x, [of["perplexity_share"] or 0.0 for of in levels], COLOURS[0]),
    ]
    entropy = [Line("uniform items", x, [of["conditional_entropy_bits"] for of in levels], COLOURS[0])]
    training = [of["training"]["conditional_entropy_bits"] for of in levels]
    if None not in training:
        entropy.append(Line("training interactions", x, training, COLOURS[1], dashed=True))
    ranked = [
        _ranked(level, codes_N[codes_N != EMPTY]) for level, codes_N in enumerate(codes_NL.T) if (codes_N >= 0).any()
    ]
    return [
        Figure("share of the codes of each level", plot(use, "", ticks), use),
        Figure("entropy given the prefix, bits", plot(entropy, "", ticks), entropy),
        Figure(
            "share of the items that have one of the most frequent codes",
            plot(ranked, "number of codes", log_x=True),
            ranked,
        ),
    ]


def _ranked(level: int, codes: np.ndarray) -> Line:
    """Share of the items that have one of the n most frequent codes of a level, over n."""
    counts = np.sort(np.unique(codes, return_counts=True)[1])[::-1]
    ranks = np.unique(np.geomspace(1, len(counts), RANKS).round().astype(int))
    share = np.cumsum(counts)[ranks - 1] / counts.sum()
    return Line(f"level {level}", ranks.tolist(), share.tolist(), COLOURS[level % len(COLOURS)])


def _prefixes(catalog: Catalog, codes_NL: np.ndarray) -> list[JsonObject]:
    """A large, a middle and a small first code, and titles of items under each."""
    codes, counts = np.unique(codes_NL[:, 0], return_counts=True)
    by_size = codes[np.argsort(-counts, kind="stable")].tolist()
    selected = dict.fromkeys(by_size[len(by_size) * tenths // 10] for tenths in (0, 5, 9))  # few codes: once each
    prefixes = []
    for code in selected:
        rows = np.flatnonzero(codes_NL[:, 0] == code)
        prefixes.append({"name": _heading([code], len(rows)), "below": _below(catalog, codes_NL, rows)})
    return prefixes


def _below(catalog: Catalog, codes_NL: np.ndarray, rows: np.ndarray) -> list[JsonObject]:
    """The largest second codes among the items of one first code, with titles.

    Args:
        catalog: Catalogue with the titles.
        codes_NL: (N, L) codes.
        rows: Item rows of the items with the first code.
    """
    seconds = codes_NL[rows, 1] if codes_NL.shape[1] > 1 else np.full(len(rows), EMPTY)
    codes, counts = np.unique(seconds, return_counts=True)
    below = []
    for second in np.argsort(-counts, kind="stable")[:SECOND_CODES]:
        of_second = rows[seconds == codes[second]]
        titles = [catalog.titles[row] or catalog.item_ids[row] for row in of_second[:TITLES]]
        below.append({"name": _heading(codes_NL[of_second[0], :2], len(of_second)), "titles": titles})
    return below


def _heading(codes: Iterable[int], num_items: int) -> str:
    prefix = ", ".join(str(code) for code in codes if code != EMPTY)
    return f"({prefix}) {num_items:,} item{'s' * (num_items != 1)}"
