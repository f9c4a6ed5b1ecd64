"""Boots over the network in the dashboard: a machine that registers by booting is shown with its hardware."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.support.programs.serving import Daemon, wait_until
from tests.web.browsing import visit

MAC = "02:00:00:00:00:31"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("boots")) as started:
        started.ask(
            "POST",
            "/rooms",
            {"name": "Lab 1", "room_id": "lab-1", "unknown_machines": "ask", "boot_menu": False},
        )
        yield started


def boot(daemon: Daemon) -> str:
    """Boot the machine; return its boot token, empty for a boot from the disk."""
    report = {"mac": MAC, "room_id": "lab-1", "firmware": "uefi"}
    return str(daemon.ask("POST", "/boots", report)["boot_token"])


def check_in(daemon: Daemon, token: str) -> str:
    """Check in with a boot token; return the code that the machine shows."""
    body = {
        "agent_id": "run 1", "name": "live", "version": "1", "interface": "eth0", "macs": [MAC], "serial": "SN31",
        "asset_tag": "", "state": "idle", "cast_id": None, "last_result": None, "wait_s": 0,
        "inventory": {"sys_vendor": "Example", "product_name": "Desk 9", "processors": "8", "memory": "16 GiB",
                      "disks": "nvme0n1 512 GB", "firmware": "UEFI"},
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {token}"}
    return str(
        daemon.api.post("/check-in", json=body, headers=headers).raise_for_status().json()["approval_code"]
    )


def test_a_machine_that_registers_by_booting_is_shown_with_its_hardware(
    browser: Browser, daemon: Daemon
) -> None:
    code = check_in(daemon, boot(daemon))
    [machine] = daemon.ask("GET", "/machines")["items"]
    with visit(browser, daemon) as visiting:
        page = visiting.open("/machines")
        row = page.get_by_role("region", name="Machines that wait for approval").get_by_role(
            "row", name="live"
        )
        expect(row).to_contain_text("Example Desk 9 · 8 processors · 16 GiB · nvme0n1 512 GB")
        expect(row).to_contain_text(MAC)
        row.get_by_role("button", name=f"Approve live with code {code}").click()
        wait_until(
            "the machine is approved",
            lambda: daemon.ask("GET", f"/machines/{machine['machine_id']}")["enrolment"] == "approved",
            describe=daemon.describe,
        )


def test_the_panel_shows_the_last_boot_and_chooses_the_next_one(browser: Browser, daemon: Daemon) -> None:
    [machine] = daemon.ask("GET", "/machines")["items"]
    boot(daemon)
    path = f"/machines/{machine['machine_id']}"
    with visit(browser, daemon) as visiting:
        page = visiting.open(path)
        section = page.get_by_role("region", name="Boots over the network")
        expect(section).to_contain_text("live system: live waits for approval")
        expect(section).to_contain_text("UEFI")
        section.get_by_role("button", name="Boot the live system next time").click()
        expect(section).to_contain_text("the live system, once")
        assert daemon.ask("GET", path)["next_boot"] == "live"
        page.get_by_role("region", name="Boots over the network").get_by_role(
            "button", name="Boot as planned"
        ).click()
        expect(page.get_by_role("region", name="Boots over the network")).not_to_contain_text("once")
        assert daemon.ask("GET", path)["next_boot"] == ""


def test_a_rooms_rule_for_unknown_machines_is_changed_in_its_dialog(browser: Browser, daemon: Daemon) -> None:
    with visit(browser, daemon) as visiting:
        page = visiting.open("/rooms/lab-1")
        page.get_by_role("button", name="Edit").first.click()
        dialog = page.get_by_role("dialog")
        expect(dialog.get_by_label("Unknown machines that boot")).to_have_value("ask")
        expect(dialog.get_by_label("Boot menu")).to_have_value("off")
        dialog.get_by_label("Unknown machines that boot").select_option("auto")
        dialog.get_by_label("Boot menu").select_option("on")
        dialog.get_by_role("button", name="Save").click()
        expect(dialog).to_have_count(0)
        room = daemon.ask("GET", "/rooms/lab-1")
        assert (room["unknown_machines"], room["boot_menu"]) == ("auto", True)
