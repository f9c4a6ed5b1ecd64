"""A real browser on a real daemon; messages in the browser's console fail the test."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Final

import httpx
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.support.network.lab import LIMIT_S
from tests.support.programs.processes import require_program
from tests.support.programs.serving import Daemon

DESKTOP: Final = (1280, 800)
PHONE: Final = (390, 844)
LIMIT_MS: Final = 1000 * LIMIT_S


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run Debian's Chromium, headless."""
    path = require_program("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            timeout=LIMIT_MS,
            args=["--no-sandbox", "--disable-background-networking", "--disable-component-update"],
        )
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A browser's window on a daemon.

    Attributes:
        page: page of playwright.
        allowed: patterns of console messages that this test causes itself.
    """

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.url = url
        self.allowed: list[str] = []
        self._complaints: list[str] = []
        self._requests: list[str] = []
        context.set_default_timeout(LIMIT_MS)
        context.on("request", lambda request: self._requests.append(request.url))
        # Violations of the content security policy appear as errors of the console, and as this event.
        context.add_init_script(
            "addEventListener('securitypolicyviolation', "
            "event => console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`));"
        )
        self.page = self.new_page()

    def new_page(self) -> Page:
        """Open another tab."""
        page = self.context.new_page()
        page.on("console", lambda message: self._console(message.type, message.text))
        page.on("pageerror", lambda error: self._complaints.append(f"exception: {error}"))
        return page

    def open(self, address: str = "/") -> Page:
        """Open the page at ``address``, e.g. ``/rooms/lab``; return once it is drawn and live."""
        self.page.goto(f"{self.url}/#{address}")
        expect(self.page.locator("h1")).to_be_visible()
        expect(self.page.locator("main")).not_to_have_attribute("aria-busy", "true")
        return self.page

    def assert_clean(self) -> None:
        """Assert that there were no hidden errors, and no requests to other servers."""
        complaints = [
            text for text in self._complaints if not any(re.search(each, text) for each in self.allowed)
        ]
        assert not complaints, complaints
        elsewhere = {url for url in self._requests if not url.startswith((f"{self.url}/", "blob:", "data:"))}
        assert not elsewhere, "the dashboard works without the internet"

    def _console(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self._complaints.append(f"{kind}: {text}")


@contextlib.contextmanager
def visit(
    browser: Browser,
    site: Daemon | str,
    size: tuple[int, int] = DESKTOP,
    *,
    theme: str = "light",
    **more: Any,
) -> Iterator[Visit]:
    """Open a window of ``size`` with a new profile; check its console messages at the end.

    On a daemon the browser is logged in as an operator; on a URL it isn't.
    """
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if theme == "dark" else "light",
        has_touch=size[0] < 600,
        locale="en-GB",
        **more,
    )
    try:
        url = site if isinstance(site, str) else site.url
        if not isinstance(site, str):
            context.add_cookies([{"name": "diskcast_session", "value": _log_in(site), "url": url}])
        visiting = Visit(context, url)
        yield visiting
        visiting.assert_clean()
    finally:
        context.close()


def _log_in(daemon: Daemon) -> str:
    """Return the secret of a new session."""
    with httpx.Client(base_url=daemon.url, timeout=LIMIT_S, trust_env=False) as client:
        client.post("/api/v1/session", json={"token": daemon.secret("operate")}).raise_for_status()
        return client.cookies["diskcast_session"]
