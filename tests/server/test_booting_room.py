"""A room of new machines that boot over the network, with a real daemon: registered, awaited and imaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ConfigurationError
from receiver.reception.machine_identity import read_identity
from sender.console.client import Client
from sender.netboot.serve.preparation import prepare_room
from sender.store.records.boots import UnknownMachines
from tests.server.conftest import GoldenImage
from tests.support.network.lab import Program, diskcast_agent
from tests.support.programs.serving import Daemon, wait_until

FAKE_MAC = "02:00:00:00:00:41"


def boot(daemon: Daemon, mac: str) -> dict[str, Any]:
    """Ask what a machine boots, as a boot service does."""
    headers = {"Authorization": f"Bearer {daemon.secret('boot')}"}
    answer = daemon.api.post("/boots", json={"mac": mac, "room_id": "lab-1"}, headers=headers)
    return dict(answer.raise_for_status().json())


def test_a_cast_to_an_empty_room_waits_for_the_machines_that_boot(tmp_path: Path, image: GoldenImage) -> None:
    """Otherwise the first of thirty new machines starts the cast, and the others miss its multicast."""
    [mac, *_] = read_identity("lo").macs
    with Daemon(tmp_path / "d") as daemon:
        daemon.add_image(image.path)
        daemon.ask("POST", "/rooms", {"name": "Lab 1", "room_id": "lab-1", "unknown_machines": "auto"})
        cast_id = daemon.create_cast(image.image_id, room_id="lab-1")
        daemon.wait_phase(cast_id, "gathering")
        tokens = [boot(daemon, address)["boot_token"] for address in (mac, FAKE_MAC)]
        target = tmp_path / "disk"
        argv = ["run", "--server", daemon.url, "--interface", "lo", "--target", target, "--json"]
        with Program(diskcast_agent(*argv), environment={"DISKCAST_TOKEN": tokens[0]}) as agent:

            def joined() -> bool:
                return daemon.cast(cast_id)["joined_count"] == 1

            wait_until("the machine has joined", joined, describe=agent.describe)
            [machine] = daemon.ask("GET", "/machines")["items"]
            assert (machine["room_id"], machine["enrolled_by"]) == ("lab-1", f"boot by {daemon.name} boot")
            assert machine["inventory"]["processors"]
            live = boot(daemon, mac)
            assert (live["action"], live["reason"]) == ("live", "cast"), "it would continue after a power cut"
            assert daemon.cast(cast_id)["phase"] == "gathering", "the other one is still booting"
            other = {
                "agent_id": "other", "name": "other", "version": "1", "interface": "eth0", "macs": [FAKE_MAC],
                "serial": "", "asset_tag": "", "inventory": {}, "state": "idle", "cast_id": None,
                "last_result": None, "wait_s": 0,
            }  # fmt: skip
            headers = {"Authorization": f"Bearer {tokens[1]}"}
            daemon.api.post("/check-in", json=other, headers=headers).raise_for_status()
            daemon.wait_phase(cast_id, "done")
            image.assert_is_on(target)
            disk = boot(daemon, mac)
            assert (disk["action"], disk["reason"]) == ("disk", "nothing_planned")


def test_the_boot_service_creates_its_room_and_sets_its_rule(tmp_path: Path) -> None:
    """A typo would send every new machine to its blank disk, without a word to the operator."""
    notes: list[str] = []
    with Daemon(tmp_path / "d") as daemon:

        def rule() -> str:
            return str(daemon.ask("GET", "/rooms/lab-1")["unknown_machines"])

        with Client(daemon.url, daemon.secret("operate")) as operator:
            prepare_room(operator, "lab-1", None, notes.append)
            assert rule() == "ask", "nobody is admitted without a click, unless the operator says so"
            prepare_room(operator, "lab-1", UnknownMachines.AUTO, notes.append)
            assert rule() == "auto"
            prepare_room(operator, "lab-1", None, notes.append)
            assert rule() == "auto"
        assert [note.split(":")[0] for note in notes] == ["created room lab-1", "changed room lab-1"]
        with Client(daemon.url, daemon.secret("boot")) as service:
            prepare_room(service, "lab-1", None, notes.append)
            with pytest.raises(ConfigurationError, match="the rule of room lab-1 can't be set"):
                prepare_room(service, "lab-1", UnknownMachines.OFF, notes.append)
        daemon.kill()
        with Client(daemon.url, daemon.secret("boot")) as service:
            prepare_room(service, "lab-1", None, notes.append)
        assert "wasn't checked" in notes[-1], "the service starts, and asks at every boot"
