"""The page of `pipeline serve` in a real browser: what people do and see there."""

import signal
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from tests.support.browser import OVERFLOW_PX, PATIENCE_MS, Visit
from tests.support.serving import IS_SLOW, SAID, Serving, pipeline_serve, served, speaking_checkpoint
from tests.support.videos import face_pictures, placed, write_face, write_mouth, write_video

pytestmark = pytest.mark.browser

OUTSIDE = (
    "[...document.querySelectorAll('main *:not(.unseen, .unseen *, svg *)')].filter(e => {"
    " const box = e.getBoundingClientRect(); return box.width && (box.right > innerWidth + .5 || box.left < -.5)"
    "}).map(e => e.outerHTML.slice(0, 120))"
)
DROP = """([node, bytes]) => {
  const dropped = new DataTransfer();
  dropped.items.add(new File([new Uint8Array(bytes)], "dropped.mp4", { type: "video/mp4" }));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    node.dispatchEvent(new DragEvent(kind, { dataTransfer: dropped, bubbles: true, cancelable: true }));
  }
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with served(tmp_path_factory.mktemp("cache"), max_upload_mb=1.0, max_video_s=30.0) as server:
        yield server


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    wall = np.full((240, 320, 3), 128, np.uint8)
    (folder / "letter.mp4").write_text("no video at all " * 50)
    (folder / "large.mp4").write_bytes(bytes(1_100_000))
    return {
        "mouth": write_mouth(folder / "mouth.mp4", 50),
        "slow": write_mouth(folder / "slow.mp4", IS_SLOW),
        "long": write_mouth(folder / ("a name so long that it has to be broken " * 4 + ".mp4"), 300),
        "face": write_face(folder / "face.mp4", speaking=True),
        "wall": write_video(folder / "wall.mp4", [wall] * 30),
        "letter": folder / "letter.mp4",
        "large": folder / "large.mp4",
    }


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark"), (320, "light")]
)
def test_a_video_is_read_and_the_page_fits(
    browser: Browser, server: Serving, videos: dict[str, Path], width: int, scheme: str
) -> None:
    visit = Visit(browser, server.url, width, color_scheme=scheme)
    page = visit.page
    visit.choose(videos["mouth"])
    visit.shows(".text", SAID)
    visit.shows(".sure", "78 % confidence per character")
    visit.shows(".seconds", "finding the mouth")
    visit.shows("h3", "mouth.mp4")
    assert page.locator(".text").get_attribute("lang") == "zh"
    assert page.locator("progress:visible").count() == 0
    # each character has its time and alternatives, which are no markup
    assert page.locator(".text span").all_text_contents() == list(SAID)
    assert page.locator(".text .unsure").all_text_contents() == [SAID[2]]
    assert (
        page.locator(".text span").nth(2).get_attribute("title") == "0.5 s to 0.8 s, 30 % sure; else <b> 25 %"
    )
    with page.expect_download() as saved:
        page.get_by_text("Captions (SRT)").click()
    assert saved.value.suggested_filename == "mouth.srt"
    assert SAID in Path(saved.value.path()).read_text("utf-8")
    # candidates: without the text itself, and no text is markup
    page.get_by_text("Other readings").click()
    visit.shows(".candidates li.of", f"“{SAID}”: 73 % of the probability")
    visit.shows(".candidates li:not(.of)", "你好<b>四界27 %")
    assert page.locator(".candidates b").count() == 0
    visit.choose(videos["long"])
    visit.shows(".segments li", "0:", count=2)
    visit.choose(videos["letter"])
    visit.shows(".fault", "cannot be opened as a video")
    page.wait_for_timeout(100)
    # without a picture the message takes the whole width
    card, fault = page.locator(".reading").first.bounding_box(), page.locator(".fault:visible").bounding_box()
    assert card is not None and fault is not None and fault["width"] > card["width"] - 60
    assert page.evaluate(OVERFLOW_PX) == 0
    assert page.evaluate(OUTSIDE) == []
    assert visit.complaints == []
    assert {url.split("/")[2] for url in visit.requests if url.startswith("http")} == {
        server.url.split("/")[2]
    }
    page.close()


def test_the_mouth_moves_and_can_be_paused(
    browser: Browser, server: Serving, videos: dict[str, Path]
) -> None:
    visit = Visit(browser, server.url)
    visit.choose(videos["mouth"])
    mouth = visit.page.locator(".mouth")
    expect(mouth).to_have_attribute("aria-pressed", "true", timeout=PATIENCE_MS)
    place = "getComputedStyle(document.querySelector('.mouth')).backgroundPositionX"
    seen = set()
    for _ in range(12):
        seen.add(visit.page.evaluate(place))
        visit.page.wait_for_timeout(60)
    assert len(seen) > 3 and all(float(x.removesuffix("px")) % 126 == 0 for x in seen), seen
    mouth.press("Enter")
    expect(mouth).to_have_attribute("aria-pressed", "false")
    # the picture at the pause stays, whenever between two pictures the pause comes
    moved = visit.page.evaluate(f"""async () => {{
      const mouth = document.querySelector(".mouth"), moved = [];
      const wait = (ms) => new Promise((done) => setTimeout(done, ms));
      for (let turn = 0; turn < 20; turn += 1) {{
        mouth.click();
        await wait(60 + 7 * turn);
        mouth.click();
        const held = {place};
        await wait(80);
        if ({place} !== held) {{ moved.push([turn, held, {place}]); }}
      }}
      return moved;
    }}""")
    assert moved == []
    visit.page.close()
    calm = Visit(browser, server.url, reduced_motion="reduce")
    calm.choose(videos["mouth"])
    expect(calm.page.locator(".mouth")).to_have_attribute("aria-pressed", "false", timeout=PATIENCE_MS)
    calm.page.close()


def test_a_video_that_cannot_be_read_gets_a_plain_message(
    browser: Browser, server: Serving, videos: dict[str, Path]
) -> None:
    visit = Visit(browser, server.url)
    for name, words in (("wall", "No face was found"), ("large", "too large: at most 1 MB")):
        visit.choose(videos[name])
        visit.shows(".fault", words)
        expect(visit.page.locator("#live")).to_contain_text(words)
        visit.page.get_by_role("button", name=f"Remove {name}.mp4").click()
        assert visit.page.locator(".reading").count() == 0
    visit.page.context.set_offline(True)
    visit.choose(videos["mouth"])
    visit.shows(".fault", "The server cannot be reached")
    visit.page.context.set_offline(False)
    visit.choose(videos["face"])
    visit.shows(".text", SAID)
    visit.page.close()


def test_two_videos_at_once_are_both_read(browser: Browser, server: Serving, videos: dict[str, Path]) -> None:
    visit = Visit(browser, server.url)
    visit.choose(videos["slow"], videos["mouth"])
    expect(visit.page.get_by_text("Waiting: 1 video ahead")).to_be_visible(timeout=PATIENCE_MS)
    visit.shows(".text", SAID, count=2)
    visit.shows("h3", ".mp4", count=2)
    visit.page.close()


def test_a_video_can_be_dropped_and_chosen_by_keyboard(
    browser: Browser, server: Serving, videos: dict[str, Path]
) -> None:
    visit = Visit(browser, server.url)
    page = visit.page
    page.evaluate(DROP, [page.locator("#drop").element_handle(), list(videos["mouth"].read_bytes())])
    visit.shows("h3", "dropped.mp4")
    visit.shows(".text", SAID)
    assert page.locator("body.dragging").count() == 0
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "open-camera"
    unnamed = (
        "[...document.querySelectorAll('button, input, video')].filter(e => e.offsetParent !== null"
        " && !e.textContent.trim() && !e.ariaLabel && !e.labels?.length).map(e => e.outerHTML)"
    )
    assert page.evaluate(unnamed) == []
    page.close()


def test_the_camera_is_read(browser: Browser, chromium_path: str, server: Serving, tmp_path: Path) -> None:
    """With a camera that shows the photograph, speaking."""
    pictures = list(face_pictures([placed()] * 25, 640, 360, speaking=True))
    camera = tmp_path / "camera.y4m"
    write_y4m(camera, pictures)
    settings = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    # launched by the same playwright, since a process can have only one
    own = browser.browser_type.launch(
        executable_path=chromium_path,
        args=["--no-sandbox", "--disable-gpu", *settings, f"--use-file-for-fake-video-capture={camera}"],
    )
    visit = Visit(own, server.url, 390)
    visit.page.get_by_role("button", name="Use the camera").click()
    record = visit.page.get_by_role("button", name="Record")
    expect(record).to_be_focused()
    record.click()
    visit.page.wait_for_timeout(2500)
    visit.page.get_by_role("button", name="Stop and read").click()
    visit.shows(".text", SAID)
    visit.shows("h3", ".webm")
    visit.page.get_by_role("button", name="Close the camera").click()
    expect(visit.page.locator("#open-camera")).to_be_focused()
    assert visit.page.evaluate("document.getElementById('preview').srcObject") is None
    assert visit.complaints == []
    own.close()


def test_without_a_camera_the_page_says_so(browser: Browser, server: Serving) -> None:
    visit = Visit(browser, server.url)
    visit.page.get_by_role("button", name="Use the camera").click()
    expect(visit.page.get_by_role("alert")).to_contain_text("camera", timeout=PATIENCE_MS)
    expect(visit.page.locator("#drop")).to_be_visible()
    visit.page.close()


@pytest.mark.realdata
def test_a_real_clip_from_the_upload_to_the_text(browser: Browser, realdata: Path, tmp_path: Path) -> None:
    """As a person does it: the command, the page, a GRID video, a video without a face."""
    checkpoint = speaking_checkpoint(tmp_path, "一")
    clip = min((realdata / "grid" / "video" / "s1").glob("*.mp4"))
    with pipeline_serve(checkpoint, tmp_path) as (process, url):
        visit = Visit(browser, url)
        visit.choose(clip, realdata / "hard" / "no_face.mp4")
        visit.shows(".text", "一")
        visit.shows(".fault", "No face was found")
        visit.shows("figcaption", "The mouth that was found")
        assert visit.complaints == []
        visit.page.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20).returncode == 0


def write_y4m(path: Path, pictures: list[np.ndarray]) -> None:
    """Writes raw video, which Chromium plays as a camera."""
    height, width = pictures[0].shape[:2]
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F25:1 Ip A1:1 C420jpeg\n".encode())
        for picture in pictures:
            file.write(b"FRAME\n" + cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420).tobytes())
