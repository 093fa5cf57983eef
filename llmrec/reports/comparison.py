"""The page of `llmrec compare`."""

from __future__ import annotations

from html import escape

from llmrec.evaluation.protocol import COLUMNS
from llmrec.reports.evaluation import TITLES, _difference, _estimate
from llmrec.reports.html import page, table
from llmrec.runtime.manifest import JsonObject


def render(result: JsonObject) -> str:
    """The page of `llmrec compare`, from what `llmrec.evaluation.compare.compare` returned."""
    reference = next(iter(result["systems"]))
    sections = [
        f"<p>{result['num_examples']:,} {escape(result['split'])} examples of {result['num_users']:,} users. Brackets "
        "are 95 % intervals over users; sd is the standard deviation over training seeds. A bold difference has an "
        "interval without 0.</p>"
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
        text = f"<h2>{TITLES[column]}</h2>{table(['run', 'seeds', *names], rows)}"
        if differences:
            text += f"<h3>Difference to {escape(reference)}, paired over users</h3>"
            text += table(["run", *names], differences)
        sections.append(text)
    return page("Comparison of runs", sections)
