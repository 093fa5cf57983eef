"""The page in headless Chromium: by keyboard alone, at 360 pixels, with hostile titles, and when the service fails.

It needs `pip install playwright` and Debian's chromium.
"""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from collections.abc import Iterator

import pyarrow as pa
import pytest
import uvicorn

from llmrec.data.catalog import Catalog
from llmrec.serve.app import create_app
from llmrec.serve.gate import Access
from llmrec.serve.page.item_index import ItemIndex
from tests.conftest import TITLES

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
HOSTILE = (
    "<img src=x onerror=window.broken=1> plum", "</li><script>window.broken=1</script> plum",
    '" onmouseover="window.broken=1 plum', "{{7*7}}${window.broken=1} plum", "plum\u202egnp.exe", "plum " + "w" * 300,
    "&lt;b&gt;plum&lt;/b&gt;", "javascript:window.broken=1 plum", "plum\n\n\tblank", "plum 😀 \u0000 zero",
    "'; DROP TABLE plum; --", "plum",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def page(browser, request):
    """A page that fails the test on an error of its scripts or of its policy, and keeps the addresses it asks."""
    sizes = getattr(request, "param", {"width": 1200, "height": 900})
    context = browser.new_context(viewport=sizes)
    opened, problems, opened_addresses = context.new_page(), [], []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda said: problems.append(said.text) if "Security Policy" in said.text else None)
    opened.on("request", lambda asked: opened_addresses.append(asked.url))
    opened.addresses = opened_addresses
    yield opened
    context.close()
    assert problems == []


class Running:
    """A service on a free port, in a thread."""

    def __init__(self, service, access=None):
        config = uvicorn.Config(create_app(service, service.limits, access), port=0, log_level="warning")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        deadline = time.monotonic() + 20
        while not self.server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        self.address = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}/"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def run(serving, generation) -> Iterator:
    """Function that starts a service whose catalogue has some titles."""
    started = []

    def start(titles=TITLES, access=None) -> Running:
        service = serving()
        columns = {
            "item_id": [f"item-{row}" for row in range(12)], "title": list(titles),
            "year": [1990 + 2 * row for row in range(12)], "kind": ["<i>fruit</i>"] * 7 + ["it's a \"drink\""] * 5,
            "note": [f"{50 + row}{'%_' if row % 2 else ' x'} " + "w" * 200 for row in range(12)],
        }  # fmt: skip
        empty = {name: pa.array([], pa.string()) for name in ("user_id", "split", "history", "target")}
        catalog = Catalog(pa.table(columns), pa.table(empty))
        service.generation = dataclasses.replace(
            generation, catalog=catalog, items=ItemIndex(generation.recommender, catalog),
        )  # fmt: skip
        started.append(Running(service, access))
        return started[-1]

    yield start
    for each in started:
        each.stop()


def add_condition(page, column: str) -> None:
    """Add the first condition, on a column."""
    page.get_by_role("button", name="Add a condition").click()
    page.get_by_label("Condition 1: column").select_option(column)


def find(page, words: str) -> None:
    """Find a title and take the first, by keyboard."""
    page.get_by_role("combobox", name="Find a title").fill(words)
    page.wait_for_selector("#found:not([hidden]) li")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")


def test_a_visitor_finds_filters_and_learns_why_by_keyboard(page, run, generation):
    service = run()
    page.goto(service.address)
    page.get_by_text("Recommendations appear here").wait_for()
    find(page, "black coffee")
    find(page, "iced")
    page.wait_for_selector(".result")
    assert page.locator("#history .title").all_inner_texts() == ["black coffee", "iced coffee"]
    expected = generation.recommender.recommend([["item-8", "item-9"]])[0][0]
    titles = page.locator(".result > .row .title")
    playwright.expect(titles).to_have_text([TITLES[int(item_id[5:])] for item_id in expected])
    assert "10 recommendations in" in page.locator("#status").inner_text()

    page.get_by_role("button", name="Add a condition").focus()
    page.keyboard.press("Enter")
    page.get_by_label("Condition 1: column").select_option("kind")
    page.get_by_label("Condition 1: value").select_option('it\'s a "drink"')
    drinks = [TITLES[int(item_id[5:])] for item_id in expected if int(item_id[5:]) >= 7]
    playwright.expect(titles).to_have_text(drinks)

    page.get_by_role("button", name=f"Why {drinks[0]}?").focus()
    page.keyboard.press("Enter")
    region = page.get_by_role("region", name=f"Why {drinks[0]}")
    region.locator(".path").wait_for()
    why = generation.recommender.explain(
        ["item-8", "item-9"], f"item-{TITLES.index(drinks[0])}", allow=[f"item-{row}" for row in range(7, 12)]
    )
    assert region.locator(".path > li").count() == len(why.path)
    assert region.locator(".branch.chosen .token").first.inner_text().startswith(why.path[0].chosen.token)
    assert region.locator(".effects li").count() == 2
    page.keyboard.press("Enter")
    assert region.is_hidden() and page.evaluate("document.activeElement.textContent") == "Why?"
    assert all(address.startswith(service.address) for address in page.addresses)


