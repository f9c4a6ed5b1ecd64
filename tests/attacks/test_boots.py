"""Attacks on machines that boot over the network: a boot script is public, and enrols only the machine that booted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from protocol.model.session_records import MachineIdentity
from tests.attacks.test_enrolment import check_in_of
from tests.support.network.lab import LIMIT_S
from tests.support.postgres.server import postgres_server
from tests.support.programs.serving import Daemon

MAC, OTHER_MAC = "02:00:00:00:00:21", "02:00:00:00:00:22"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("daemon")) as started:
        started.ask("POST", "/rooms", {"name": "lab", "room_id": "lab", "unknown_machines": "auto"})
        yield started


def boot(daemon: Daemon, mac: str) -> dict[str, Any]:
    """Ask what a machine boots, as a boot service does."""
    headers = {"Authorization": f"Bearer {daemon.secret('boot')}"}
    answer = daemon.api.post("/boots", json={"mac": mac, "room_id": "lab"}, headers=headers)
    return dict(answer.raise_for_status().json())


def claim(daemon: Daemon, token: str, check_in: Mapping[str, Any]) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"}
    return daemon.api.post("/check-in", json=check_in, headers=headers, timeout=LIMIT_S)


def audited(daemon: Daemon) -> list[str]:
    return [entry["action"] for entry in daemon.ask("GET", "/audit")["items"]]


def test_33_a_replayed_boot_token_gets_401_and_an_audit_entry(daemon: Daemon) -> None:
    """Otherwise everybody who reads a boot script from the network enrols as its machine, and receives its images."""
    token = boot(daemon, MAC)["boot_token"]
    honest = check_in_of("pc21", MachineIdentity((MAC,), "", ""))
    assert claim(daemon, token, honest).json()["machine_secret"]
    replay = claim(daemon, token, {**honest, "agent_id": "another run"})
    assert replay.status_code == 401
    assert "secret" not in replay.json()
    assert audited(daemon)[0] == "boot.replayed"
    assert claim(daemon, token, honest).is_success, (
        "the machine itself repeats its check-in after a lost answer"
    )


def test_33_the_boot_token_of_one_machine_enrols_no_other(daemon: Daemon) -> None:
    """Otherwise one boot script is a token for every machine of the room."""
    victim = daemon.ask(
        "POST", "/machines", {"name": "victim", "macs": [OTHER_MAC], "serial": "SN-22", "room_id": "lab"}
    )
    token = boot(daemon, "02:00:00:00:00:23")["boot_token"]
    posing = check_in_of("victim", MachineIdentity((OTHER_MAC,), "SN-22", ""))
    assert claim(daemon, token, posing).status_code == 403
    assert audited(daemon)[0] == "boot.foreign_claim"
    both = check_in_of("victim", MachineIdentity((OTHER_MAC, "02:00:00:00:00:23"), "SN-22", ""))
    answer = claim(daemon, token, both).json()
    assert not answer.get("machine_secret"), "its serial number and address aren't enough without an operator"
    found = daemon.ask("GET", f"/machines/{victim['machine_id']}")
    assert found["enrolment"] != "enrolled"
    assert found["macs"] == [OTHER_MAC]


def test_33_a_boot_token_is_single_use_at_all_daemons_of_a_database(tmp_path: Path) -> None:
    """Otherwise a second daemon of the site accepts every boot script once more."""
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(postgres_server()).new_database()
        settings: dict[str, dict[str, object]] = {
            "server": {"database": database, "unknown_machines": "auto"}
        }
        first = stack.enter_context(Daemon(tmp_path / "first", settings=settings))
        other = stack.enter_context(Daemon(tmp_path / "other", settings=settings))
        token = first.ask("POST", "/boots", {"mac": MAC})["boot_token"]
        honest = check_in_of("pc21", MachineIdentity((MAC,), "", ""))
        secret = claim(other, token, honest).json()["machine_secret"]
        assert secret
        assert claim(first, token, {**honest, "agent_id": "another run"}).status_code == 401
        assert claim(other, token, {**honest, "agent_id": "a third run"}).status_code == 401
        assert audited(first).count("boot.replayed") == 1
        rebooted = other.ask("POST", "/boots", {"mac": MAC})
        assert rebooted["action"] == "disk", "nothing is planned"
