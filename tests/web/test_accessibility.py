"""Tests with axe of every page, light and dark, desktop and phone: no serious and no critical problems."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.web.browsing import DESKTOP, PHONE, Visit, visit
from tests.web.conftest import IMAGE, ROOM, Lab

_SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def furnished(lab: Lab) -> Iterator[dict[str, str]]:
    """Create content for every page: a running cast, an ended one, a schedule, a token."""
    lab.empty_disks()
    daemon = lab.daemon
    done = daemon.create_cast(IMAGE, room_id=ROOM)
    daemon.wait_phase(done, "done")
    lab.empty_disks()
    running = daemon.create_cast(IMAGE, room_id=ROOM, rate_bytes_per_s=1.3e6)
    plan = {"image": IMAGE, "room_id": ROOM}
    schedule = daemon.ask("POST", "/schedules", {"name": "Nightly", "cron": "0 3 * * *", "plan": plan})
    token = daemon.ask("POST", "/tokens", {"name": "grafana", "role": "view"})["token"]
    with lab.held_cast(running):
        image_id = daemon.ask("GET", "/images")["items"][0]["image_id"]
        machine_id = lab.machine_ids()["pc02"]
        yield {"done": done, "running": running, "machine": machine_id, "image": image_id}
    daemon.api.post(f"/casts/{running}/cancel")
    daemon.ask("DELETE", f"/schedules/{schedule['schedule_id']}")
    daemon.ask("DELETE", f"/tokens/{token['token_id']}")


def assert_accessible(page: Page, what: str) -> None:
    found = Axe().run(page).response["violations"]
    bad = [
        (violation["id"], violation["impact"], [node["html"][:160] for node in violation["nodes"][:5]])
        for violation in found
        if violation["impact"] in _SERIOUS
    ]
    assert not bad, (what, bad)


_PAGES = (
    "/", "/rooms", f"/rooms/{ROOM}", f"/rooms/{ROOM}/machines/{{machine}}", "/machines", "/casts", "/casts/{running}",
    "/casts/{done}", f"/new-cast?room={ROOM}", "/images", "/images/{image}", "/schedules", "/history", "/audit",
    "/tokens", "/nowhere",
)  # fmt: skip


_PHONE_PAGES = (
    "/", f"/rooms/{ROOM}", f"/rooms/{ROOM}/machines/{{machine}}", "/casts/{running}", f"/new-cast?room={ROOM}",
    "/history", "/images/{image}",
)  # fmt: skip
"""Pages with a different layout on a phone."""


@pytest.mark.parametrize(
    ("size", "theme"),
    [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light")],
    ids=["desktop-light", "desktop-dark", "phone-light"],
)
def test_nobody_is_kept_out(
    browser: Browser, lab: Lab, furnished: dict[str, str], size: tuple[int, int], theme: str
) -> None:
    with visit(browser, lab.daemon, size, theme=theme, reduced_motion="reduce") as visiting:
        for address in _PHONE_PAGES if size == PHONE else _PAGES:
            page = visiting.open(address.format(**furnished))
            if "machines/" in address:
                expect(page.get_by_role("complementary")).to_be_visible()
            for details in page.locator(
                "details.advanced, details.chart-table, details.picker:visible"
            ).all():
                details.locator("summary").first.click()
            assert_accessible(page, address)
            assert page.locator("h1").count() == 1
            assert page.title().endswith(" · diskcast")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_dialogs_keep_nobody_out(browser: Browser, lab: Lab, furnished: dict[str, str], theme: str) -> None:
    with visit(browser, lab.daemon, theme=theme, reduced_motion="reduce") as visiting:
        _assert_dialogs(visiting, furnished)


def _assert_dialogs(visiting: Visit, furnished: dict[str, str]) -> None:
    for address, button in (
        ("/casts/{running}", "Cancel cast"), ("/rooms", "New room"), (f"/rooms/{ROOM}", "Import machines"),
        ("/images", "Add by URL"), ("/images", "Prune"), ("/images", "Upload"),
        ("/images/{image}", "Add note"), ("/schedules", "New schedule"), ("/tokens", "New token"),
    ):  # fmt: skip
        page = visiting.open(address.format(**furnished))
        page.get_by_role("button", name=button).click()
        expect(page.get_by_role("dialog")).to_be_visible()
        assert_accessible(page, button)
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
