"""Opens pages in a browser for tests."""

from playwright.sync_api import Browser, Page

BROKEN_IMAGES = "[...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).length"


OVERFLOW_PX = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def opened(
    browser: Browser, url: str, width: int = 1280, scheme: str = "light"
) -> tuple[Page, list[str], list[str]]:
    """Opens a page offline; returns it with the messages of its console and its requests."""
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True)  # type: ignore[arg-type]
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(url)
    return page, complaints, requests
