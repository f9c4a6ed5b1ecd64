"""The preflight in the browser: if these fail, a cast starts without a word about machines that can't take it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.web.browsing import Visit
from tests.web.conftest import IMAGE, Lab
from tests.web.odd_room import ODD_ROOM, odd_room
from tests.web.test_accessibility import assert_accessible


@pytest.fixture(scope="module")
def annex(lab: Lab) -> Iterator[Lab]:
    with odd_room(lab.daemon):
        yield lab


def press_start(window: Visit) -> Page:
    page = window.open(f"/new-cast?room={ODD_ROOM}")
    options = page.locator("select[name=image] option").all_inner_texts()
    page.locator("select[name=image]").select_option(label=next(text for text in options if IMAGE in text))
    page.get_by_role("button", name="Start the cast").click()
    return page


def test_warnings_need_a_click_and_refused_machines_are_named(window: Visit, annex: Lab) -> None:
    page = press_start(window)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("1 machine doesn't fit the image and will be left out")
    expect(dialog).to_contain_text("1 machine has warnings")
    rows = dialog.locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text("annex02")
    expect(rows.nth(0).locator(".badge").first).to_have_text("Refuse")
    expect(rows.nth(1).locator(".badge", has_text="Warn")).to_have_count(1)
    expect(dialog).to_contain_text("is smaller than the image")
    expect(dialog).to_contain_text("256.0 MiB; 384.0 MiB are needed")
    assert_accessible(page, "preflight")
    start = dialog.get_by_role("button", name="Start the cast")
    expect(start).to_be_disabled()
    dialog.get_by_label("Cast also to 1 machine with warnings").check()
    start.click()
    page.wait_for_url(re.compile("#/casts/[0-9a-f]{8}$"))
    annex.daemon.api.post(f"/casts/{page.url.rpartition('/')[2]}/cancel")


def test_without_consent_there_is_no_cast(desktop: Visit, annex: Lab) -> None:
    before = len(annex.daemon.ask("GET", "/casts")["items"])
    page = press_start(desktop)
    page.get_by_role("dialog").get_by_role("button", name="Not yet").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert len(annex.daemon.ask("GET", "/casts")["items"]) == before
