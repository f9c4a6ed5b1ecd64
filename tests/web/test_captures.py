"""The whole way of an image in the dashboard: captured from one machine, seen in the library, cast to two others."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.support.disks.disk_images import make_image
from tests.support.programs.serving import Daemon, ServiceAgent, wait_online
from tests.web.browsing import LIMIT_MS, visit

NAME = "lab-2026-12"


@pytest.fixture
def room(tmp_path: Path) -> Iterator[tuple[Daemon, dict[str, ServiceAgent], bytes]]:
    """Return a daemon with a reference machine and two others."""
    raw = make_image("drzudr" * 8, block_bytes=256 << 10).raw
    disks = tmp_path / "disks"
    disks.mkdir()
    (disks / "ref.disk").write_bytes(raw)
    with Daemon(tmp_path / "daemon") as daemon, contextlib.ExitStack() as stack:
        daemon.ask("POST", "/rooms", {"name": "Lab 1", "room_id": "lab-1"})
        agents = {
            name: stack.enter_context(ServiceAgent(disks, name, [daemon], options=(option,)))
            for name, option in (
                ("ref", "--allow-capture"),
                ("pc01", "--allow-unsigned"),
                ("pc02", "--allow-unsigned"),
            )
        }
        yield daemon, agents, raw


def test_a_captured_image_reaches_two_machines(
    browser: Browser, room: tuple[Daemon, dict[str, ServiceAgent], bytes]
) -> None:
    daemon, agents, raw = room
    ids = wait_online(daemon, list(agents))
    for name in ("pc01", "pc02"):
        daemon.ask("PATCH", f"/machines/{ids[name]}", {"room_id": "lab-1"})
    with visit(browser, daemon) as visiting:
        page = visiting.open(f"/machines/{ids['ref']}")
        captures = page.get_by_role("region", name="Captures of the disk")
        captures.get_by_role("button", name="Capture", exact=True).click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Name of the image").fill(NAME)
        dialog.get_by_role("button", name="Capture", exact=True).click()
        expect(page.locator("#notices")).to_contain_text("Capture of ref planned")
        expect(captures.locator(".badge")).to_have_text("Complete", timeout=LIMIT_MS)
        page = visiting.open("/images")
        page.get_by_role("link", name=NAME).click()
        expect(page.locator("h1")).to_have_text(f"{NAME}@1")
        expect(page.get_by_role("definition").filter(has_text="Capture of ref")).to_be_visible()
        expect(page.get_by_role("heading", name="Contents")).to_be_visible()
        page.get_by_role("link", name="Cast", exact=True).click()
        expect(page.get_by_role("heading", name="New cast")).to_be_visible()
        expect(page.locator("select[name=room_id]")).to_have_value("lab-1")
        page.get_by_role("button", name="Start the cast").click()
        asked = page.get_by_role("dialog")
        expect(asked).to_contain_text("Lab 1")
        asked.get_by_role("button", name="Start the cast").click()
        page.wait_for_url(re.compile("/casts/[0-9a-f]{8}$"))
        daemon.wait_phase(page.url.rsplit("/", 1)[1], "done")
    for name in ("pc01", "pc02"):
        assert agents[name].target.read_bytes() == raw


def test_a_planned_capture_is_cancelled(
    browser: Browser, room: tuple[Daemon, dict[str, ServiceAgent], bytes]
) -> None:
    daemon, _agents, _raw = room
    machine = daemon.ask("POST", "/machines", {"name": "away", "serial": "SN-away"})
    daemon.ask("POST", f"/machines/{machine['machine_id']}/capture", {"name": "away"})
    with visit(browser, daemon) as visiting:
        page = visiting.open(f"/machines/{machine['machine_id']}")
        captures = page.get_by_role("region", name="Captures of the disk")
        expect(captures).to_contain_text("Waits for the machine")
        captures.get_by_role("button", name="Cancel the capture").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel the capture").click()
        expect(captures.locator(".badge")).to_have_text("Cancelled", timeout=LIMIT_MS)
        expect(captures.get_by_role("button", name="Capture", exact=True)).to_be_visible()
