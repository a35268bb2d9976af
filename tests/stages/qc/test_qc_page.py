"""The page of `pipeline qc` in a real browser: it is visible, fits a phone, prints, and makes no requests."""

from itertools import pairwise

import pytest
from playwright.sync_api import Browser

from tests.support.browser import BROKEN_IMAGES, OVERFLOW_PX, opened
from tests.support.ledgers import PARAMS, cropped, with_synthetic_clips

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page that strains the layout: every reason, long names without a space, markup, a missing clip, a warning."""
    corpus = cropped(tmp_path_factory.mktemp("real"))
    corpus = with_synthetic_clips(corpus, tmp_path_factory.mktemp("made"), 30, 2)
    for number, row in enumerate(corpus.clips):
        if number % 3 == 0:
            row |= {"speaker": f"{number}_{'S' * 90}", "label": "今" * 300}
        if number % 5 == 0 and "nowhere" in row["media"]:
            row["media"] = "L" * 200
    for row in corpus.crops:
        row["detail"] = row["detail"] and row["detail"] + "x" * 200
    corpus.crops[6]["clip_key"] = "0" * 64
    corpus.write(corpus.clips, corpus.crops)
    page = corpus.page(params=PARAMS.model_copy(update={"max_yaw_deg": 30.0}))
    assert "cannot" in page and len(corpus.summary.warnings) == 2
    return (corpus.folder / "qc.html").as_uri()


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (768, "light"), (390, "light"), (390, "dark")]
)
def test_page_is_visible_and_fits(browser: Browser, page_url: str, width: int, scheme: str) -> None:
    page, complaints, requests = opened(browser, page_url, width, scheme)
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [page_url]
    assert page.evaluate(OVERFLOW_PX) == 0
    assert page.evaluate("document.images.length") > 100
    assert page.evaluate(BROKEN_IMAGES) == 0
    assert page.evaluate("[...document.images].filter(i => !i.alt || i.width < 60).length") == 0
    assert page.locator(".chart > svg").count() == 9
    assert page.locator("rect.usable").count() > 50 and page.locator("rect.rejected").count() > 1
    for text in (
        "of the clips are usable",
        "Limits that applied",
        "Random clips",
        "Darkest",
        "low detection",
    ):
        assert page.get_by_text(text, exact=False).first.is_visible(), text
    outside = page.evaluate(
        "[...document.querySelectorAll('main *:not(.unseen):not(.stacked thead):not(.stacked thead *)')].filter(e => {"
        f" const box = e.getBoundingClientRect(); return box.width && (box.right > {width} + .5 || box.left < -.5)"
        "}).map(e => e.outerHTML.slice(0, 120))"
    )
    assert outside == []
    page.close()


def test_heading_levels_have_no_gaps_and_links_have_targets(browser: Browser, page_url: str) -> None:
    page, _, _ = opened(browser, page_url, 1280, "light")
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
    assert page.evaluate("[...document.links].filter(a => !document.querySelector(a.hash)).length") == 0
    assert page.evaluate("[...document.querySelectorAll('table')].filter(t => !t.caption).length") == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    page.close()


def test_page_prints(browser: Browser, page_url: str) -> None:
    page, complaints, _ = opened(browser, page_url, 1280, "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf().startswith(b"%PDF")
    assert complaints == []
    page.close()
