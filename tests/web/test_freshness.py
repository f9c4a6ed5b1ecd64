"""Tests of the values on pages: current, not rounded to something else, and complete."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from protocol.constants import SLOW_BELOW_DEFAULT, SLOW_FOR_S_DEFAULT
from tests.support.programs.serving import Daemon
from tests.web.browsing import Visit, visit
from tests.web.conftest import IMAGE, ROOM, Lab

SLOW_BYTES_PER_S = 1.3e5
"""A minute for the image: enough time to watch and to cancel."""


def test_a_room_and_the_list_of_casts_show_how_the_newest_cast_goes(desktop: Visit, ready_lab: Lab) -> None:
    daemon = ready_lab.daemon
    first = daemon.create_cast(IMAGE, room_id=ROOM, name="Monday")
    daemon.wait_phase(first, "done")
    ready_lab.empty_disks()
    page = desktop.open("/casts")
    row = page.locator("tbody tr", has_text="Tuesday")
    expect(row).to_have_count(0)
    second = daemon.create_cast(IMAGE, room_id=ROOM, rate_bytes_per_s=SLOW_BYTES_PER_S, name="Tuesday")
    expect(row.locator(".badge")).to_have_text("Casting")
    link = row.get_by_role("link", name="Tuesday")
    link.focus()
    daemon.ask("POST", f"/casts/{second}/cancel")
    expect(row.locator(".badge")).to_have_text("Cancelled")
    expect(row).to_contain_text("3 failed")
    expect(link).to_be_focused()  # the row was updated in place

    page = desktop.open(f"/rooms/{ROOM}")
    expect(page.locator(".tile[data-state=failed]")).to_have_count(3)
    page.locator(".tile").first.click()
    panel = page.get_by_role("complementary", name="Machine")
    expect(panel.get_by_role("link", name=second)).to_be_visible()


def test_a_schedule_is_changed_in_its_own_words(desktop: Visit, lab: Lab) -> None:
    plan = {"image": IMAGE, "room_id": ROOM, "slow": "wait"}
    schedule = {"name": "Friday refresh", "cron": "15 3 * * 1-5", "plan": plan, "enabled": False}
    path = f"/schedules/{lab.daemon.ask('POST', '/schedules', schedule)['schedule_id']}"
    page = desktop.open("/schedules")
    page.get_by_role("button", name="Edit").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("input[name=time]")).to_have_value("03:15")
    expect(dialog.locator("select[name=image] option:checked")).to_contain_text(IMAGE)
    dialog.get_by_label("Day", exact=True).select_option("5")
    dialog.get_by_role("button", name="Save").click()
    expect(page.locator(".schedule-card")).to_contain_text("Fridays at 03:15")
    changed = lab.daemon.ask("GET", path)
    assert (changed["enabled"], changed["cron"]) == (False, "15 3 * * 5")
    assert (changed["plan"]["room_id"], changed["plan"]["slow"]) == (ROOM, "wait")
    lab.daemon.ask("DELETE", path)


def test_a_page_that_was_asked_for_while_the_daemon_was_away_comes_by_itself(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Daemon(tmp_path_factory.mktemp("away")) as daemon, visit(browser, daemon) as visiting:
        visiting.allowed.append("ERR_|Failed to load resource")
        page = visiting.open("/")
        expect(page.locator(".connection")).to_have_text("Live")
        page.evaluate("import('/assets/views/images.js')")
        daemon.kill()
        page.get_by_role("link", name="Images").click()
        expect(page.locator("main .alert")).to_contain_text("The daemon is not responding.")
        daemon.start()
        expect(page.locator(".empty-title")).to_have_text("The library is empty.")


def test_a_cast_of_the_page_is_one_of_the_command_line_where_nothing_is_chosen(desktop: Visit) -> None:
    page = desktop.open("/new-cast")
    page.get_by_text("More options: rate, encryption, slow machines").click()
    expect(page.locator("input[name=slow_below]")).to_have_value(f"{SLOW_BELOW_DEFAULT:.0%}"[:-1])
    expect(page.locator("input[name=slow_for_s]")).to_have_value(f"{SLOW_FOR_S_DEFAULT:g}")


def test_ticks_of_a_rate_are_the_numbers_that_their_labels_say(desktop: Visit) -> None:
    page = desktop.open("/")
    labels = page.evaluate(
        """async () => {
            const { castCharts } = await import('/assets/charts.js');
            const charts = castCharts(new AbortController().signal);
            document.querySelector('main').append(...charts.elements);
            const drawn = [];
            const write = CanvasRenderingContext2D.prototype.fillText;
            CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
                drawn.push(text);
                return write.call(this, text, ...rest);
            };
            const point = {loss: 0, parity: 0, progress: 0, complete_count: 0, active_count: 1};
            charts.update([0, 1, 2].map(at_s => (
                {...point, at_s, rate_bytes_per_s: 4e5 * (1 + at_s / 4), goodput_bytes_per_s: 0})));
            while (!drawn.some(text => text.endsWith('Mbit/s'))) await new Promise(requestAnimationFrame);
            return drawn.filter(text => text.endsWith('bit/s'));
        }"""
    )
    assert set(labels) <= {f"{value} Mbit/s" for value in range(1, 7)} | {"0 bit/s"}
