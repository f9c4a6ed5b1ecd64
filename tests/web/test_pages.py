"""Tests of rooms, images, schedules, tokens, hostile names, and use by keyboard only."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from protocol.shared.units import format_bytes, format_duration, format_rate
from tests.support.disks.disk_images import make_image
from tests.support.programs.serving import Daemon, wait_until
from tests.support.signing import SIGNER
from tests.web.browsing import DESKTOP, PHONE, Visit, visit
from tests.web.conftest import IMAGE, ROOM, ROOM_NAME, Lab


def test_a_room_is_made_and_its_machines_are_imported(desktop: Visit, lab: Lab) -> None:
    page = desktop.open("/rooms")
    page.get_by_role("button", name="New room").click()
    page.get_by_label("Name (required)", exact=True).fill("Physics Lab 7")
    expect(page.get_by_label("Short name (required)")).to_have_value("physics-lab-7")
    page.get_by_role("button", name="Create the room").click()
    expect(page.locator("h1")).to_have_text("Physics Lab 7")
    expect(page.get_by_text("No machines in this room yet.")).to_be_visible()

    page.get_by_role("button", name="Import machines").click()
    page.get_by_label("or paste its content").fill("name,mac\nphy01,nonsense\n")
    page.get_by_role("button", name="Import", exact=True).click()
    expect(page.get_by_role("dialog").get_by_text("line 2")).to_be_visible()
    page.get_by_label("or paste its content").fill(
        "name,mac,position\nphy01,02:00:00:00:70:01,row 1\nphy02,02:00:00:00:70:02,row 2\n"
    )
    page.get_by_role("button", name="Import", exact=True).click()
    expect(page.locator(".tile[data-state=offline]")).to_have_count(2)
    lab.daemon.ask("DELETE", "/rooms/physics-lab-7")


def test_markup_in_names_is_text(desktop: Visit, lab: Lab) -> None:
    evil = "<img src=x onerror=alert(1)><b>Lab</b>"
    lab.daemon.ask(
        "POST", "/rooms", {"name": evil, "room_id": "evil", "description": "<script>alert(2)</script>"}
    )
    machine = {"name": "<i>pc</i>", "room_id": "evil", "serial": "'\"><svg onload=alert(3)>", "note": "&lt;"}
    machine_id = lab.daemon.ask("POST", "/machines", machine)["machine_id"]
    page = desktop.open(f"/rooms/evil/machines/{machine_id}")
    expect(page.locator("h1")).to_have_text(evil)
    expect(page.get_by_role("complementary").get_by_text("'\"><svg onload=alert(3)>")).to_be_visible()
    assert page.locator("main b, main img, main script, main i").count() == 0
    lab.daemon.ask("DELETE", f"/machines/{machine_id}")
    lab.daemon.ask("DELETE", "/rooms/evil")


def test_a_schedule_is_made_switched_off_and_removed(desktop: Visit, lab: Lab) -> None:
    page = desktop.open("/schedules")
    page.get_by_role("button", name="New schedule").click()
    page.get_by_label("Name (required)", exact=True).fill("Nightly refresh")
    page.locator("input[name=time]").fill("03:15")
    page.locator("select[name=image]").select_option(index=1)
    page.get_by_role("button", name="Create the schedule").click()
    card = page.locator(".schedule-card")
    expect(card).to_contain_text("Monday to Friday at 03:15")
    switch = card.get_by_role("switch")
    expect(switch).to_be_checked()
    switch.click()
    expect(page.locator(".schedule-card").get_by_role("switch")).not_to_be_checked()
    wait_until("the daemon knows", lambda: not lab.daemon.ask("GET", "/schedules")["items"][0]["enabled"])
    page.get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove the schedule").click()
    expect(page.get_by_text("No schedules yet.")).to_be_visible()


def test_an_image_is_added_by_address_and_forgotten(desktop: Visit) -> None:
    page = desktop.open("/images")
    expect(page.locator(".image-card")).to_have_count(1)
    page.get_by_role("button", name="Add by URL").click()
    page.get_by_label("URL (required)").fill("not an address")
    page.get_by_role("button", name="Add the image").click()
    expect(page.get_by_label("URL (required)")).to_be_focused()
    expect(page.get_by_role("dialog").locator(".field-error:visible")).to_have_count(1)


def test_an_unsigned_image_shows_the_command_that_signs_it(desktop: Visit, lab: Lab, tmp_path: Path) -> None:
    """An operator who sees only that machines refuse the image doesn't know what to do."""
    made = make_image("rz", seed=77, name="unsigned")
    shown = lab.daemon.add_image(made.write(tmp_path / "unsigned.dci", signer=None))
    page = desktop.open("/images")
    card = page.locator(".image-card").filter(has_text="unsigned")
    expect(card.get_by_text(f"diskcast images sign {shown['image_id'][:12]}")).to_be_visible()
    signed_card = page.locator(".image-card").filter(has_text=SIGNER.public.id_text)
    expect(signed_card).to_have_count(1)
    (lab.daemon.images / "unsigned.dci").unlink()
    expect(page.locator(".image-card")).to_have_count(1)


