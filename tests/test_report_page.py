"""The report in a real browser: it shows, fits a phone, prints, and asks the network for nothing."""

from dataclasses import replace

import pytest
from playwright.sync_api import Browser, Page

from stages.report import write_report
from tests.test_report import HOSTILE, READ, blind_of, made_clips, made_context

pytestmark = pytest.mark.browser

BROKEN_IMAGES = "[...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).length"
OVERFLOW_PX = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def report_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with all that strains a layout: long ids and names, a long unbroken text, hostile text."""
    folder = tmp_path_factory.mktemp("report")
    clips = made_clips([*READ, ("x" * 200, "y" * 180), (HOSTILE, "嘴"), ("今" * 300, "")])
    clips = [replace(c, clip_id=f"{'L' * 100}_{c.clip_id}", speaker="S" * 60, topic=HOSTILE) for c in clips]
    context = made_context(
        num_examples=8,
        warnings=["speaker " + "S" * 90 + " is in train and test", HOSTILE],
        clip_totals={"train": 30_341, "valid" * 12: 1_959},
        corpus="chinese_lips" * 10,
    )
    write_report(clips, blind_of(clips), context, folder)
    return (folder / "report.html").as_uri()


def opened(browser: Browser, url: str, width: int, scheme: str) -> tuple[Page, list[str], list[str]]:
    """The page, what its console complained of, and what it asked for."""
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)  # type: ignore[arg-type]
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(url)
    return page, complaints, requests


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (768, "light"), (390, "light"), (390, "dark")]
)
def test_page_shows_and_fits(browser: Browser, report_url: str, width: int, scheme: str) -> None:
    page, complaints, requests = opened(browser, report_url, width, scheme)
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [report_url]
    assert page.evaluate(OVERFLOW_PX) == 0
    assert page.evaluate("document.images.length") == 16
    assert page.evaluate(BROKEN_IMAGES) == 0
    for text in ("character error rate", "Blind", "Chance", "By speaker", "Worst clips", "How it was made"):
        assert page.get_by_text(text, exact=False).first.is_visible(), text
    assert page.locator(".cell.substitute i").first.is_visible()
    assert page.locator(".chart > svg").count() == 2
    page.close()


def test_nothing_sticks_out_of_its_card_on_a_phone(browser: Browser, report_url: str) -> None:
    page, _, _ = opened(browser, report_url, 390, "light")
    outside = page.evaluate(
        "[...document.querySelectorAll('main *:not(.unseen):not(.unseen *)')].filter(e => {"
        " const box = e.getBoundingClientRect(); return box.width && (box.right > 390.5 || box.left < -0.5)"
        "}).map(e => e.outerHTML.slice(0, 120))"
    )
    assert outside == []
    page.close()


def test_page_prints(browser: Browser, report_url: str) -> None:
    page, complaints, _ = opened(browser, report_url, 1280, "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 31, 36)"
    assert page.pdf().startswith(b"%PDF")
    assert complaints == []
    page.close()
