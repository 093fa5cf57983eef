"""Pages of HTML that need nothing else: head, tables, figures.

No script, no font, no image is loaded: a page reads the same in ten years and on a machine without a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

HIGHLIGHTED = "ours"  # first cell of a row that stands out
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


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page of sections; empty ones are left out."""
    title = escape(title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    body = f"<h1>{title}</h1>{''.join(f'<section>{part}</section>' for part in parts if part)}"
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>{body}</body></html>\n'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls by itself; first cells are text, the others HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = []
    for first, *cells in rows:
        of_ours = ' class="ours"' if first == HIGHLIGHTED else ""
        body.append(f"<tr{of_ours}><td>{escape(first)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def figure(caption: str, drawn: str) -> str:
    """A drawing under its caption."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{drawn}</figure>"


def grid(parts: Sequence[str]) -> str:
    """Parts beside each other, as many as fit."""
    return f'<div class="plots">{"".join(f"<div>{part}</div>" for part in parts)}</div>'
