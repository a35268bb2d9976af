"""The page of `pipeline serve` with a keyboard, a screen reader, or low vision."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import PATIENCE_MS, Visit
from tests.support.serving import SAID, Serving, served
from tests.support.videos import write_mouth

pytestmark = pytest.mark.browser

FOCUSED = """() => {
  const focused = document.activeElement, box = focused.getBoundingClientRect();
  // a hidden input is shown by its label
  const seen = focused.id === "file" ? focused.labels[0] : focused, style = getComputedStyle(seen);
  return {
    is: focused.id || focused.className || focused.tagName, top: box.top + scrollY,
    ring: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth), colour: style.outlineColor,
    // the controls of a film, of which there are several, belong to the browser
    isFilm: focused.tagName === "VIDEO", isPage: focused === document.body,
  };
}"""
# WCAG 2.2: relative luminance and contrast
CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => {
    const linear = (c) => (c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    const [r, g, b] = channels(colour).map((c) => linear(c / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor, [, , , opacity = 1] = channels(colour);
      if (opacity === 1) { return colour; }
    }
    return "rgb(255, 255, 255)";
  };
  const contrast = (a, b) => {
    const [dark, light] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (light + .05) / (dark + .05);
  };
  const texts = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT), found = [];
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (texts.currentNode.data.trim() && node.checkVisibility() && !node.closest(".unseen")) {
      found.push([contrast(getComputedStyle(node).color, ground(node)), texts.currentNode.data.trim()]);
    }
  }
  const button = document.querySelector(".dismiss");
  button.focus({ focusVisible: true });
  return { texts: found, ring: contrast(getComputedStyle(button).outlineColor, ground(button)) };
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with served(tmp_path_factory.mktemp("cache"), max_upload_mb=1.0, max_video_s=30.0) as server:
        yield server


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A video, a video of two segments, and a file that is not a video."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "letter.mp4").write_text("no video at all " * 50)
    return [
        write_mouth(folder / "mouth.mp4", 50),
        write_mouth(folder / "long.mp4", 300),
        folder / "letter.mp4",
    ]


def visit_with(browser: Browser, server: Serving, videos: list[Path], **settings: object) -> Page:
    visit = Visit(browser, server.url, **settings)  # type: ignore[arg-type]
    visit.choose(*videos)
    expect(visit.page.locator(".reading:not([aria-busy])")).to_have_count(3, timeout=PATIENCE_MS)
    return visit.page


def test_the_focus_moves_down_the_page_and_is_visible(
    browser: Browser, server: Serving, videos: list[Path]
) -> None:
    """At phone width, where everything is in one column; the order is the same at every width."""
    page = visit_with(browser, server, videos, width=390)
    page.evaluate("scrollTo(0, 0)")
    page.locator("#file").focus()
    stops = [page.evaluate(FOCUSED)]
    for _ in range(40):
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUSED)
        if stop["isPage"]:
            break
        stops.append(stop)
    assert [stop["is"] for stop in stops][:2] == ["file", "open-camera"]
    # the mouth is next to its film, some pixels lower or higher
    assert all(after["top"] > before["top"] - 20 for before, after in pairwise(stops)), stops
    assert {"link dismiss", "link num", "link copy", "mouth", "SUMMARY"} <= {stop["is"] for stop in stops}
    films = [stop["isFilm"] for stop in stops]
    shown = [
        stop for stop, before in zip(stops, [False, *films], strict=False) if not (stop["isFilm"] and before)
    ]
    assert all(stop["ring"] >= 2 for stop in shown), shown
    page.close()


def test_everything_works_by_keyboard(browser: Browser, server: Serving, videos: list[Path]) -> None:
    page = visit_with(browser, server, videos)
    for key in ("Enter", "Space"):
        with page.expect_file_chooser():
            page.locator("#file").press(key)
    mouth, others = page.locator(".mouth:visible").first, page.locator("details:visible").first
    for key, pressed in (("Space", "false"), ("Enter", "true")):
        mouth.press(key)
        expect(mouth).to_have_attribute("aria-pressed", pressed)
        others.locator("summary").press(key)
        assert others.evaluate("node => node.open") is (pressed == "false")
    for left in (2, 1, 0):
        page.locator(".dismiss").first.press("Enter")
        assert page.locator(".reading").count() == left
        # the focus is not lost with the removed card
        assert page.evaluate("document.activeElement.id") == "file"
    page.close()


def test_screen_readers_get_all_news(browser: Browser, server: Serving, videos: list[Path]) -> None:
    page = visit_with(browser, server, videos)
    news = page.get_by_role("log")
    # no message is lost if several come at once, and each text has its language
    for name, words in (("mouth", SAID), ("long", SAID), ("letter", "cannot be opened as a video")):
        expect(news.get_by_text(f"{name}.mp4: uploading")).to_have_count(1)
        expect(news.locator("p", has_text=f"{name}.mp4: ").filter(has_text=words)).to_have_count(1)
    assert news.locator("[lang=zh]").all_text_contents() == [SAID, SAID]
    # the name of a switch stays the same; its state says whether it is on
    switch = page.get_by_role("button", name="Play the mouth that was found", exact=True)
    assert switch.count() == 2
    switch.first.press("Enter")
    assert switch.count() == 2
    # the text comes before its pictures
    assert page.locator(".say + .see:visible").count() == 2
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_enough_contrast(
    browser: Browser, server: Serving, videos: list[Path], scheme: str
) -> None:
    page = visit_with(browser, server, videos, color_scheme=scheme)
    page.locator("summary:visible").first.click()
    seen = page.evaluate(CONTRASTS)
    assert len(seen["texts"]) > 30
    assert [text for text in seen["texts"] if text[0] < 4.5] == []
    assert seen["ring"] >= 3
    page.close()
