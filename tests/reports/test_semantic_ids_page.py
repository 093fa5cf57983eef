"""The page of `llmrec tokenize`: well-formed, self-contained, with every table, and safe with any title."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from llmrec import diagnostics
from llmrec.diagnostics import item_map
from llmrec.diagnostics.item_map import GREY, Point, coordinates, scatter
from llmrec.diagnostics.terminal import tables
from llmrec.reports.semantic_ids import render
from llmrec.sid.table import SidTable
from tests.diagnostics.test_diagnostics import build_catalog
from tests.reports.test_evaluation_page import Balanced


@pytest.fixture(autouse=True)
def few_iterations(monkeypatch):
    monkeypatch.setattr(item_map, "ITERATIONS", 250)  # the fewest that scikit-learn takes


@pytest.fixture
def judged():
    """Catalogue with odd titles and brands, SIDs, report and vectors."""
    rng = np.random.default_rng(0)
    brands = [f"<brand {i % 12}>" if i % 4 else None for i in range(40)]
    catalog = build_catalog(40, rng.integers(0, 37, (30, 6)).tolist(), brand=brands)
    catalog.titles[:2] = ["<script>alert(1)</script> & more", ""]
    codes = rng.integers(0, 4, (40, 3))
    table = SidTable(catalog.item_ids, codes)
    vectors = torch.from_numpy(rng.normal(size=(40, 8))).float()

    def of(rows: np.ndarray) -> torch.Tensor:
        return vectors[rows]

    report = diagnostics.report(catalog, None, table, codes, [4, 4, 4], of, of, 0)
    return catalog, table, report, of


def page_of(judged, vectors="given", **changes) -> str:
    catalog, table, report, of = judged
    return render({**report, **changes}, catalog, table, of if vectors == "given" else vectors, 0, "sid & more")


def test_the_page_is_well_formed_and_has_every_table(judged):
    page = Balanced(page_of(judged, notes=["a note <of> the stage"]))
    assert {"Semantic IDs of sid & more", "Use of the levels", "Map of the items", "a note <of> the stage"} <= {
        *page.texts
    }
    found = tables(judged[2])
    assert len(found) == 7 and all(title in page.texts for title, _, _ in found)
    assert page.tags.count("svg") == 3 + 2 and page.tags.count("table") == len(found)


def test_every_table_says_what_it_shows(judged):
    page = page_of(judged)
    assert len(re.findall(r"</h2><p>\w", page)) == page.count("<h2>") - 1  # the plots of the levels have captions


def test_the_page_needs_nothing_outside_itself(judged):
    page = page_of(judged)
    found = Balanced(page)
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(found.tags)
    assert not {"src", "href", "xlink:href", "onload"} & {name for name, _ in found.attributes}
    assert not re.search(r"https?:|//\w|url\(|@import|nan", page)


def test_the_map_names_each_item_and_its_category(judged):
    table = judged[1]
    texts = Balanced(page_of(judged)).texts
    sid = f"({', '.join(map(str, table.codes([0])[0]))})"
    assert f"{sid} <script>alert(1)</script> & more" in texts
    assert any(text.endswith("item-1 (<brand 1>)") for text in texts)  # an item without a title has its item_id
    assert sum(text.startswith("by brand") for text in texts) == 1


def test_titles_stand_under_their_prefix(judged):
    catalog, table, _, _ = judged
    codes = table.codes(np.arange(40))
    largest = int(np.bincount(codes[:, 0]).argmax())
    rows = np.flatnonzero(codes[:, 0] == largest)
    texts = Balanced(page_of(judged)).texts
    headings = [text for text in texts if re.fullmatch(r"\(\d+\) \d+ items?", text)]
    assert headings[0] == f"({largest}) {len(rows)} items" and len(headings) == 3
    start = texts.index(f"({largest}) {len(rows)} items")
    second = int(np.bincount(codes[rows, 1]).argmax())
    below = rows[codes[rows, 1] == second]
    assert texts[start + 1] == f"({largest}, {second}) {len(below)} item{'s' * (len(below) > 1)}"
    assert texts[start + 2] == (catalog.titles[below[0]] or catalog.item_ids[below[0]])


def test_without_vectors_the_page_says_that_there_is_no_map(judged):
    page = Balanced(page_of(judged, vectors=None))
    assert "This method has no vectors to draw a map of." in page.texts and page.tags.count("svg") == 3
    equal = Balanced(page_of(judged, vectors=lambda rows: torch.ones(len(rows), 2)))
    assert "The items have too few distinct vectors for a map." in equal.texts


def test_one_item_has_a_page():
    catalog, codes = build_catalog(1, []), np.zeros((1, 1), int)
    table = SidTable(catalog.item_ids, codes)
    report = diagnostics.report(catalog, None, table, codes, [1], None, None, 0)
    assert "(0) 1 item" in Balanced(render(report, catalog, table, None, 0, "one")).texts


def test_groups_of_vectors_are_groups_on_the_map():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.cat([torch.randn(30, 5, generator=generator) * 0.1 + 5 * torch.eye(5)[group] for group in range(2)])
    places = coordinates(vectors, seed=0)
    distance = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(distance, np.inf)
    assert ((distance.argmin(axis=1) < 30) == (np.arange(60) < 30)).all()
    assert np.array_equal(places, coordinates(vectors, seed=0))


def test_one_dimension_and_few_items_are_drawn_or_refused():
    assert coordinates(torch.arange(6.0)[:, None], seed=0).shape == (6, 2)
    assert coordinates(torch.randn(3, 4), seed=0) is None


def test_points_lie_within_the_drawing_and_grey_ones_below():
    drawn = scatter([Point(0, 0, "red", "a"), Point(10, 5, GREY, "b"), Point(5, -5, "red", "c")])
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="(.+?)" cy="(.+?)"', drawn)]
    assert places == [(452, 452), (8, 230), (230, 8)]  # b, a, c in a square of 460 with a margin of 8
