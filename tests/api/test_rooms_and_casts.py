"""Rooms, machines, casts, schedules, images and check-ins."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from sender.daemon.jobs.cast_job import CastJob
from sender.daemon.jobs.owner import Owner
from sender.store.records.access import Role
from sender.store.records.casts import CastPhase
from tests.api.served import Served, serve
from tests.api.test_refusals import check_problem


def check_in(name: str, mac: str, more: dict[str, object] | None = None) -> dict[str, Any]:
    return {
        "agent_id": f"agent-{name}",
        "name": name,
        "version": "0.1.0",
        "interface": "eth0",
        "macs": [mac],
        "serial": "",
        "asset_tag": "",
        "inventory": {"memory": "8 GiB"},
        "state": "idle",
        "cast_id": None,
        "last_result": None,
        "wait_s": 0,
        **(more or {}),
    }


def test_rooms_are_created_changed_and_removed(operator: httpx.Client) -> None:
    made = operator.post("/rooms", json={"name": "Räum 7 / Ost", "site": "north"})
    assert made.status_code == 201
    room = made.json()
    assert (room["room_id"], room["site"], room["machine_count"]) == ("raum-7-ost", "north", 0)
    assert room["created_at"].endswith("Z")
    check_problem(operator.post("/rooms", json={"name": "Raum 7 Ost"}), 409)
    changed = operator.patch("/rooms/raum-7-ost", json={"description": "upstairs"}).json()
    assert changed == room | {"description": "upstairs"}, "what isn't given stays"
    assert operator.patch("/rooms/raum-7-ost", json={}).json() == changed
    check_problem(operator.patch("/rooms/raum-7-ost", json={"name": None}), 422)
    assert operator.delete("/rooms/raum-7-ost").status_code == 204
    check_problem(operator.delete("/rooms/raum-7-ost"), 404)
    check_problem(operator.patch("/rooms/raum-7-ost", json={"name": "x"}), 404)
    nameless = operator.post("/rooms", json={"name": "機房"}).json()
    assert nameless["room_id"].startswith("room-")


def test_a_machine_needs_an_identity(operator: httpx.Client) -> None:
    check_problem(operator.post("/machines", json={"name": "nobody"}), 422)
    check_problem(operator.post("/machines", json={"name": "pc", "macs": ["52:54:00:00:00"]}), 422)
    check_problem(operator.post("/machines", json={"name": "pc", "macs": ["ff:ff:ff:ff:ff:ff"]}), 422)
    check_problem(operator.post("/machines", json={"name": "pc", "serial": "S1", "room_id": "nowhere"}), 422)
    made = operator.post(
        "/machines", json={"name": "pc", "macs": ["52-54-00-AA-00-01", "52:54:00:aa:00:01"]}
    ).json()
    assert made["macs"] == ["52:54:00:aa:00:01"]
    check_problem(operator.post("/machines", json={"name": "other", "macs": ["52:54:00:aa:00:01"]}), 409)
    machine = f"/machines/{made['machine_id']}"
    assert operator.patch(machine, json={"position": "row 1"}).json()["position"] == "row 1"
    assert operator.get(f"{machine}/history").json() == {"items": [], "next_cursor": None}
    assert operator.delete(machine).status_code == 204
    check_problem(operator.get(machine), 404)


def test_a_csv_file_is_imported_completely_or_not_at_all(operator: httpx.Client) -> None:
    operator.post("/rooms", json={"name": "Imported"}).raise_for_status()
    kind = {"Content-Type": "text/csv; charset=utf-8"}
    wrong = b"\xef\xbb\xbfname,mac,serial\r\npc-1,52:54:00:bb:00:01,\r\npc-2,nonsense,\r\n"
    result = operator.post("/rooms/imported/import", content=wrong, headers=kind).json()
    assert result["problems"][0]["line"] == 3
    assert operator.get("/machines", params={"room_id": "imported"}).json()["items"] == []
    right = wrong.replace(b"nonsense", b"52:54:00:bb:00:02")
    assert operator.post("/rooms/imported/import", content=right, headers=kind).json() == {
        "added": 2, "changed": 0, "unchanged": 0, "problems": [],
    }  # fmt: skip
    assert operator.post("/rooms/imported/import", content=right, headers=kind).json()["unchanged"] == 2
    assert operator.get("/rooms/imported").json()["machine_count"] == 2
    names = [machine["name"] for machine in operator.get("/rooms/imported/live").json()["machines"]]
    assert names == ["pc-1", "pc-2"]
    check_problem(operator.post("/rooms/imported/import", content=b"\xff\xfen", headers=kind), 422)
    check_problem(operator.post("/rooms/nowhere/import", content=right, headers=kind), 404)


def test_a_cast_is_found_started_and_cancelled_by_its_id(operator: httpx.Client, guarded: Served) -> None:
    image_id = guarded.image.manifest.image_id.hex()
    operator.post("/rooms", json={"name": "Found", "room_id": "found"}).raise_for_status()
    when = "2100-01-01T00:00:00+02:00"
    for reference in (image_id, image_id[:8], "made"):
        cast = operator.post(
            "/casts", json={"image": reference, "room_id": "found", "wait_for": 2, "start_at": when}
        )
        assert cast.status_code == 201, cast.text
        assert cast.json()["plan"]["image_id"] == image_id
        assert cast.json()["plan"]["start_at"] == "2099-12-31T22:00:00Z"
        assert cast.json()["created_by"] == "test-operate"
    path = f"/casts/{cast.json()['cast_id']}"
    live = operator.get(path).json()
    assert (live["cast"]["phase"], live["local"]) == ("planned", False)
    assert operator.get(f"{path}/live").json() == {"live": live, "machines": []}
    assert operator.get(f"{path}/timeline").json() == {"points": [], "events": []}
    assert operator.get(f"{path}/machines").json() == {"items": [], "next_cursor": None}
    check_problem(operator.post(f"{path}/pause"), 409)
    cancelled = operator.post(f"{path}/cancel", json={"reason": "wrong image"})
    assert (cancelled.json()["phase"], "wrong image" in cancelled.json()["reason"]) == ("cancelled", True)
    assert operator.post(f"{path}/cancel").status_code == 200, "asking again changes nothing"
    check_problem(operator.post(f"{path}/start"), 409)
    planned = operator.get("/casts", params={"phase": "cancelled"}).json()["items"]
    assert cast.json()["cast_id"] in [item["cast_id"] for item in planned]
    check_problem(operator.post("/casts", json={"image": "no such image"}), 422)
    check_problem(operator.post("/casts", json={"image": "made", "room_id": "nowhere"}), 422)
    nobody = check_problem(operator.post("/casts", json={"image": "made", "wait_for": 1}), 422)
    assert "name a room" in str(nobody["detail"]), "no machine would get a ticket for it"
    check_problem(operator.get("/casts", params={"phase": "flying"}), 422)


def _plan(operator: httpx.Client) -> str:
    operator.post("/rooms", json={"name": "Planned", "room_id": "planned"})
    body = {"image": "made", "room_id": "planned", "wait_for": 1, "start_at": "2100-01-01T00:00:00Z"}
    return str(operator.post("/casts", json=body).json()["cast_id"])


@contextlib.contextmanager
def _casting(guarded: Served, cast_id: str) -> Iterator[None]:
    """Let a cast run in the daemon while the database still has it planned."""
    cast = guarded.store(lambda store: store.casts.get, cast_id)
    live = CastJob(
        dataclasses.replace(cast, phase=CastPhase.CASTING), guarded.recorder, owner=Owner("lab", "d1", "r1")
    )

    async def show() -> None:
        guarded.services.registry.jobs[cast_id] = live

    async def hide() -> None:
        del guarded.services.registry.jobs[cast_id]

    guarded.run(show())
    try:
        yield
    finally:
        guarded.run(hide())


def _listed(operator: httpx.Client, **query: object) -> list[str]:
    return [item["cast_id"] for item in operator.get("/casts", params=query).json()["items"]]


@pytest.mark.parametrize(
    ("always", "asked", "encrypted"), [(False, None, False), (False, True, True), (True, False, True)]
)
def test_a_cast_is_encrypted_if_its_plan_or_the_configuration_says_so(
    tmp_path: Path, always: bool, asked: bool | None, encrypted: bool
) -> None:
    """An operator who encrypts every cast of a daemon must not be undone by one forgotten box."""
    with serve(tmp_path, casts__encrypt=always) as served, served.client(Role.OPERATE) as client:
        client.post("/rooms", json={"name": "R1", "room_id": "r1"}).raise_for_status()
        plan = {"image": "made", "room_id": "r1", "wait_for": 1, "start_at": "2100-01-01T00:00:00Z"}
        made = client.post("/casts", json=plan if asked is None else {**plan, "encrypt": asked})
        assert made.status_code == 201, made.text
        assert made.json()["plan"]["encrypt"] is encrypted


def test_a_list_by_phase_agrees_with_the_cast_itself(operator: httpx.Client, guarded: Served) -> None:
    cast_id = _plan(operator)
    with _casting(guarded, cast_id):
        assert operator.get(f"/casts/{cast_id}").json()["cast"]["phase"] == "casting"
        assert _listed(operator, phase="casting") == [cast_id]
        assert cast_id not in _listed(operator, phase="planned")


def test_a_page_is_full_even_if_a_cast_changes_phase_during_the_query(
    operator: httpx.Client, guarded: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = _plan(operator), _plan(operator)
    monkeypatch.setattr(guarded.services.registry, "phases", dict)  # asked a moment before
    with _casting(guarded, newer):
        assert _listed(operator, phase="planned", limit=1) == [older]


def test_a_schedule_uses_its_own_time_zone(operator: httpx.Client) -> None:
    operator.post("/rooms", json={"name": "Nightly", "room_id": "nightly"}).raise_for_status()
    body = {
        "name": "nightly",
        "cron": "30 3 * * *",
        "time_zone": "America/New_York",
        "plan": {"image": "made", "room_id": "nightly", "wait_for": 1},
    }
    made = operator.post("/schedules", json=body)
    assert made.status_code == 201, made.text
    schedule = made.json()
    next_at = datetime.fromisoformat(schedule["next_at"])
    assert next_at > datetime.now(UTC)
    at = next_at.astimezone(ZoneInfo("America/New_York"))
    assert (at.hour, at.minute) == (3, 30)
    path = f"/schedules/{schedule['schedule_id']}"
    off = operator.patch(path, json={"enabled": False}).json()
    assert off == schedule | {"enabled": False, "next_at": None}
    on = operator.patch(path, json={"enabled": True, "cron": "15 4 * * *", "time_zone": "UTC"}).json()
    assert "T04:15:00" in on["next_at"]
    renamed = operator.patch(path, json={"plan": {"image": "made", "room_id": "nightly", "name": "new"}})
    assert renamed.json()["plan"]["name"] == "new"
    assert [item["schedule_id"] for item in operator.get("/schedules").json()["items"]] == [
        schedule["schedule_id"]
    ]
    assert operator.delete(path).status_code == 204
    check_problem(operator.get(path), 404)


def test_an_image_in_a_folder_disappears_with_its_file(operator: httpx.Client, guarded: Served) -> None:
    [image] = operator.get("/images").json()["items"]
    assert (image["name"], image["state"], image["source"]) == ("made", "available", "folder")
    assert operator.get(f"/images/{image['image_id']}").json() == image
    assert "remove" in str(check_problem(operator.delete(f"/images/{image['image_id']}"), 409)["detail"])
    check_problem(operator.get(f"/images/{'0' * 64}"), 404)
    for url in ("file:///etc/passwd", "ftp://x/y.dci", "http://", "http:///x.dci", "https://h/\nx.dci", "x"):
        check_problem(operator.post("/images", json={"url": url}), 422)
    assert operator.post("/images/scan").json() == {"started": True}


def test_a_check_in_registers_its_machine(guarded: Served, operator: httpx.Client) -> None:
    with guarded.client(Role.ENROL) as agent:
        enrolment = agent.post("/check-in", json=check_in("new-pc", "52:54:00:cc:00:01"))
        assert enrolment.status_code == 200, enrolment.text
        agent.headers["Authorization"] = f"Bearer {enrolment.json()['machine_secret']}"
        answer = agent.post("/check-in", json=check_in("new-pc", "52:54:00:cc:00:01"))
        assert answer.status_code == 200, answer.text
        known = answer.json()
        assert known["machine_secret"] == "", "given only once"
        assert (known["name"], known["assignment"]) == ("new-pc", None)
        machine = operator.get(f"/machines/{known['machine_id']}").json()
        assert (machine["macs"], machine["inventory"]) == (["52:54:00:cc:00:01"], {"memory": "8 GiB"})
        renamed = operator.patch(f"/machines/{known['machine_id']}", json={"name": "desk-9"})
        assert renamed.status_code == 200
        again = agent.post("/check-in", json=check_in("new-pc", "52:54:00:cc:00:01")).json()
        assert (again["machine_id"], again["name"]) == (known["machine_id"], "desk-9")


@pytest.mark.parametrize(
    "wrong",
    [
        {"macs": "52:54:00:00:00:01"},
        {"macs": ["nonsense"]},
        {"wait_s": 1e9},
        {"wait_s": -1},
        {"state": "flying"},
        {"cast_id": 5},
        {"name": ""},
        {"inventory": {"a": 1}},
        {"last_result": {}},
        {"agent_id": "\u202e"},
    ],
)
def test_an_invalid_check_in_is_refused(guarded: Served, wrong: dict[str, object]) -> None:
    with guarded.client(Role.ENROL) as agent:
        problem = check_problem(agent.post("/check-in", json=check_in("pc", "52:54:00:cc:00:02", wrong)), 422)
    assert problem["errors"]
