"""The template of a room in the dashboard. Lost if these fail: nobody can try settings before a cast writes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.support.patch_rooms import make_golden_image
from tests.support.programs.serving import Daemon, ServiceAgent, wait_online
from tests.web.browsing import visit

TEMPLATE = """hostname = "{{ name }}-{{ suffix }}"
secret_variables = ["pin"]

[[files]]
path = "/etc/pin"
content = "pin {{ pin }}"
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("templates")
    with (
        Daemon(folder) as started,
        ServiceAgent(folder / "disks", "pc01", [started], options=("--allow-unsigned",)) as agent,
    ):
        started.ask("POST", "/rooms", {"name": "Lab 1", "room_id": "lab-1"})
        started.add_image(make_golden_image(folder))
        ids = wait_online(started, [agent.name])
        started.ask("PATCH", f"/machines/{ids['pc01']}", {"room_id": "lab-1"})
        yield started


def test_a_template_is_tried_saved_and_cast(browser: Browser, daemon: Daemon) -> None:
    with visit(browser, daemon) as visiting:
        page = visiting.open("/rooms/lab-1")
        page.get_by_role("button", name="Machine settings").click()
        dialog = page.get_by_role("dialog").first
        dialog.get_by_label("Template").fill(TEMPLATE)
        dialog.get_by_role("button", name="Preview").click()
        expect(dialog.get_by_role("alert")).to_contain_text("no variable 'pin'")
        dialog.get_by_role("button", name="Import variables").click()
        importing = page.get_by_role("dialog", name="Import variables")
        importing.get_by_label("or paste its content").fill("name,suffix,pin\npc01,west,4711\n")
        importing.get_by_role("button", name="Import", exact=True).click()
        expect(page.locator("#notices")).to_contain_text("Variables of 1 machine changed")
        dialog.get_by_role("button", name="Preview").click()
        shown = dialog.get_by_role("status")
        expect(shown).to_contain_text("gets the host name pc01-west")
        expect(shown).to_contain_text("pin (secret)")
        expect(shown).not_to_contain_text("4711")
        _picture(page, "template")
        dialog.get_by_label("Template").fill("hostnme = 1")
        dialog.get_by_role("button", name="Save").click()
        expect(dialog.get_by_role("alert")).to_contain_text("did you mean hostname?")
        visiting.allowed += ["422", "404"]  # the refused template, and a room without one
        dialog.get_by_label("Template").fill(TEMPLATE)
        dialog.get_by_role("button", name="Save").click()
        expect(page.locator("#notices")).to_contain_text("Machine settings saved")
        assert daemon.ask("GET", "/rooms/lab-1/template")["text"] == TEMPLATE

        cast_id = daemon.create_cast("golden.raw", room_id="lab-1")
        daemon.wait_phase(cast_id, "done")
        page = visiting.open(f"/casts/{cast_id}")
        expect(page.locator(".machines-table")).to_contain_text("customised")
        _picture(page, "cast")
        [row] = daemon.history(cast_id=cast_id)
        page = visiting.open(f"/rooms/lab-1/machines/{row['machine_id']}")
        expect(page.locator(".history-list")).to_contain_text("verified · customised")
        _picture(page, "machine")

        page.get_by_role("button", name="Machine settings").click()
        page.get_by_role("dialog").get_by_role("button", name="Remove template").click()
        expect(page.locator("#notices")).to_contain_text("Template removed")


def _picture(page: object, name: str) -> None:
    if os.environ.get("PICS"):
        page.screenshot(path=str(Path(os.environ["PICS"]) / f"{name}.png"))  # type: ignore[attr-defined]
