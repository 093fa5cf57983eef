"""Pages of HTML from the templates in `llmrec/reports/templates`, and the parts that a template shows.

A page loads no script, no font and no image, so that it reads the same in ten years and without a network. Templates
escape every text; only the drawings of `llmrec.reports.svg` are inserted as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jinja2

from llmrec.reports.svg import Line


class Estimate(NamedTuple):
    """A number with its interval, as a cell of a table.

    Attributes:
        mean: The number.
        low: Lower end of the interval.
        high: Upper end of the interval.
        sd: Standard deviation over training seeds, if there are several.
        is_difference: True for a difference, which is shown with its sign.
    """

    mean: float
    low: float
    high: float
    sd: float | None = None
    is_difference: bool = False

    @property
    def is_clear(self) -> bool:
        """True for a difference whose interval excludes 0."""
        return self.is_difference and (self.low > 0 or self.high < 0)

    def shown(self, value: float) -> str:
        """One of the numbers as text."""
        return f"{value:+.4f}" if self.is_difference else f"{value:.4f}"


class Table(NamedTuple):
    """A table.

    Attributes:
        header: Names of the columns.
        lines: Cells of each line; the first cell is text.
    """

    header: Sequence[str]
    lines: Sequence[Sequence[str | Estimate]]


class Figure(NamedTuple):
    """A drawing under its caption.

    Attributes:
        caption: Caption.
        svg: Drawing by `llmrec.reports.svg`.
        legend: Lines that a legend above the drawing names.
    """

    caption: str
    svg: str
    legend: Sequence[Line] = ()


def render_page(template: str, title: str, **data: object) -> str:
    """Render a template.

    Args:
        template: File in `templates`.
        title: Title of the page.
        data: The names that the template uses; one that is missing raises an error.

    Returns:
        The page as HTML.
    """
    return _environment().get_template(template).render(title=title, **data)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("llmrec.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"count": "{:,}".format, "fixed": "{:.4f}".format, "share": "{:.2%}".format}
    return environment
