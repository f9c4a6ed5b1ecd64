"""Tests of casts in the browser: start, watch, pause, cancel, and find the cause of a failure."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.support.disks.slow_disk import Action, Behaviour, Fault, Operation, slow_disk
from tests.support.programs.serving import ServiceAgent, wait_online
from tests.web.browsing import Visit
from tests.web.conftest import IMAGE, ROOM, ROOM_NAME, Lab

SLOW_BYTES_PER_S = 1.3e5
"""A minute for the image: enough time to watch and to cancel."""
_BREAKS = Behaviour(faults=(Fault(Operation.WRITE, Action.ERROR, after_bytes=2 << 20),))


def _fill_in(page: Page, rate: str) -> None:
    """Start a cast of the image to the room at this rate."""
    page.get_by_label("Image", exact=False).first.select_option(label=_option_of(page, IMAGE))
    page.get_by_text("More options: rate, encryption, slow machines").click()
    page.get_by_label("Fixed", exact=True).check()
    page.locator("input[name=rate_bytes_per_s]").fill(rate)


def _option_of(page: Page, name: str) -> str:
    options = page.locator("select[name=image] option").all_inner_texts()
    return next(text for text in options if name in text)


def _badge(page: Page, text: str) -> None:
    expect(page.locator(".cast-head .badge")).to_have_text(text)


def test_an_operator_starts_a_cast_and_watches_it_finish(window: Visit, ready_lab: Lab) -> None:
    page = window.open(f"/rooms/{ROOM}")
    expect(page.locator(".tile[data-state=idle], .tile[data-state=complete]")).to_have_count(3)
    page.get_by_role("link", name="New cast").click()
    expect(page.get_by_role("heading", name="New cast")).to_be_focused()
    expect(page.locator("select[name=room_id]")).to_have_value(ROOM)
    _fill_in(page, "24M")
    page.get_by_role("button", name="Start the cast").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(f"3 machines of {ROOM_NAME}")
    expect(dialog).to_contain_text("overwritten")
    dialog.get_by_role("button", name="Start the cast").click()
    page.wait_for_url(re.compile("#/casts/[0-9a-f]{8}$"))
    with ready_lab.held_cast(page.url.rpartition("/")[2]):
        _badge(page, "Casting")
        expect(page.locator(".cast-head .progress")).not_to_have_attribute("aria-valuenow", "0")
    _badge(page, "Done")
    expect(page.locator(".cast-head")).to_contain_text("Every machine verified every byte")
    expect(page.locator(".cast-head .progress")).to_have_attribute("aria-valuenow", "100")
    expect(page.locator(".machines-table .badge", has_text="Complete")).to_have_count(3)
    expect(page.locator(".events li", has_text="complete: every byte verified")).to_have_count(3)
    expect(page.locator(".chart canvas")).to_have_count(3)
    for summary in page.locator(".chart-summary").all():
        expect(summary).not_to_have_text("No data yet.")
    for agent in ready_lab.agents.values():
        assert agent.target.read_bytes() == ready_lab.raw

    page.goto(f"{window.url}/#/")
    expect(page.locator("table")).to_contain_text("3 of 3")
    page.goto(f"{window.url}/#/history")
    expect(page.locator("tbody tr", has_text="Complete").first).to_be_visible()


def test_a_cast_is_paused_resumed_and_cancelled_after_a_question(window: Visit, ready_lab: Lab) -> None:
    cast_id = ready_lab.daemon.create_cast(
        IMAGE, room_id=ROOM, rate_bytes_per_s=SLOW_BYTES_PER_S, name="Friday refresh"
    )
    page = window.open(f"/casts/{cast_id}")
    expect(page.locator("h1")).to_have_text("Friday refresh")
    _badge(page, "Casting")
    page.get_by_role("button", name="Pause").click()
    _badge(page, "Paused")
    page.get_by_role("button", name="Resume").click()
    _badge(page, "Casting")
    cancel = page.get_by_role("button", name="Cancel cast")
    cancel.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("doesn't boot")
    expect(dialog.get_by_role("button", name="Continue the cast")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(cancel).to_be_focused()
    assert ready_lab.daemon.cast(cast_id)["phase"] == "casting"
    cancel.click()
    dialog.get_by_role("button", name="Cancel the cast").click()
    _badge(page, "Cancelled")
    ready_lab.daemon.wait_phase(cast_id, "cancelled")
    expect(page.get_by_role("link", name="Cast again")).to_be_visible()


def test_a_cast_begun_by_hand_waits_for_the_button(desktop: Visit, ready_lab: Lab) -> None:
    cast_id = ready_lab.daemon.create_cast(IMAGE, room_id=ROOM, start="manual", rate_bytes_per_s=8e6)
    page = desktop.open(f"/casts/{cast_id}")
    expect(page.locator(".cast-head .progress-words")).to_have_text("3 of 3 joined")
    page.get_by_role("button", name="Start now").click()
    _badge(page, "Done")


@pytest.mark.needs_root
def test_a_failed_machine_is_seen_with_its_reason_and_what_to_do(
    window: Visit, ready_lab: Lab, tmp_path: Path
) -> None:
    daemon = ready_lab.daemon
    with (
        slow_disk(tmp_path, _BREAKS) as disk,
        ServiceAgent(tmp_path, "pc13", [daemon], target=disk.directory / "disk"),
    ):
        ids = wait_online(daemon, ["pc13"])
        daemon.ask("PATCH", f"/machines/{ids['pc13']}", {"room_id": ROOM, "position": "row 2, seat 1"})
        try:
            cast_id = daemon.create_cast(IMAGE, room_id=ROOM, rate_bytes_per_s=4e6)
            page = window.open(f"/casts/{cast_id}")
            reason = page.locator(".reason-row:visible", has_text="Input/output error")
            expect(reason).to_be_visible()
            _badge(page, "Failed")
            # The advice follows from the agent's exit code, which is part of its record.
            expect(reason).to_contain_text("Check its health")
            expect(page.locator("tbody tr").first).to_contain_text("pc13")
            expect(page.get_by_role("link", name="Cast again to incomplete machines")).to_be_visible()

            page = window.open(f"/rooms/{ROOM}")
            tile = page.locator(".tile", has_text="pc13")
            expect(tile).to_contain_text("Failed")
            tile.click()
            panel = page.get_by_role("complementary", name="Machine")
            expect(panel.get_by_role("heading", name="pc13")).to_be_focused()
            expect(panel.locator(".alert")).to_contain_text("Input/output error")
            expect(panel.locator(".alert")).to_contain_text("What to do: Its disk failed to read or write")

            page = window.open("/history?state=failed")
            expect(page.locator("tbody tr").first).to_contain_text("Input/output error")
        finally:
            daemon.ask("DELETE", f"/machines/{ids['pc13']}")
