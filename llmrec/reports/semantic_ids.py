"""report.html of `llmrec tokenize`: plots and tables of a report, a map of the items, titles under prefixes.

It is made like the page of an evaluation, and like it loads nothing from anywhere.

Shapes: N items, L levels, n items on the map.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from html import escape
from typing import Any

import numpy as np
from torch.nn.functional import normalize

from llmrec.data.catalog import Catalog
from llmrec.diagnostics.cold_start import find_category
from llmrec.diagnostics.item_map import GREY, MAX_POINTS, Point, coordinates, scatter
from llmrec.diagnostics.sample import Vectors, draw
from llmrec.diagnostics.terminal import facts, tables
from llmrec.reports.html import figure, grid, page, table
from llmrec.reports.svg import COLOURS, Line, legend, plot
from llmrec.reports.tokenizer_training import training_section
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.table import EMPTY, SidTable

RANKS = 40  # points of a rank plot
SECOND_CODES, TITLES = 5, 4  # shown of each first code, and of each second code below it
NOTES = {
    "Collisions": "Items in shared SIDs are those that no SID tells apart. The expected bucket is the number of items "
    "that share the SID of a random training interaction's item; Gini is 0 where all SIDs have equally many items.",
    "Codes per level": "Of uniformly drawn items. Perplexity is 2^entropy, the number of equally frequent codes that "
    "would be as varied.",
    "Prefix tree": "Entropy of a code given the codes before it: of uniformly drawn items, where distinct SIDs add up "
    "to log2 of the items whatever the tokenizer, and of training interactions (Miller-Madow corrected).",
    "Share of": "Behaviour neighbours stand within five steps of an item in training sequences, up to ten of the most "
    "frequent; text neighbours are the ten nearest by the view 'text'; vectors are what was quantised. Ties share the "
    "last places.",
    "Offsets": "Mean cosine of child - parent centroid offsets of children that have one code under different parents. "
    "Above the permuted value, a code means something of its own; near it, a code means something below its parent "
    "only.",
    "Target's code": "Share of training targets whose code at a level is among those of the history, against targets "
    "drawn by training popularity.",
    "Items by": "Distance to the nearest mean of the items with training interactions that share a first code; and how "
    "far the items of the longest common prefix share the category (Jaccard), beside all items.",
}


def render(
    report: JsonObject, catalog: Catalog, sid_table: SidTable, vectors: Vectors | None, seed: int, name: str
) -> str:
    """The page.

    Args:
        report: As `llmrec.diagnostics.report` returns it; `notes` and `training` are shown where it has them.
        catalog: Titles and categories of the items.
        sid_table: The semantic IDs.
        vectors: Item rows (n,) -> (n, D), what was quantised; no map is drawn without them.
        seed: Of the map and the items on it.
        name: What was judged.
    """
    codes_NL = sid_table.codes(np.arange(sid_table.num_items))
    sections = [
        "".join(f"<p>{escape(line)}</p>" for line in facts(report)),
        _levels(report["levels"], codes_NL),
        *(_section(*of) for of in tables(report)),
        training_section(report.get("training")),
        _map(catalog, codes_NL, vectors, seed),
        _titles(catalog, codes_NL),
    ]
    return page(f"Semantic IDs of {name}", sections)


def _section(title: str, header: tuple[str, ...], rows: list[list[Any]]) -> str:
    note = next((note for start, note in NOTES.items() if title.startswith(start)), "")
    cells = [[_cell(cell) for cell in row] for row in rows]
    return f"<h2>{escape(title)}</h2><p>{escape(note)}</p>{table(header, cells)}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else escape(value)


def _levels(levels: list[JsonObject], codes_NL: np.ndarray) -> str:
    ticks = [f"level {of['level']}\n{of['codebook_size']} codes" for of in levels]
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
    drawn = [
        legend(use) + figure("share of the codes of each level", plot(use, "", ticks)),
        legend(entropy) + figure("entropy given the prefix, bits", plot(entropy, "", ticks)),
        legend(ranked)
        + figure("share of the items that the most frequent codes hold", plot(ranked, "number of codes", log_x=True)),
    ]
    return f"<h2>Use of the levels</h2>{grid(drawn)}"


def _ranked(level: int, codes: np.ndarray) -> Line:
    """Share of the items that so many of a level's codes hold, the most frequent first."""
    counts = np.sort(np.unique(codes, return_counts=True)[1])[::-1]
    ranks = np.unique(np.geomspace(1, len(counts), RANKS).round().astype(int))
    share = np.cumsum(counts)[ranks - 1] / counts.sum()
    return Line(f"level {level}", ranks.tolist(), share.tolist(), COLOURS[level % len(COLOURS)])


