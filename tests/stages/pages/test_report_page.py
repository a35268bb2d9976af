"""Tests the report in a real browser: it fits a phone, prints, and makes no network requests."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlparse

import cv2
import pytest
from playwright.sync_api import Browser

from stages.pages.report_page import render_page
from tests.support.browser import BROKEN_IMAGES, OVERFLOW_PX, opened
from tests.support.report_figures import (
    ENGLISH,
    HOSTILE,
    bare_context,
    bare_figures,
    blend_figures,
    hostile_figures,
    made_context,
    made_figures,
)

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).parents[3] / "docs" / "screenshots.py"

HEADINGS = [
    "What lips can show",
    "Training",
    "Confidence",
    "By speaker",
    "By topic",
    "By gender",
    "By age",
    "By length",
    "Confusions of characters",
    "Confusions of syllables",
    "Worst clips",
    "Median clips",
    "Best clips",
    "Data",
    "Rejections",
    "CER by quality of the clip",
    "How it was made",
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Reports by name, as URLs of their files."""
    folder = tmp_path_factory.mktemp("report")
    strained = made_context(
        warnings=["speaker " + "S" * 90 + " is in train and test", HOSTILE],
        rejections={HOSTILE: {"no_face": 3, HOSTILE: 1}, "test": {"no_face": 1}},
        clip_totals={"train": 30_341, "valid" * 12: 1_959, HOSTILE: 1},
        corpus=HOSTILE * 3,
        split=HOSTILE,
    )
    strained = replace(strained, model=replace(strained.model, preset=HOSTILE, decoder="d" * 120))
    texts = {
        "han": render_page(made_figures(), made_context()),
        "english": render_page(made_figures(ENGLISH), made_context(corpus="grid")),
        "hostile": render_page(hostile_figures(), strained),
        "bare": render_page(bare_figures(), bare_context()),
        "blend": render_page(blend_figures(), made_context()),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in texts}


@pytest.mark.parametrize("name", ["han", "english", "hostile", "bare", "blend"])
@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (768, "light"), (390, "light"), (390, "dark"), (320, "light")]
)
def test_page_shows_and_fits(
    browser: Browser, pages: dict[str, str], name: str, width: int, scheme: str
) -> None:
    page, complaints, requests = opened(browser, pages[name], width, scheme)
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [pages[name]]
    assert page.evaluate(OVERFLOW_PX) == 0
    assert page.evaluate(BROKEN_IMAGES) == 0
    assert page.evaluate("document.images.length") == 2 * page.locator("article.clip").count() > 0
    for text in ("character error rate", "95 % interval", "This model", "Oracle", "Blind", "Chance"):
        assert page.get_by_text(text, exact=False).first.is_visible(), text
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_intervals_of_groups_are_read_without_a_mouse(
    browser: Browser, pages: dict[str, str], width: int
) -> None:
    page, _, _ = opened(browser, pages["han"], width)
    for media in ("screen", "print"):
        page.emulate_media(media=media)
        genders = page.locator("section:has(> h2:text-is('By gender')) .ends")
        few, enough = genders.nth(0), genders.nth(1)
        assert (few.inner_text()[:12], enough.inner_text()[:12]) == ("10.5 to 20.5", "17.0 to 27.0")
        assert few.is_visible() and few.inner_text().endswith("†"), "of 4 speakers"
        assert enough.is_visible() and not enough.inner_text().endswith("†"), "of 14"
        assert page.get_by_text("too narrow for other speakers").first.is_visible()
    page.close()


@pytest.mark.parametrize("name", ["han", "hostile", "blend"])
def test_nothing_overflows_its_card_on_a_phone(browser: Browser, pages: dict[str, str], name: str) -> None:
    page, _, _ = opened(browser, pages[name], 390)
    outside = page.evaluate(
        "[...document.querySelectorAll('main *:not(.unseen):not(.unseen *)')].filter(e => {"
        " const box = e.getBoundingClientRect(); return box.width && (box.right > 390.5 || box.left < -0.5)"
        "}).map(e => e.outerHTML.slice(0, 120))"
    )
    assert outside == []
    page.close()


