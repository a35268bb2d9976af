"""The page of `pipeline serve` in a real browser with problems: a slow connection, a lost camera, an odd name."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.support.browser import PATIENCE_MS, Visit
from tests.support.serving import IS_SLOW, SAID, Serving, num_videos, post, served
from tests.support.videos import write_mouth

pytestmark = pytest.mark.browser

KEPT_STREAMS = """
  window.streams = [];
  const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (wish) => {
    const given = await ask(wish);
    streams.push(given);
    return given;
  };
"""
LIVE_TRACKS = "streams.flatMap((s) => s.getTracks()).filter((t) => t.readyState === 'live').length"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with served(tmp_path_factory.mktemp("cache"), max_upload_mb=5.0, pause_s=2.0) as server:
        yield server


@pytest.fixture(scope="module")
def filming(browser: Browser, chromium_path: str) -> Iterator[Browser]:
    """A browser with a camera."""
    settings = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    own = browser.browser_type.launch(
        executable_path=chromium_path, args=["--no-sandbox", "--disable-gpu", *settings]
    )
    yield own
    own.close()


def test_a_slow_connection_is_reported(browser: Browser, server: Serving, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(bytes(2_000_000))
    visit = Visit(browser, server.url)
    session = visit.page.context.new_cdp_session(visit.page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 10_000}
    session.send("Network.emulateNetworkConditions", slow)
    visit.choose(film)
    visit.shows(".fault", "slower than 50 kB per second")
    assert num_videos(server) == 0
    visit.page.close()


def test_two_browsers_at_once_are_both_read(browser: Browser, server: Serving, tmp_path: Path) -> None:
    slow, quick = write_mouth(tmp_path / "slow.mp4", IS_SLOW), write_mouth(tmp_path / "quick.mp4", 25)
    first, second = (Visit(browser, server.url) for _ in range(2))
    assert first.page.context != second.page.context
    first.choose(slow)
    expect(first.page.get_by_text("Reading", exact=True)).to_be_visible(timeout=PATIENCE_MS)
    second.choose(quick)
    expect(second.page.get_by_text("Waiting: 1 video ahead")).to_be_visible(timeout=PATIENCE_MS)
    for visit, name in ((first, "slow.mp4"), (second, "quick.mp4")):
        visit.shows(".text", SAID)
        visit.shows("h3", name)
        assert visit.complaints == []
        visit.page.close()


def test_a_closed_page_makes_room_for_others(browser: Browser, server: Serving, tmp_path: Path) -> None:
    slow = write_mouth(tmp_path / "slow.mp4", IS_SLOW)
    visit = Visit(browser, server.url)
    visit.choose(*[slow] * 6)
    expect(visit.page.get_by_text("Waiting: 5 videos ahead")).to_be_visible(timeout=PATIENCE_MS)
    visit.page.close()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(post, server, slow.read_bytes()).result().json()["text"] == SAID


def test_a_file_name_is_not_markup(browser: Browser, server: Serving, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>.mp4"
    odd = tmp_path / name
    odd.write_text("no video at all " * 50)
    visit = Visit(browser, server.url)
    visit.choose(odd)
    visit.shows("h3", name)
    visit.shows(".fault .detail", name)
    assert visit.page.locator(".reading img").count() == 0
    assert visit.complaints == []
    visit.page.close()


def test_an_interrupted_recording_is_not_sent(filming: Browser, server: Serving) -> None:
    visit = Visit(filming, server.url)
    page = visit.page
    page.add_init_script(KEPT_STREAMS)
    page.reload()
    # two quick clicks while the browser still asks for permission open one camera
    page.evaluate(
        "document.getElementById('open-camera').click(), document.getElementById('open-camera').click()"
    )
    record = page.get_by_role("button", name="Record")
    record.click()
    expect(page.locator("#timer")).to_be_visible()
    page.get_by_role("button", name="Close the camera").click()
    expect(page.locator("#open-camera")).to_be_focused()
    assert page.evaluate(LIVE_TRACKS) == 0
    # a disconnected camera is reported, and can be opened again
    page.locator("#open-camera").press("Enter")
    record.press("Space")
    expect(page.get_by_role("button", name="Stop and read")).to_be_focused()
    page.evaluate("streams.at(-1).getTracks()[0].dispatchEvent(new Event('ended'))")
    expect(page.get_by_role("alert")).to_contain_text(
        "The camera was disconnected. The recording was not read"
    )
    expect(page.locator("#ways")).to_be_visible()
    assert page.evaluate(LIVE_TRACKS) == 0
    page.wait_for_timeout(300)
    assert page.locator(".reading").count() == 0 and num_videos(server) == 0
    page.locator("#open-camera").press("Enter")
    expect(record).to_be_focused()
    expect(page.locator("#trouble")).to_be_hidden()
    assert visit.complaints == []
    page.close()