def _map(catalog: Catalog, codes_NL: np.ndarray, vectors: Vectors | None, seed: int) -> str:
    if vectors is None:
        return "<h2>Map of the items</h2><p>This method has no vectors to draw a map of.</p>"
    rows = draw(catalog.num_items, vectors, None, seed).rows
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MAX_POINTS])
    places = coordinates(normalize(vectors(rows).detach().cpu().float(), dim=1), seed) if len(rows) else None
    if places is None:
        return "<h2>Map of the items</h2><p>The items have too few distinct vectors for a map.</p>"
    titles = [f"{_sid(codes_NL[row])} {_name(catalog, row)}" for row in rows]

    def drawn(caption: str, colours: list[str], titles: list[str]) -> str:
        points = zip(places[:, 0].tolist(), places[:, 1].tolist(), colours, titles, strict=True)
        return figure(caption, scatter([Point(*point) for point in points]))

    maps = [drawn("by first code", [_hue(code) for code in codes_NL[rows, 0].tolist()], titles)]
    category = find_category(catalog)
    if category is not None:
        labels = [category.labels[row] for row in rows]
        colour_of = dict(zip((label for label, _ in _common(labels)), COLOURS, strict=False))
        shown = [Line(label, (), (), colour) for label, colour in colour_of.items()]
        coloured = [colour_of.get(label, GREY) for label in labels]
        tips = [f"{title} ({label})" for title, label in zip(titles, labels, strict=True)]
        caption = f"by {category.name}: the first of an item, the {len(shown)} most frequent; grey are the others"
        maps.append(drawn(caption, coloured, tips) + legend(shown))
    note = (
        f"<p>t-SNE of the vectors that were quantised, of {len(rows):,} items drawn with seed {seed}: near items have "
        "like vectors; what lies far apart, and how large a group is drawn, says nothing. Each first code has a colour "
        "of its own, though with many codes some look alike. A pointer on an item shows its SID and title.</p>"
    )
    return f"<h2>Map of the items</h2>{note}{grid(maps)}"


def _common(labels: list[str | None]) -> list[tuple[str, int]]:
    return Counter(label for label in labels if label is not None).most_common(len(COLOURS) - 1)


def _hue(code: int) -> str:
    """A colour for every code; the golden ratio keeps those of successive codes apart."""
    red, green, blue = colorsys.hls_to_rgb(code * 0.618034 % 1, (0.35, 0.5, 0.62)[code % 3], 0.75)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _titles(catalog: Catalog, codes_NL: np.ndarray) -> str:
    codes, counts = np.unique(codes_NL[:, 0], return_counts=True)
    by_size = codes[np.argsort(-counts, kind="stable")].tolist()
    chosen = dict.fromkeys([by_size[len(by_size) * tenths // 10] for tenths in (0, 5, 9)])  # few codes: once each
    parts = []
    for code in chosen:
        rows = np.flatnonzero(codes_NL[:, 0] == code)
        parts.append(f"<h3>{_sid([code])} {_items(len(rows))}</h3>{_under(catalog, codes_NL, rows)}")
    note = (
        f"<p>The first code with the most items, the one in the middle, and one that nine tenths are larger than; the "
        f"{SECOND_CODES} largest second codes below each, and {TITLES} titles of each.</p>"
    )
    return f"<h2>Titles under a prefix</h2>{note}{grid(parts)}"


def _under(catalog: Catalog, codes_NL: np.ndarray, rows: np.ndarray) -> str:
    """Titles of some items of one first code, by their second codes."""
    seconds = codes_NL[rows, 1] if codes_NL.shape[1] > 1 else np.full(len(rows), EMPTY)
    codes, counts = np.unique(seconds, return_counts=True)
    text = ""
    for second in np.argsort(-counts, kind="stable")[:SECOND_CODES]:
        below = rows[seconds == codes[second]]
        names = "".join(f"<li>{escape(_name(catalog, row))}</li>" for row in below[:TITLES])
        text += f"<p>{_sid(codes_NL[below[0], :2])} {_items(len(below))}</p><ul>{names}</ul>"
    return text


def _items(count: int) -> str:
    return f"{count:,} item{'s' * (count != 1)}"


def _sid(codes: Any) -> str:
    return f"({', '.join(str(code) for code in codes if code != EMPTY)})"


def _name(catalog: Catalog, row: int) -> str:
    return catalog.titles[row] or catalog.item_ids[row]
