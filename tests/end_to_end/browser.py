"""A headless Chromium for tests of the page. Nothing it asks for may leave the host; what it complains of is kept."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.end_to_end.cluster import ROOT

SCREENSHOTS = ROOT / "build" / "screenshots"
PATIENCE_MS = 30_000


@contextmanager
def running_browser() -> Iterator[Browser]:
    """The system's Chromium; skips where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no Chromium here (Debian's package: chromium)")
    with sync_playwright() as playwright:
        # Chromium's own sandbox needs a user other than root.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


class Visit:
    """One visitor's tab at `url`."""

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.url = url
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self._context = browser.new_context(**context)
        self._context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self._context.new_page()
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, fragment: str = "") -> Page:
        """The page, once it is there."""
        self.page.goto(f"{self.url}/{fragment}")
        return self.page

    def picture(self, name: str) -> Path:
        """A screenshot; where it lies is printed."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        self.page.screenshot(path=path, full_page=True)
        sys.stdout.write(f"{path}\n")
        return path

    def close(self, *, may_complain: bool = False) -> None:
        """The end of the visit: nothing was wrong, and nothing went elsewhere."""
        self._context.close()
        assert may_complain or not self.complaints, self.complaints
        assert self.asked and all(url.startswith(self.url + "/") for url in self.asked), self.asked

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)
