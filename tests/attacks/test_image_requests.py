"""Attacks from a machine's console and by a machine's secret: a request to be imaged starts nothing by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from protocol.model.session_records import MachineIdentity
from tests.attacks.test_enrolment import check_in_of
from tests.support.disks.disk_images import make_image
from tests.support.network.lab import LIMIT_S
from tests.support.programs.serving import Daemon

DISK = "/dev/sda, Samsung SSD 980, serial S64ANS0T, 500.1 GB"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("requests")
    with Daemon(folder) as started:
        started.add_image(make_image("dd", name="lab").write(folder / "lab.dci"))
        yield started


class TakenOver:
    """A machine whose secret an attacker has."""

    def __init__(self, daemon: Daemon, name: str, mac: str) -> None:
        self._daemon = daemon
        report = check_in_of(name, MachineIdentity((mac,), "", ""))
        enrolled = self.send("POST", "/check-in", report, daemon.secret("enrol")).json()
        self.machine_id: str = enrolled["machine_id"]
        self._secret: str = enrolled["machine_secret"]

    def send(self, method: str, path: str, body: object = None, secret: str = "") -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret or self._secret}"}
        return self._daemon.api.request(method, path, json=body, headers=headers, timeout=LIMIT_S)

    def ask(self, machine_id: str = "") -> httpx.Response:
        [image] = self._daemon.ask("GET", "/images")["items"]
        path = f"/machines/{machine_id or self.machine_id}/requests"
        return self.send("POST", path, {"image_id": image["image_id"], "disk": DISK})


def waiting(daemon: Daemon) -> list[dict[str, Any]]:
    return list(daemon.ask("GET", "/requests")["items"])


def test_34_a_machine_starts_no_cast_and_approves_no_request(daemon: Daemon) -> None:
    """Otherwise somebody at a console, or with a machine's secret, overwrites disks and receives images on demand."""
    machine = TakenOver(daemon, "pc31", "02:00:00:00:00:31")
    code = machine.ask().json()["code"]
    plan = {"image": "lab", "machine_ids": [machine.machine_id], "wait_for": 1}
    for path, body in (
        ("/casts", plan),
        (f"/machines/{machine.machine_id}/requests/approve", {"code": code}),
        ("/tokens", {"name": "mine", "role": "operate"}),
    ):
        assert machine.send("POST", path, body).status_code == 401, path
    assert machine.send("GET", "/requests").status_code == 401
    assert [request["code"] for request in waiting(daemon)] == [code]
    assert daemon.ask("GET", "/casts")["items"] == []
    daemon.ask("POST", f"/machines/{machine.machine_id}/requests/decline", {"code": code})


def test_34_a_machine_requests_nothing_for_another_one(daemon: Daemon) -> None:
    """Otherwise one machine has the disk of every other one offered for approval, under its name and with its code."""
    attacker = TakenOver(daemon, "pc32", "02:00:00:00:00:32")
    victim = TakenOver(daemon, "pc33", "02:00:00:00:00:33")
    assert attacker.ask(victim.machine_id).status_code == 403
    assert attacker.send("GET", f"/machines/{victim.machine_id}/images").status_code == 403
    assert waiting(daemon) == []


def test_34_a_flood_of_requests_of_one_machine_stays_one(daemon: Daemon) -> None:
    """Otherwise one machine fills the audit log, and hides the request that an operator looks for."""
    machine = TakenOver(daemon, "pc34", "02:00:00:00:00:34")
    statuses = [machine.ask().status_code for _ in range(10)]
    assert statuses[0] == 201
    assert set(statuses[1:]) == {409}
    assert len(waiting(daemon)) == 1
    entries = daemon.ask("GET", "/audit", limit="100")["items"]
    subject = f"machine {machine.machine_id}"
    found = [one for one in entries if one["action"] == "machine.request_image" and one["subject"] == subject]
    assert len(found) == 1
