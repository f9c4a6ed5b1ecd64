"""The API of wakes; no packet is sent here, since the waker doesn't run."""

from __future__ import annotations

from pathlib import Path

import httpx

from sender.store.records.access import Role
from tests.api.served import Served, serve
from tests.api.test_refusals import check_problem


def add_machine(operator: httpx.Client, name: str, **fields: object) -> str:
    made = operator.post("/machines", json={"name": name, "serial": f"SN-{name}", **fields})
    assert made.status_code == 201, made.text
    return str(made.json()["machine_id"])


def test_a_room_is_woken_with_its_own_waves(guarded: Served, operator: httpx.Client) -> None:
    room = {"name": "Wake 1", "room_id": "wake-1", "wake_wave_size": 2, "wake_pause_s": 7.5}
    assert operator.post("/rooms", json=room).status_code == 201
    for index in range(3):
        add_machine(operator, f"w{index}", room_id="wake-1", macs=[f"52:54:00:aa:01:{index:02x}"])
    add_machine(operator, "bare", room_id="wake-1")
    made = operator.post("/wakes", json={"room_id": "wake-1"})
    assert made.status_code == 201
    wake = made.json()
    assert (wake["wave_size"], wake["pause_s"], wake["ended_at"]) == (2, 7.5, None)
    assert [(each["name"], each["state"], each["wave"]) for each in wake["machines"]] == [
        ("w0", "queued", 1),
        ("w2", "queued", 1),
        ("w1", "queued", 2),
        ("bare", "unknown_address", 0),
    ]
    with guarded.client(Role.VIEW) as viewer:
        assert viewer.get(f"/wakes/{wake['wake_id']}").json() == wake
        [listed] = viewer.get("/wakes", params={"room_id": "wake-1"}).json()["items"]
        assert listed["wake_id"] == wake["wake_id"]
        tiles = viewer.get("/rooms/wake-1/live").json()["machines"]
        assert {tile["name"]: tile["state"] for tile in tiles} == {
            "bare": "offline",
            "w0": "waking",
            "w1": "waking",
            "w2": "waking",
        }
        check_problem(viewer.post("/wakes", json={"room_id": "wake-1"}), 403)


def test_only_known_machines_and_rooms_are_woken(operator: httpx.Client) -> None:
    assert operator.post("/rooms", json={"name": "Wake 2", "room_id": "wake-2"}).status_code == 201
    elsewhere = add_machine(operator, "elsewhere", macs=["52:54:00:aa:02:01"])
    check_problem(operator.post("/wakes", json={}), 422)
    check_problem(operator.post("/wakes", json={"room_id": "nowhere"}), 422)
    check_problem(operator.post("/wakes", json={"machine_ids": ["m-nobody"]}), 422)
    check_problem(operator.post("/wakes", json={"room_id": "wake-2"}), 422)
    check_problem(operator.post("/wakes", json={"room_id": "wake-2", "machine_ids": [elsewhere]}), 422)
    check_problem(operator.get("/wakes/00000000"), 404)
    assert operator.post("/wakes", json={"machine_ids": [elsewhere, elsewhere]}).status_code == 201


def test_a_rooms_waves_have_limits(operator: httpx.Client) -> None:
    assert operator.post("/rooms", json={"name": "Wake 3", "room_id": "wake-3"}).status_code == 201
    for body in (
        {"wake_wave_size": 0},
        {"wake_wave_size": 2000},
        {"wake_pause_s": -1},
        {"wake_pause_s": 601},
    ):
        check_problem(operator.patch("/rooms/wake-3", json=body), 422)
    changed = operator.patch("/rooms/wake-3", json={"wake_wave_size": 4, "wake_pause_s": 0}).json()
    assert (changed["wake_wave_size"], changed["wake_pause_s"]) == (4, 0)
    changed = operator.patch("/rooms/wake-3", json={"wake_wave_size": None}).json()
    assert changed["wake_wave_size"] is None


def test_a_room_of_another_site_is_woken_by_its_own_daemons(tmp_path: Path) -> None:
    with serve(tmp_path, server__sites=("south",)) as served, served.client(Role.OPERATE) as client:
        for site, status in (("north", 409), ("south", 201), ("", 201)):
            room = client.post("/rooms", json={"name": f"Room of {site or 'any'}", "site": site}).json()
            add_machine(client, f"pc-{site or 'any'}", room_id=room["room_id"])
            response = client.post("/wakes", json={"room_id": room["room_id"]})
            assert response.status_code == status, response.text
