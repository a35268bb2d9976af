"""Opens pages in a browser and records the messages of their console and their requests."""

from pathlib import Path

from playwright.sync_api import Browser, Page, expect

BROKEN_IMAGES = "[...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).length"

OVERFLOW_PX = "document.documentElement.scrollWidth - document.documentElement.clientWidth"

PATIENCE_MS = 60_000


def new_page(browser: Browser, width: int, **settings: object) -> tuple[Page, list[str], list[str]]:
    """Returns an empty page, and the lists that will hold the messages of its console and its requests."""
    page = browser.new_page(viewport={"width": width, "height": 844}, **settings)  # type: ignore[arg-type]
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
    page.on("request", lambda request: requests.append(request.url))
    return page, complaints, requests


def opened(
    browser: Browser, url: str, width: int = 1280, scheme: str = "light"
) -> tuple[Page, list[str], list[str]]:
    """Opens a page offline; returns it with the messages of its console and its requests."""
    page, complaints, requests = new_page(browser, width, color_scheme=scheme, offline=True)
    page.goto(url)
    return page, complaints, requests


class Visit:
    """The page of `pipeline serve`, with the messages of its console and its requests."""

    def __init__(self, browser: Browser, url: str, width: int = 1280, **settings: object) -> None:
        self.page, self.complaints, self.requests = new_page(browser, width, **settings)
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.goto(url)
        self.page.get_by_text("up to").wait_for()

    def choose(self, *files: Path) -> None:
        self.page.set_input_files("#file", [str(file) for file in files])

    def shows(self, selector: str, text: str, count: int = 1) -> None:
        found = self.page.locator(f"{selector}:visible")
        expect(found).to_have_count(count, timeout=PATIENCE_MS)
        for index in range(count):
            expect(found.nth(index)).to_contain_text(text)
