"""Takes the pictures of the docs with headless Chromium: `python docs/screenshots.py --help`.

The pictures of the report need a finished `pipeline report`, that of the page a running `pipeline serve` and a video.
lively_head.png needs a video of somebody who nods.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

from shards.schema import MediaKind
from stages.mouths.cropping import crop_video
from stages.settings import CropParams

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH_PX, MARGIN_PX = 1_120, 16
MOST_KB = 400
"""Size limit of a picture, so that the README loads over a slow connection."""
READING_S = 120
"""Time limit for the page of `pipeline serve` to read a video."""


@contextmanager
def opened(url: str) -> Iterator[Page]:
    """Opens the page in a browser of WIDTH_PX with light colours."""
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH_PX, "height": 900}, color_scheme="light")
        page.goto(url)
        yield page
        browser.close()


def shoot(page: Page, file: Path, first: Locator, last: Locator) -> None:
    """Writes the page from the top of `first` to the bottom of `last`, full width; SystemExit if it is too large."""
    top, bottom = first.bounding_box(), last.bounding_box()
    assert top is not None and bottom is not None, "both elements are visible"
    start = max(0, top["y"] - MARGIN_PX)
    height = bottom["y"] + bottom["height"] + MARGIN_PX - start
    file.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=file, full_page=True, clip={"x": 0, "y": start, "width": WIDTH_PX, "height": height})
    size_kb = file.stat().st_size / 1_000
    sys.stdout.write(f"{file}: {WIDTH_PX} x {height:.0f} px, {size_kb:.0f} kB\n")
    if size_kb > MOST_KB:
        raise SystemExit(f"{file} is larger than {MOST_KB} kB; show a smaller part of the page")


def shoot_report(url: str, folder: Path) -> None:
    """Writes report.png (the first sections of the report) and report_clips.png (two clips with errors)."""
    with opened(url) as page:
        sections = page.locator("main > section")
        shoot(page, folder / "report.png", page.locator(".top"), sections.nth(1))
        clips = page.locator("article.clip")
        shoot(page, folder / "report_clips.png", clips.nth(0), clips.nth(min(1, clips.count() - 1)))


def shoot_serve(url: str, video: Path, folder: Path) -> None:
    """Writes serve.png: the page of `pipeline serve` with the reading of a video."""
    with opened(url) as page:
        page.locator("input[type=file]").set_input_files(video)
        page.locator(".tools:visible, .fault:visible").wait_for(timeout=1_000 * READING_S)
        if page.locator(".fault").is_visible():
            raise SystemExit(f"{video} could not be read: {page.locator('.fault').inner_text()}")
        if page.locator("summary").is_visible():
            page.locator("summary").click()  # other readings
        main = page.locator("main")
        shoot(page, folder / "serve.png", main, main)


def draw_lively_head(video: Path, folder: Path) -> None:
    """Writes lively_head.png: every sixth frame of the crop, above with the calm mean only, below with the default."""
    rows = []
    for max_lag_px in (1e3, CropParams().max_lag_px):
        clip = crop_video(video, MediaKind.FACE, CropParams(max_lag_px=max_lag_px, max_jitter_px=100.0))
        shown = [np.pad(crop_HW, 2, constant_values=255) for crop_HW in clip.clip_THW[:60:6]]
        for crop_HW in shown:
            crop_HW[2:-2:3, 50] = crop_HW[50, 2:-2:3] = 255  # the middle, where the mouth should be
        rows.append(np.hstack(shown))
    Image.fromarray(np.vstack(rows)).save(folder / "lively_head.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, metavar="FILE", help="a report.html")
    parser.add_argument("--serve", metavar="URL", help="address of a running `pipeline serve`; needs --video")
    parser.add_argument("--video", type=Path, metavar="FILE", help="video for the page of `pipeline serve`")
    parser.add_argument("--nodding", type=Path, metavar="FILE", help="a video of a nodding head")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, metavar="FOLDER")
    options = parser.parse_args()
    if not (options.report or options.serve or options.nodding) or bool(options.serve) != bool(options.video):
        parser.error("give --report FILE, --serve URL with --video FILE, or --nodding FILE")
    if options.report:
        shoot_report(options.report.resolve().as_uri(), options.out)
    if options.serve:
        shoot_serve(options.serve, options.video, options.out)
    if options.nodding:
        draw_lively_head(options.nodding, options.out)


if __name__ == "__main__":
    main()
