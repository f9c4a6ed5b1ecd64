"""Pages of lists, and CSV downloads."""

from __future__ import annotations

import csv
import io
from typing import Any

import httpx
import pytest

from sender.api.bodies import csv_download
from sender.store.records.access import Role
from tests.api.served import Served
from tests.api.test_refusals import check_problem
from tests.store.samples import report
from tests.support.hardware import sample_disk, sample_hardware


def walk(client: httpx.Client, path: str, limit: int, **query: object) -> list[list[dict[str, Any]]]:
    """Return all pages of a list."""
    pages = []
    cursor = None
    while True:
        answer = client.get(
            path, params={**query, "limit": limit} | ({} if cursor is None else {"cursor": cursor})
        )
        assert answer.status_code == 200, answer.text
        page = answer.json()
        pages.append(page["items"])
        cursor = page["next_cursor"]
        if cursor is None:
            return pages


@pytest.fixture(scope="module")
def room_ids(guarded: Served) -> list[str]:
    with guarded.client() as client:
        for index in range(7):
            client.post("/rooms", json={"name": f"Paged {index}"}).raise_for_status()
            client.post(
                "/machines", json={"name": f"paged-{index}", "serial": f"PAGED{index}", "room_id": "paged-0"}
            )
    return [f"paged-{index}" for index in range(7)]


def test_paging_returns_every_item_once(operator: httpx.Client, room_ids: list[str]) -> None:
    pages = walk(operator, "/rooms", 3)
    found = [room["room_id"] for page in pages for room in page]
    assert len(found) == len(set(found))
    assert set(room_ids) <= set(found)
    assert all(len(page) == 3 for page in pages[:-1])
    machines = [
        machine["name"] for page in walk(operator, "/machines", 2, room_id="paged-0") for machine in page
    ]
    assert machines == [f"paged-{index}" for index in range(7)]


def test_items_added_between_pages_shift_nothing(operator: httpx.Client, room_ids: list[str]) -> None:
    first = operator.get("/rooms", params={"limit": 4}).json()
    operator.post("/rooms", json={"name": "AAA earlier than all"}).raise_for_status()
    rest = operator.get("/rooms", params={"cursor": first["next_cursor"], "limit": 500}).json()["items"]
    names = [room["room_id"] for room in [*first["items"], *rest]]
    assert len(names) == len(set(names))
    assert set(room_ids) <= set(names)


@pytest.mark.parametrize(
    "path", ["/rooms", "/machines", "/casts", "/images", "/schedules", "/tokens", "/history", "/audit"]
)
def test_page_limits_and_cursors_are_validated(operator: httpx.Client, path: str) -> None:
    for limit in ("0", "501", "-1", "x", "1e3", "9" * 30):
        check_problem(operator.get(path, params={"limit": limit}), 422)
    for cursor in ("x", "!", "e30=", "W10=", "eyJhIjoxfQ==", "A" * 2048, "A" * 3000, ""):
        answer = operator.get(path, params={"cursor": cursor})
        assert answer.status_code in (200, 422), (cursor, answer.text)
        if answer.status_code == 422:
            check_problem(answer, 422)
    assert operator.get(path, params={"limit": 500}).status_code == 200


def test_history_and_audit_can_be_downloaded_as_csv(
    guarded: Served, operator: httpx.Client, room_ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_download, "PAGE_ROWS", 5)
    operator.post("/rooms", json={"name": "=HYPERLINK(1)", "room_id": "formula"}).raise_for_status()
    operator.post("/tokens", json={"name": "@SUM(1)", "role": "operate"}).raise_for_status()
    with guarded.client(Role.VIEW) as viewer:
        answer = viewer.get("/audit.csv")
        entries = walk(viewer, "/audit", 500)[0]
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="diskcast-audit.csv"'
    rows = list(csv.reader(io.StringIO(answer.text)))
    assert rows[0] == ["entry_id", "at", "actor", "action", "subject", "detail", "request_id"]
    assert [int(row[0]) for row in rows[1:]] == [entry["entry_id"] for entry in entries]
    assert len(rows) > len(room_ids)
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "@"))]
    history = operator.get("/history.csv", params={"state": "failed"})
    assert next(csv.reader(io.StringIO(history.text)))[:3] == ["cast_id", "cast_name", "created_by"]
    check_problem(operator.get("/history.csv", params={"cast_id": "x"}), 422)


def test_machines_are_searched_and_downloaded_with_their_hardware(
    guarded: Served, operator: httpx.Client
) -> None:
    odd = sample_hardware(disks=(sample_disk(model="=EVIL()", sector_bytes=4096),))
    for number, hardware in ((1, odd), (2, None)):
        report(
            guarded.services.store, name=f"hw-{number}", macs=[f"52:54:00:77:00:0{number}"], hardware=hardware
        )
    found = operator.get("/machines", params={"search": "hw-1 4kn"}).json()["items"]
    assert [machine["name"] for machine in found] == ["hw-1"]
    shown = operator.get(f"/machines/{found[0]['machine_id']}/hardware")
    assert shown.json()["hardware"]["disks"][0]["sector_bytes"] == 4096
    answer = operator.get("/machines.csv", params={"search": "hw-"})
    assert answer.headers["Content-Disposition"] == 'attachment; filename="diskcast-machines.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["machine"], row["sector_bytes"], row["firmware"]) for row in rows] == [
        ("hw-1", "4096", "uefi"),
        ("hw-2", "", ""),
    ]
    assert "=EVIL()" in rows[0]["disks"]
    bare = operator.get("/machines", params={"search": "hw-2"}).json()["items"][0]["machine_id"]
    check_problem(operator.get(f"/machines/{bare}/hardware"), 404)


def test_the_audit_names_actor_and_request(operator: httpx.Client) -> None:
    made = operator.post("/rooms", json={"name": "Traced"}, headers={"X-Request-Id": "trace-1"})
    assert made.status_code == 201
    entries = operator.get("/audit", params={"subject": "room traced"}).json()["items"]
    assert [(entry["actor"], entry["action"], entry["request_id"]) for entry in entries] == [
        ("test-operate", "room.create", "trace-1")
    ]
