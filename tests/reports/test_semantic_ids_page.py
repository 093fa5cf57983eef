"""The page of `llmrec tokenize`: well-formed, self-contained, with every table, and safe with any title."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from llmrec import diagnostics
from llmrec.diagnostics.tables import tables
from llmrec.reports.semantic_ids import render
from llmrec.sid.table import SidTable
from tests.diagnostics.test_diagnostics import build_catalog
from tests.reports.test_evaluation_page import Balanced


@pytest.fixture
def tokenized():
    """Catalogue with odd titles, SIDs and report."""
    rng = np.random.default_rng(0)
    titles = ["<script>alert(1)</script> & more", "", *(f"title {row}" for row in range(2, 40))]
    catalog = build_catalog(40, rng.integers(0, 37, (30, 6)).tolist(), title=titles)
    codes = rng.integers(0, 4, (40, 3))
    table = SidTable(catalog.item_ids, codes)
    vectors = torch.from_numpy(rng.normal(size=(40, 8))).float()

    def of(rows: np.ndarray) -> torch.Tensor:
        return vectors[rows]

    report = diagnostics.report(catalog, None, table, codes, [4, 4, 4], of, of, 0)
    return catalog, table, report


def page_of(tokenized, **changes) -> str:
    catalog, table, report = tokenized
    return render({**report, **changes}, catalog, table, "sid & more")


def test_the_page_is_well_formed_and_has_every_table(tokenized):
    page = Balanced(page_of(tokenized, notes=["a note <of> the stage"]))
    assert {"Semantic IDs of sid & more", "Use of the levels", "a note <of> the stage"} <= {*page.texts}
    found = tables(tokenized[2])
    assert len(found) == 7 and all(part.title in page.texts for part in found)
    assert page.tags.count("svg") == 3 and page.tags.count("table") == len(found)


def test_every_table_says_what_it_shows(tokenized):
    page = page_of(tokenized)
    assert len(re.findall(r"</h2>\s*<p>\w", page)) == page.count("<h2>") - 1  # the plots of the levels have captions


def test_the_page_needs_nothing_outside_itself(tokenized):
    page = page_of(tokenized)
    found = Balanced(page)
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(found.tags)
    assert not {"src", "href", "xlink:href", "onload"} & {name for name, _ in found.attributes}
    assert not re.search(r"https?:|//\w|url\(|@import|nan", page)


def test_titles_stand_under_their_prefix(tokenized):
    catalog, table, _ = tokenized
    codes = table.codes(np.arange(40))
    largest = int(np.bincount(codes[:, 0]).argmax())
    rows = np.flatnonzero(codes[:, 0] == largest)
    texts = Balanced(page_of(tokenized)).texts
    headings = [text for text in texts if re.fullmatch(r"\(\d+\) \d+ items?", text)]
    assert headings[0] == f"({largest}) {len(rows)} items" and len(headings) == 3
    start = texts.index(f"({largest}) {len(rows)} items")
    second = int(np.bincount(codes[rows, 1]).argmax())
    below = rows[codes[rows, 1] == second]
    assert texts[start + 1] == f"({largest}, {second}) {len(below)} item{'s' * (len(below) > 1)}"
    assert texts[start + 2] == (catalog.titles[below[0]] or catalog.item_ids[below[0]])


def test_one_item_has_a_page():
    catalog, codes = build_catalog(1, []), np.zeros((1, 1), int)
    table = SidTable(catalog.item_ids, codes)
    report = diagnostics.report(catalog, None, table, codes, [1], None, None, 0)
    assert "(0) 1 item" in Balanced(render(report, catalog, table, "one")).texts