def test_what_the_daemon_refuses_stands_beside_its_field(desktop: Visit) -> None:
    desktop.allowed.append("422")
    page = desktop.open(f"/new-cast?room={ROOM}")
    page.locator("select[name=image]").select_option(index=1)
    page.locator("input[name=wait_for]").fill("3")
    page.get_by_text("More options: rate, encryption, slow machines").click()
    page.get_by_label("Fixed", exact=True).check()
    rate = page.locator("input[name=rate_bytes_per_s]")
    rate.fill("fast")
    page.get_by_role("button", name="Start the cast").click()
    expect(rate).to_be_focused()
    expect(page.locator(".field-error:visible")).to_contain_text("800M")
    rate.fill("1")
    page.get_by_role("button", name="Start the cast").click()
    page.get_by_role("dialog").get_by_role("button", name="Start the cast").click()
    expect(page.locator(".field-error:visible")).to_have_count(1)
    expect(rate).to_have_attribute("aria-invalid", "true")


def test_a_connection_that_is_lost_is_said_and_comes_back_by_itself(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with (
        Daemon(tmp_path_factory.mktemp("short-lived")) as daemon,
        visit(browser, daemon) as visiting,
    ):
        visiting.allowed.append(
            "ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED|ERR_CONNECTION_RESET|ERR_EMPTY|ERR_ABORTED"
        )
        page = visiting.open("/")
        pill = page.locator(".connection")
        expect(pill).to_have_text("Live")
        daemon.kill()
        banner = page.locator(".connection-banner")
        expect(banner).to_contain_text("Connection lost, data from ")
        expect(page.locator("html")).to_have_attribute("data-stale", "")
        icon = banner.locator("use").get_attribute("href")
        assert page.locator(f"symbol{icon}").count() == 1, "what shows the outage doesn't need the daemon"
        daemon.start()
        expect(pill).to_have_text("Live")
        expect(banner).to_be_hidden()


def test_everything_can_be_done_by_keyboard(desktop: Visit, ready_lab: Lab) -> None:
    page = desktop.open("/")
    press = page.keyboard.press
    press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    press("Enter")
    expect(page.locator("main")).to_be_focused()

    page.get_by_role("navigation", name="Main").get_by_role("link", name="Rooms").focus()
    press("Enter")
    expect(page.get_by_role("heading", name="Rooms", level=1)).to_be_focused()
    page.get_by_role("link", name=ROOM_NAME, exact=True).focus()
    press("Enter")
    expect(page.get_by_role("heading", name=ROOM_NAME, level=1)).to_be_focused()

    tiles = page.locator(".tile-link")
    expect(tiles).to_have_count(3)
    assert page.locator(".tile-link[tabindex='0']").count() == 1, "the grid is one stop of the Tab key"
    tiles.nth(0).focus()
    press("ArrowRight")
    expect(tiles.nth(1)).to_be_focused()
    press("End")
    expect(tiles.nth(2)).to_be_focused()
    press("Home")
    press("ArrowLeft")
    expect(tiles.nth(0)).to_be_focused()
    press("ArrowRight")
    press("Enter")
    expect(page.get_by_role("complementary").get_by_role("heading", name="pc02")).to_be_focused()
    press("Escape")
    expect(page.get_by_role("complementary")).to_have_count(0)
    expect(tiles.nth(1)).to_be_focused()

    page.get_by_role("link", name="New cast").focus()
    press("Enter")
    expect(page.get_by_role("heading", name="New cast")).to_be_focused()
    press("Tab")
    expect(page.locator("select[name=image]")).to_be_focused()
    page.get_by_role("button", name="Start the cast").focus()
    press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Start the cast")).to_be_focused()
    press("Enter")
    expect(page.locator(".cast-head .badge")).to_have_text("Done")
    assert ready_lab.daemon.history(state="complete")


def test_thumbs_hit_what_they_aim_at_and_nothing_is_wider_than_the_phone(browser: Browser, lab: Lab) -> None:
    with visit(browser, lab.daemon, (360, 740)) as visiting:
        for address in (
            "/",
            "/rooms",
            f"/rooms/{ROOM}",
            f"/new-cast?room={ROOM}",
            "/images",
            "/history",
            "/audit",
            "/tokens",
        ):
            page = visiting.open(address)
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, address
            small = page.evaluate(
                """[...document.querySelectorAll('.button, .nav-link, .icon-button, .tile-link, .chip, select')]
                .filter(element => element.offsetParent && element.getBoundingClientRect().height < 43.5)
                .map(element => element.textContent)"""
            )
            assert not small, address
        more = page.get_by_role("button", name="More")
        more.click()
        page.get_by_role("navigation").get_by_role("link", name="History").click()
        expect(page.locator("h1")).to_have_text("History")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_colours_follow_the_system_until_somebody_chooses(
    browser: Browser, lab: Lab, size: tuple[int, int]
) -> None:
    with visit(browser, lab.daemon, size, theme="dark") as visiting:
        page = visiting.open("/")
        html = page.locator("html")
        expect(html).to_have_attribute("data-theme", "dark")
        page.emulate_media(color_scheme="light")
        expect(html).to_have_attribute("data-theme", "light")
        page.get_by_role("button", name="Colours: system").click()
        page.get_by_role("button", name="Colours: light").click()
        expect(html).to_have_attribute("data-theme", "dark")
        page.reload()
        expect(html).to_have_attribute("data-theme", "dark")


def test_units_read_as_on_the_command_line(desktop: Visit) -> None:
    page = desktop.open("/")
    sizes = [0, 1023, 1024, 1536, 5 << 20, 3 << 30, 7 << 40]
    rates = [0.0, 100.0, 124_000.0, 117e6, 1.25e9]
    times = [0.0, 4.21, 59.9, 61.0, 185.0, 3723.0]
    assert not any(math.isnan(rate) for rate in rates)
    shown = page.evaluate(
        """async ([sizes, rates, times]) => {
            const format = await import('/assets/format.js');
            return [sizes.map(format.formatBytes), rates.map(format.formatRate), times.map(format.formatDuration)];
        }""",
        [sizes, rates, times],
    )
    expected = [
        list(map(format_bytes, sizes)),
        list(map(format_rate, rates)),
        list(map(format_duration, times)),
    ]
    assert shown == expected


def test_an_image_can_be_cast_from_the_library(desktop: Visit) -> None:
    page = desktop.open("/images")
    page.get_by_role("link", name="Cast", exact=True).click()
    expect(page.locator("select[name=image] option:checked")).to_contain_text(IMAGE)


def _break_the_policy(browser: Browser, url: str) -> None:
    with visit(browser, url) as visiting:
        page = visiting.open("/")
        with page.expect_console_message(lambda message: "CSP" in message.text):
            page.evaluate(
                "() => { const made = document.createElement('script'); made.text = '0'; document.body.append(made); }"
            )


def test_these_tests_would_notice_a_breach_of_the_content_security_policy(browser: Browser, lab: Lab) -> None:
    with pytest.raises(AssertionError, match="CSP: script-src-elem inline"):
        _break_the_policy(browser, lab.daemon.url)
