"""Tests the page of `pipeline compare` in a real browser: its warnings are visible on a phone too."""

from dataclasses import replace

import pytest
from playwright.sync_api import Browser

from stages.pages.compare_page import compare_page
from stages.report import write_report
from stages.reports.compare import compare
from tests.support.report_figures import HOSTILE
from tests.support.reports import READ, made_clips, made_context

pytestmark = pytest.mark.browser

OVERFLOW_PX = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def page_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Compares A with B, with two speakers with long names."""
    folder = tmp_path_factory.mktemp("compared")
    before = [replace(c, speaker=f"{c.speaker}{'S' * 60}{HOSTILE}") for c in made_clips(READ * 3)]
    after = [replace(c, hypothesis=c.reference) if i % 3 else c for i, c in enumerate(before)]
    for name, clips in (("a", before), ("b", after)):
        write_report(clips, [], made_context(), folder / name)
    page = folder / "compared.html"
    page.write_text(compare_page(compare(folder / "a", folder / "b", 200, 0)), "utf-8")
    return page.as_uri()


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_the_interval_of_each_group_is_visible(browser: Browser, page_url: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844}, offline=True)
    page.goto(page_url)
    assert page.evaluate(OVERFLOW_PX) == 0
    for row in page.locator("section:has(h2:text-is('By speaker')) tbody tr").all():
        shown = [cell for cell in row.locator("td, td span").all() if cell.is_visible()]
        assert any(" to " in cell.inner_text() and "†" in cell.inner_text() for cell in shown)
    assert page.get_by_text("† Fewer than 8 speakers: too narrow").is_visible()
    page.close()