def test_every_section_of_a_mandarin_report(browser: Browser, pages: dict[str, str]) -> None:
    page, _, _ = opened(browser, pages["han"])
    assert page.locator("h2").all_inner_texts() == HEADINGS
    assert page.locator(".chart > svg").count() == 3
    assert page.locator(".rates .bar").count() == 7 and page.locator(".headline .bar > i").count() == 1
    assert page.locator(".confusions .tag").count() == 3
    assert page.locator(".look-alikes b").all_inner_texts() == ["七 一 四", "九 六"]
    assert page.locator(".dot").count() == 8 and page.locator(".quality").count() == 6
    assert page.locator(".spikes").count() == 2 * page.locator("article.clip").count()
    assert page.locator(".cell.substitute i").first.is_visible()
    assert page.locator(".facts dd").nth(2).inner_text() == "ctc_beam, beam 10"
    # a long list is folded and opens without a script
    assert not page.get_by_text("016", exact=True).is_visible()
    page.get_by_text("2 more with a lower CER").click()
    assert page.get_by_text("016", exact=True).is_visible()
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_corpora_are_the_first_group_with_blind_and_chance(
    browser: Browser, pages: dict[str, str], width: int
) -> None:
    page, _, _ = opened(browser, pages["blend"], width)
    headings = page.locator("h2").all_inner_texts()
    assert headings[headings.index("By corpus") + 1] == "By speaker"
    rows = page.locator("section:has(> h2:text-is('By corpus')) tbody tr")
    for number, interval in ((0, "to"), (1, "–")):
        row = rows.nth(number)
        cells = [row.get_by_text(text, exact=True) for text in ("94.0\u202f%", "86.0\u202f%")]
        assert all(cell.is_visible() for cell in cells), "blind and chance CER, on a phone too"
        assert interval in row.locator(".ends").inner_text()
    page.close()


def test_english_has_words_and_a_reason_for_missing_visemes(browser: Browser, pages: dict[str, str]) -> None:
    page, _, _ = opened(browser, pages["english"])
    words = [heading.replace("syllables", "words") for heading in HEADINGS]
    assert page.locator("h2").all_inner_texts() == words
    assert "word error rate 25.0" in page.locator(".headline").inner_text()
    assert page.get_by_text("little of the text is Han").count() == 3
    assert page.locator(".look-alikes").count() == 0
    assert page.locator(".aligned.words").count() == page.locator("article.clip").count()
    page.close()


def test_an_unknown_figure_is_a_dash_with_a_reason(browser: Browser, pages: dict[str, str]) -> None:
    page, _, _ = opened(browser, pages["bare"])
    shown = {rate.locator("dt").inner_text(): rate.inner_text() for rate in page.locator(".rate").all()}
    for name in ("Blind", "Chance", "Syllables", "Look-alikes", "Visemes"):
        assert "–" in shown[name] and "not known: " in shown[name], shown[name]
    assert "–" in shown["Oracle"] and "this report has no candidates" in shown["Oracle"]
    assert "95 % interval none: " in page.locator(".interval").inner_text()
    said = page.locator("main").inner_text()
    for line in (
        "There are no training curves",
        "Too few clips",
        "The corpus does not name the topic.",
        "every character was read correctly",
        "No clip was rejected.",
        "No quality differs enough",
    ):
        assert line in said, line
    assert page.locator(".spikes").count() == 0
    page.close()


def test_hostile_text_stays_text(browser: Browser, pages: dict[str, str]) -> None:
    page, complaints, _ = opened(browser, pages["hostile"])
    assert complaints == []
    assert page.locator("script").count() == 0
    assert page.locator(".said").filter(has_text=HOSTILE).count() == 1
    for place in (".warning", ".groups th", ".confusions th", ".look-alikes b", ".facts dd", ".top bdi"):
        assert page.locator(place).filter(has_text=HOSTILE).count() >= 1, place
    page.close()


def test_spikes_are_under_their_frames(browser: Browser, pages: dict[str, str]) -> None:
    """In screen pixels: the time axis begins and ends with the film strip above it."""
    for width in (1280, 390):
        page, _, _ = opened(browser, pages["han"], width)
        for piece in page.locator(".reel > div").all()[:2]:
            film, axis = piece.locator("img").bounding_box(), piece.locator(".axis").first.bounding_box()
            assert film is not None and axis is not None
            assert axis["x"] == pytest.approx(film["x"], abs=1)
            assert axis["width"] == pytest.approx(film["width"], abs=2)
            assert axis["y"] > film["y"] + film["height"]
        page.close()


def test_page_prints(browser: Browser, pages: dict[str, str], tmp_path: Path) -> None:
    page, complaints, _ = opened(browser, pages["han"], 1280, "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 31, 36)"
    # folded content is printed
    assert page.get_by_text("016", exact=True).is_visible()
    # a printed page does not end with a heading or the introduction of the first clip
    kept = (
        "[...document.querySelectorAll('h2, h2 + p, .examples > p')].map(e => getComputedStyle(e).breakAfter)"
    )
    assert set(page.evaluate(kept)) == {"avoid"}
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert complaints == []
    page.close()


def test_screenshots_of_the_readme_can_be_taken(
    chromium_path: str, pages: dict[str, str], tmp_path: Path
) -> None:
    report = urlparse(pages["han"]).path
    command = [sys.executable, str(SCREENSHOTS), "--report", report, "--out", str(tmp_path / "new")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("report.png", "report_clips.png"):
        picture = cv2.imread(str(tmp_path / "new" / name))
        assert picture is not None and picture.shape[1] == 1_120 and picture.shape[0] > 300
        assert picture.std() > 5, "there is something on it"
