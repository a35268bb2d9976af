"""Visits to a page in a browser."""

from pathlib import Path

from playwright.sync_api import Browser, Page, expect

PATIENCE_MS = 60_000


class Visit:
    """A page with the messages of its console and its requests."""

    def __init__(self, browser: Browser, url: str, width: int = 1280, **settings: object) -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": 844}, **settings)  # type: ignore[arg-type]
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
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
