"""``POST /boots`` on a real socket, and the check-in of a machine with its boot token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sender.store.records.access import Role
from tests.api.served import Served, serve

MAC = "52:54:00:dd:00:01"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("boots")) as started:
        with started.client(Role.OPERATE) as operator:
            room = {"name": "Lab", "room_id": "lab", "unknown_machines": "auto"}
            operator.post("/rooms", json=room).raise_for_status()
        yield started


def boot(served: Served, role: Role = Role.BOOT, **fields: Any) -> httpx.Response:
    with served.client(role) as service:
        return service.post("/boots", json={"mac": MAC, "room_id": "lab", **fields})


def check_in(served: Served, token: str, agent_id: str = "run 1", mac: str = MAC) -> httpx.Response:
    body = {
        "agent_id": agent_id, "name": "live", "version": "1", "interface": "eth0", "macs": [mac], "serial": "",
        "asset_tag": "", "inventory": {"memory": "8 GiB", "processors": "4"}, "state": "idle", "cast_id": None,
        "last_result": None, "wait_s": 0,
    }  # fmt: skip
    with served.client(None, headers={"Authorization": f"Bearer {token}"}) as agent:
        return agent.post("/check-in", json=body)


def test_a_machine_registers_by_booting_and_shows_its_inventory(served: Served) -> None:
    answer = (
        boot(served, firmware="uefi", architecture="x86_64", address="10.0.0.7").raise_for_status().json()
    )
    assert (answer["action"], answer["mode"], answer["reason"]) == ("live", "run", "unknown_machine")
    assert answer["servers"] == [], "a daemon on the loopback address has none for other machines"
    enrolment = check_in(served, answer["boot_token"]).raise_for_status().json()
    assert enrolment["machine_secret"].startswith("dcm_")
    check_in(served, enrolment["machine_secret"]).raise_for_status()
    with served.client(Role.OPERATE) as operator:
        found = operator.get(f"/machines/{enrolment['machine_id']}").json()
        assert (found["room_id"], found["macs"]) == ("lab", [MAC])
        assert found["inventory"] == {"memory": "8 GiB", "processors": "4"}
        assert found["enrolled_by"] == "boot by test-boot"
        again = boot(served, firmware="uefi").json()
        assert (again["action"], again["machine"], again["boot_token"]) == ("disk", "live", "")
        found = operator.get(f"/machines/{enrolment['machine_id']}").json()
        assert (found["boot_action"], found["boot_firmware"]) == ("disk", "uefi")
        assert found["boot_text"] == "nothing is planned for live"
        changed = operator.patch(f"/machines/{enrolment['machine_id']}", json={"next_boot": "live"})
        assert changed.json()["next_boot"] == "live"
    assert boot(served).json()["reason"] == "requested"


def test_a_replayed_boot_token_is_refused_and_counted(served: Served) -> None:
    mac = "52:54:00:dd:00:02"
    token = boot(served, mac=mac).json()["boot_token"]
    assert check_in(served, token, mac=mac).is_success
    replayed = check_in(served, token, "run 2", mac)
    assert replayed.status_code == 401
    assert "another agent has used it" in replayed.json()["detail"]
    assert check_in(served, "dcb_" + "x" * 43).status_code == 401
    assert check_in(served, "dcb_" + "x" * 5000).status_code == 401
    with served.client(Role.OPERATE) as operator:
        actions = [entry["action"] for entry in operator.get("/audit").json()["items"]]
        assert "boot.replayed" in actions
        metrics = operator.get(f"{served.url}/metrics").text
    assert 'diskcast_boot_token_refusals_total{reason="spent"}' in metrics
    assert 'diskcast_boots_total{action="live",reason="unknown_machine"}' in metrics


def test_a_boot_token_is_a_bearer_for_check_ins_only(served: Served) -> None:
    token = boot(served, mac="52:54:00:dd:00:03").json()["boot_token"]
    with served.client(None, headers={"Authorization": f"Bearer {token}"}) as thief:
        assert thief.get("/machines").status_code == 401
        assert thief.post("/boots", json={"mac": MAC}).status_code == 401


@pytest.mark.parametrize(
    "wrong",
    [
        {"mac": "nonsense"},
        {"mac": "00:00:00:00:00:00"},
        {"address": "10.0.0"},
        {"firmware": "coreboot"},
        {"architecture": "x86 64"},
        {"room_id": "cellar", "mac": "52:54:00:dd:00:99"},
        {"menu": "yes"},
        {"uuid": "\u202e"},
        {"other": 1},
    ],
)
def test_an_invalid_report_is_refused(served: Served, wrong: dict[str, object]) -> None:
    assert boot(served, **wrong).status_code == 422


def test_a_daemon_on_all_addresses_names_the_one_that_the_machine_reaches(tmp_path: Path) -> None:
    settings = {"server__listen": "0.0.0.0:0", "server__unknown_machines": "auto"}
    with serve(tmp_path, **settings) as started, started.client(Role.BOOT) as service:
        answer = service.post("/boots", json={"mac": MAC, "address": "127.0.0.1"}).json()
    assert answer["action"] == "live"
    assert answer["servers"] == [], "no address of this machine but the loopback one leads there"
