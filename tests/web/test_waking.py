"""Waking in the dashboard. The machines have no hardware address: no packet leaves the computer that runs the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.support.disks.disk_images import make_image
from tests.support.programs.serving import Daemon
from tests.web.browsing import visit


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("waking")
    with Daemon(folder) as started:
        started.ask("POST", "/rooms", {"name": "Lab 1", "room_id": "lab-1"})
        started.ask("POST", "/machines", {"name": "pc01", "room_id": "lab-1", "serial": "SN-pc01"})
        started.add_image(make_image("drzu").write(folder / "lab.dci"))
        yield started


def test_a_room_is_woken_and_the_result_is_shown(browser: Browser, daemon: Daemon) -> None:
    with visit(browser, daemon) as visiting:
        page = visiting.open("/rooms/lab-1")
        page.get_by_role("button", name="Wake machines").click()
        page.get_by_role("dialog").get_by_role("button", name="Wake", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("0 of 1 machines are awake. Not awake: pc01.")
        [wake] = daemon.ask("GET", "/wakes")["items"]
        assert (wake["room_id"], wake["machines"][0]["state"]) == ("lab-1", "unknown_address")


def test_the_waves_of_a_room_are_changed(browser: Browser, daemon: Daemon) -> None:
    with visit(browser, daemon) as visiting:
        page = visiting.open("/rooms/lab-1")
        page.get_by_role("button", name="Edit room").click()
        page.get_by_label("Machines woken at a time").fill("4")
        page.get_by_label("Pause between them (seconds)").fill("7.5")
        page.get_by_role("dialog").get_by_role("button", name="Save").click()
        expect(page.locator("#notices")).to_contain_text("Room saved")
        room = daemon.ask("GET", "/rooms/lab-1")
        assert (room["wake_wave_size"], room["wake_pause_s"]) == (4, 7.5)


def test_a_cast_wakes_its_machines_on_request(browser: Browser, daemon: Daemon) -> None:
    with visit(browser, daemon) as visiting:
        page = visiting.open("/new-cast")
        page.get_by_label("Wake the machines first").check()
        page.get_by_role("button", name="Start the cast").click()
        page.get_by_role("dialog").get_by_role("button", name="Start the cast").click()
        expect(page.locator(".events li", has_text="0 of 1 machines are awake")).to_have_count(1)
        [cast] = daemon.ask("GET", "/casts")["items"]
        assert cast["plan"]["wake"] is True
        daemon.ask("POST", f"/casts/{cast['cast_id']}/cancel")
