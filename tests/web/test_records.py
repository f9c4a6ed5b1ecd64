"""Tests of history and audit in the browser: filters in the address, and the same rows as CSV."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.web.browsing import Visit
from tests.web.conftest import IMAGE, ROOM, Lab


@pytest.fixture
def changed_room(lab: Lab) -> str:
    """Create a room with two audit entries, the second of which has the value before."""
    room_id = "audited"
    lab.daemon.ask("POST", "/rooms", {"name": "Lab 8", "room_id": room_id})
    lab.daemon.ask("PATCH", f"/rooms/{room_id}", {"name": "Lab 9"})
    lab.daemon.ask("DELETE", f"/rooms/{room_id}")
    return f"room {room_id}"


def _csv(visiting: Visit) -> list[str]:
    """Return the rows of the CSV that the page links to, without the header."""
    page = visiting.page
    address = page.get_by_role("link", name="Export CSV").get_attribute("href")
    answer = page.request.get(f"{visiting.url}{address}")
    assert answer.ok, answer.text()
    return answer.text().splitlines()[1:]


def _rows(page: Page) -> list[str]:
    expect(page.locator("tbody tr").first).to_be_visible()
    return page.locator("tbody tr").all_inner_texts()


def test_audit_is_filtered_shared_by_its_address_and_downloaded_as_it_is_shown(
    desktop: Visit, changed_room: str
) -> None:
    page = desktop.open("/audit")
    assert len(_rows(page)) > 3
    page.get_by_label("Subject", exact=True).fill(changed_room)
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(3)
    expect(page.locator("tbody tr").nth(1)).to_contain_text("name: Lab 8 → Lab 9")
    assert len(_csv(desktop)) == 3

    address = page.url.partition("#")[2]
    assert "subject=room+audited" in address
    page.goto("about:blank")
    page = desktop.open(address)
    expect(page.locator("tbody tr")).to_have_count(3)
    expect(page.get_by_label("Subject", exact=True)).to_have_value(changed_room)

    page.get_by_label("Actor", exact=True).fill("nobody")
    page.keyboard.press("Enter")
    expect(page.locator(".empty-title")).to_be_visible()
    assert not _csv(desktop)
    page.get_by_role("link", name="Show all").click()
    expect(page.get_by_label("Actor", exact=True)).to_have_value("")
    assert len(_rows(page)) > 3

    actor = page.get_by_role("link", name=re.compile("^operator of ")).first
    name = actor.inner_text()
    actor.click()
    expect(page.get_by_label("Actor", exact=True)).to_have_value(name)
    page.get_by_label("Until", exact=True).fill("2020-01-01")
    expect(page.locator(".empty-title")).to_be_visible()
    page.go_back()
    assert all(name in row for row in _rows(page))


def test_a_filter_that_another_page_set_stays_when_one_more_is_chosen(desktop: Visit, ready_lab: Lab) -> None:
    cast_id = ready_lab.daemon.create_cast(IMAGE, room_id=ROOM)
    ready_lab.daemon.wait_phase(cast_id, "done")
    page = desktop.open(f"/history?cast_id={cast_id}")
    expect(page.locator("tbody tr")).to_have_count(3)
    page.get_by_label("Result").select_option("failed")
    expect(page.locator(".empty-title")).to_be_visible()
    expect(page.locator(".filter-note")).to_contain_text(f"Only cast {cast_id}.")
    assert not _csv(desktop)
    page.get_by_label("Result").select_option("complete")
    expect(page.locator("tbody tr")).to_have_count(3)
    assert len(_csv(desktop)) == 3

    page = desktop.open(f"/casts/{cast_id}")
    page.get_by_role("link", name="audit log").click()
    expect(page.locator("h1")).to_have_text("Audit")
    expect(page.locator("tbody tr", has_text="cast.create")).to_have_count(1)
    expect(page.locator("tbody tr", has_text="cast.done")).to_have_count(1)