def test_a_history_can_be_pasted_changed_and_shared(page, run):
    service = run()
    page.goto(service.address)
    page.get_by_text("Paste item ids").click()
    page.get_by_label("item_ids, oldest first").fill("item-1, item-2\nmauve")
    page.get_by_role("button", name="Use these ids").click()
    page.wait_for_selector(".result")
    assert "Unknown to the model: mauve." in page.locator("#search-note").inner_text()
    assert "Left out as unknown: mauve." in page.locator("#empty").inner_text()
    page.get_by_role("button", name="Remove mauve").click()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == f"Remove {TITLES[2]}"
    shared = page.url
    page.goto("about:blank")
    page.goto(shared)
    playwright.expect(page.locator("#history .title")).to_have_text([TITLES[1], TITLES[2]])
    page.get_by_role("button", name="Clear the history").click()
    page.get_by_text("Recommendations appear here").wait_for()
    assert page.evaluate("document.activeElement.id") == "search"


def test_a_long_history_shows_its_strongest_items(page, run):
    page.goto(f"{run().address}#{'&'.join(f'item=item-{row}' for row in range(10))}")
    page.get_by_role("button", name="Why").first.click()
    playwright.expect(page.locator(".effects").first.locator("li")).to_have_count(8)
    page.get_by_text("2 items that do less").click()
    playwright.expect(page.locator(".effects").last.locator("li")).to_have_count(2)


def test_titles_are_text_whatever_they_say(page, run):
    page.goto(run(HOSTILE).address)
    find(page, "item-4")
    find(page, "item-5")
    page.wait_for_selector(".results:not([aria-busy]) .result")
    shown = page.locator(".result > .row .title").all_text_contents()
    assert set(shown) == set(HOSTILE) - {HOSTILE[4], HOSTILE[5]}
    for button in page.locator(".result > .row button").all():
        button.click()
    playwright.expect(page.locator(".why .path")).to_have_count(10)
    page.get_by_role("button", name="Add a condition").click()
    assert page.evaluate("window.broken") is None
    assert page.locator("main img[src=x], main script, main b").count() == 0
    wide = "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth)"
    assert page.evaluate(f"{wide}.map(e => e.outerHTML.slice(0, 200))") == []


@pytest.mark.parametrize("page", [{"width": 360, "height": 700}], indirect=True)
def test_a_narrow_screen_scrolls_in_one_direction(page, run):
    page.goto(run().address)
    find(page, "plum")
    page.wait_for_selector(".result")
    page.get_by_role("button", name="Why").first.click()
    page.wait_for_selector(".why .path")
    page.locator("#filters > summary").click()  # closed on a narrow screen
    page.get_by_role("button", name="Add a condition").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    sizes = page.evaluate("[...document.querySelectorAll('button')].map(b => b.getBoundingClientRect().height)")
    assert min(size for size in sizes if size) >= 24  # of WCAG 2.2


def test_a_filter_that_leaves_nothing_and_one_that_is_wrong(page, run):
    page.goto(run().address)
    find(page, "plum")
    add_condition(page, "SQL condition")
    page.get_by_label("Condition 1: value").fill("year > 3000")
    page.get_by_text("No item is left. Loosen a filter.").wait_for()
    page.get_by_label("Condition 1: value").fill("yeer > 2000")
    page.get_by_role("alert").get_by_text("unknown column 'yeer'").wait_for()
    assert page.locator(".result").count() == 0
    page.get_by_role("button", name="Remove condition 1").click()
    page.wait_for_selector(".result")
    assert page.get_by_role("alert").inner_text() == ""


def test_a_text_contains_signs_that_sql_reads_otherwise(page, run):
    page.goto(run().address)
    find(page, "plum")
    add_condition(page, "note")
    page.get_by_label("Condition 1: comparison").select_option("contains")
    for part, rows in {"5%_ W": [5], "_": [1, 3, 5, 7, 9]}.items():  # 11 was liked already
        page.get_by_label("Condition 1: value").fill(part)
        shown = page.locator(".result > .row .title")
        playwright.expect(shown).to_have_count(len(rows))
        assert {*shown.all_inner_texts()} == {TITLES[row] for row in rows}, part


def test_a_service_that_is_gone_and_one_that_wants_a_key(page, run):
    service = run()
    page.goto(service.address)
    find(page, "plum")
    page.wait_for_selector(".result")
    service.stop()
    page.get_by_label("Leave out what was liked already").uncheck()
    page.get_by_role("alert").get_by_text("The service cannot be reached").wait_for()
    page.goto(run(access=Access(api_key="secret")).address)
    page.get_by_label("API key").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("This service needs an API key.").wait_for()
    page.get_by_label("API key").fill("secret")
    page.keyboard.press("Enter")
    find(page, "plum")
    page.wait_for_selector(".result")
