"""Tests of a room of 500 machines: the cost of an update depends on the changes, not on the room's size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.programs.serving import Daemon
from tests.web.browsing import visit

COUNT = 500

_WATCH = """() => {
    window.touched = new Map();
    window.outside = 0;
    window.longTasks = [];
    new PerformanceObserver(list => window.longTasks.push(...list.getEntries().map(entry => entry.duration)))
        .observe({entryTypes: ['longtask']});
    new MutationObserver(records => {
        for (const record of records) {
            const element = record.target.nodeType === 1 ? record.target : record.target.parentElement;
            const tile = element.closest('.tile');
            if (tile) {
                const name = tile.querySelector('.tile-name').textContent;
                window.touched.set(name, (window.touched.get(name) ?? 0) + 1);
            } else if (element.closest('.tiles')) {
                window.outside += 1;
            }
        }
    }).observe(
        document.querySelector('.tiles'), {subtree: true, childList: true, characterData: true, attributes: true});
}"""


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("rack")) as daemon:
        daemon.ask("POST", "/rooms", {"name": "Rack A", "room_id": "rack"})
        lines = [f"node{index:03},SN-node{index:03},unit {index}" for index in range(COUNT)]
        text = "\n".join(["name,serial,position", *lines])
        response = daemon.api.post("/rooms/rack/import", content=text, headers={"Content-Type": "text/csv"})
        assert response.json()["added"] == COUNT, response.text
        yield daemon


def _check_in(daemon: Daemon, names: Sequence[str]) -> None:
    for name in names:
        word = {
            "agent_id": f"agent-{name}", "name": name, "version": "0.1.0", "interface": "eth0", "macs": [],
            "serial": f"SN-{name}", "asset_tag": "", "inventory": {}, "state": "idle", "cast_id": None, "wait_s": 0,
            "last_result": None,
        }  # fmt: skip
        daemon.check_in(word)


def _touched(page: Page) -> dict[str, int]:
    return dict(page.evaluate("[...window.touched]"))


def test_an_update_of_one_machine_touches_one_tile_of_500(browser: Browser, rack: Daemon) -> None:
    with visit(browser, rack) as visiting:
        page = visiting.open("/rooms/rack")
        expect(page.locator(".tile")).to_have_count(COUNT)
        expect(page.locator(".connection")).to_have_text("Live")
        page.evaluate(_WATCH)

        _check_in(rack, ["node007"])
        expect(page.locator(".tile", has_text="node007")).to_have_attribute("data-state", "idle")
        assert _touched(page).keys() == {"node007"}
        assert page.evaluate("window.outside") == 0, "no tile moved"

        some = [f"node{index:03}" for index in range(100, 140)]
        _check_in(rack, some)
        expect(page.locator(".tile[data-state=idle]")).to_have_count(41)
        touched = _touched(page)
        assert touched.keys() == {"node007", *some}
        expect(page.locator(".grid-summary")).to_have_text("500 machines, 41 online")

        mutations = sum(touched.values()) / len(touched)
        print(
            f"{mutations:.1f} mutations a changed tile; long tasks, ms: {page.evaluate('window.longTasks')}"
        )


def test_what_changes_out_of_sight_is_there_before_somebody_comes_to_it(
    browser: Browser, rack: Daemon
) -> None:
    with visit(browser, rack) as visiting:
        page = visiting.open("/rooms/rack")
        expect(page.locator(".connection")).to_have_text("Live")
        [machine] = [
            row for row in rack.ask("GET", "/machines", limit="500")["items"] if row["name"] == "node450"
        ]
        rack.ask("PATCH", f"/machines/{machine['machine_id']}", {"position": "unit 450, by the door"})
        tile = page.locator(".tile", has_text="node450")
        expect(tile.locator(".tile-detail")).to_have_text("unit 450, by the door")
        assert tile.evaluate("element => element.getBoundingClientRect().top > innerHeight")


def test_one_of_500_is_found_sorted_and_filtered(browser: Browser, rack: Daemon) -> None:
    _check_in(rack, ["node300"])
    with visit(browser, rack) as visiting:
        page = visiting.open("/rooms/rack")
        tiles = page.locator(".tile:visible")
        expect(tiles).to_have_count(COUNT)
        page.get_by_label("Search machines").fill("node04")
        expect(tiles).to_have_count(10)
        page.get_by_label("Search machines").fill("")
        page.get_by_label("Sort machines by").select_option("state")
        expect(tiles.first).to_have_attribute("data-state", "idle")
        page.get_by_role("button", name="Ready").click()
        expect(page.locator(".tile[data-state=offline]:visible")).to_have_count(0)
        page.get_by_label("Sort machines by").select_option("name")
        page.get_by_role("button", name="Ready").click()
        expect(tiles.first).to_contain_text("node000")
        page.get_by_role("button", name="Small tiles").click()
        page.reload()
        expect(page.locator(".tiles.dense")).to_be_visible()
        expect(page.get_by_label("Sort machines by")).to_have_value("name")
