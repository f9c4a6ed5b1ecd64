"""Requests of machines in the dashboard: an operator sees image, disk and code, and decides with a click."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.api.test_rooms_and_casts import check_in
from tests.support.disks.disk_images import make_image
from tests.support.network.lab import wait_until
from tests.support.programs.serving import Daemon
from tests.web.browsing import visit

DISK = "/dev/sda, Samsung SSD 980, serial S64ANS0T, 500.1 GB"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("requests")
    with Daemon(folder) as started:
        started.add_image(make_image("dd", name="lab").write(folder / "lab.dci"))
        yield started


def request_of(daemon: Daemon, name: str, number: int) -> dict[str, Any]:
    """Return a request that was made at the console of a new machine."""
    report = check_in(name, f"52:54:00:ee:00:{number:02x}")
    enrolled = daemon.api.post(
        "/check-in", json=report, headers={"Authorization": f"Bearer {daemon.secret('enrol')}"}
    ).json()
    [image] = daemon.ask("GET", "/images")["items"]
    asked = daemon.api.post(
        f"/machines/{enrolled['machine_id']}/requests",
        json={"image_id": image["image_id"], "disk": DISK},
        headers={"Authorization": f"Bearer {enrolled['machine_secret']}"},
    )
    return {**asked.raise_for_status().json(), "machine_id": enrolled["machine_id"]}


def test_a_request_is_approved_beside_its_code(browser: Browser, daemon: Daemon) -> None:
    request = request_of(daemon, "pc21", 21)
    with visit(browser, daemon) as visiting:
        wait_until("the overview has a problem", lambda: "request" in daemon.problems())
        expect(visiting.open("/").locator(".problems")).to_contain_text("requested at the console of pc21")
        page = visiting.open("/machines")
        row = page.get_by_role("region", name="Requests of machines").get_by_role("row", name="pc21")
        expect(row).to_contain_text(DISK)
        expect(row.locator(".approval-code")).to_have_text(request["code"])
        row.get_by_role("button", name=f"Approve the request of pc21 with code {request['code']}").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text(f"lab overwrites everything on {DISK} of pc21")
        dialog.get_by_role("button", name="Image this machine").click()
        expect(page.get_by_role("region", name="Requests of machines")).to_have_count(0)
    [cast] = daemon.ask("GET", "/casts")["items"]
    assert cast["plan"]["machine_ids"] == [request["machine_id"]]
    daemon.ask("POST", f"/casts/{cast['cast_id']}/cancel")


def test_a_request_is_declined(browser: Browser, daemon: Daemon) -> None:
    before = len(daemon.ask("GET", "/casts")["items"])
    request_of(daemon, "pc22", 22)
    with visit(browser, daemon) as visiting:
        page = visiting.open("/machines")
        row = page.get_by_role("region", name="Requests of machines").get_by_role("row", name="pc22")
        row.get_by_role("button", name="Decline the request of pc22").click()
        expect(page.get_by_role("region", name="Requests of machines")).to_have_count(0)
    assert len(daemon.ask("GET", "/casts")["items"]) == before
