"""Machines that the daemon doesn't know register by booting; boot tokens admit one machine, once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.machines.boot_network import SERVER_ADDRESS
from tests.support.machines.netboot_room import AGENT_STARTED, BOOT_LIMIT_S, SERVER_URL, NetbootRoom
from tests.support.machines.virtual_machine import Disk, MachineSpec, VirtualMachine
from tests.support.network.lab import LIMIT_S, diskcast_agent, run, wait_until

pytestmark = pytest.mark.needs_root


def test_a_machine_registers_by_booting_and_shows_its_inventory(
    room: NetbootRoom, medium: Path, tmp_path: Path
) -> None:
    room.create_room("new", {}, "--unknown-machines", "auto")
    disk = Disk.blank(tmp_path / "disk", 3 << 30)
    with (
        room.start_boot_services(medium, "--room", "new"),
        VirtualMachine(room.network, 0, MachineSpec(disks=(disk,), serial="PC-0815"), name="new") as machine,
    ):
        machine.console.wait_for(AGENT_STARTED, BOOT_LIMIT_S)

        def registered() -> list[dict[str, object]]:
            rows = room.ask("machines", "list", "--room", "new")
            return [row for row in rows if machine.mac in json.dumps(row)]

        wait_until("the machine is registered", registered, describe=machine.console.describe)
        shown = json.dumps(room.ask("machines", "show", machine.mac))
    assert "PC-0815" in shown
    assert "vda 3.0 GiB" in shown
    assert disk.is_blank


def test_a_replayed_boot_token_is_refused_and_audited(
    room: NetbootRoom, medium: Path, tmp_path: Path
) -> None:
    """An attacker on the network reads the boot script of a machine, here of the host with the DHCP server."""
    room.create_room("replayed", {}, "--unknown-machines", "auto")
    mac = run(*room.network.lan_prefix, "cat", "/sys/class/net/br0/address").strip()
    url = f"http://{SERVER_ADDRESS}:8069/boot.ipxe?mac={mac}&uuid=&serial=&platform=pcbios&arch=i386"
    with room.start_boot_services(medium, "--room", "replayed"):
        script = run(*room.network.lan_prefix, "curl", "--silent", "--fail", url)
    (secret,) = re.findall(r"diskcast\.boot=(dcb_\S+)", script)
    assert "dct_" not in script
    token = tmp_path / "token"
    token.write_text(secret + "\n")

    def agent(name: str) -> list[str]:
        where = ("--server", SERVER_URL, "--pin", room.pin, "--token-file", token, "--interface", "br0")
        return diskcast_agent("run", *where, "--target", tmp_path / name, "--json")

    with room.network.start(room.network.lan_prefix, agent("machine")) as rightful:
        wait_until(
            "the machine is enrolled",
            lambda: mac in json.dumps(room.ask("machines", "list", "--room", "replayed")),
            describe=rightful.describe,
        )
    with room.network.start(room.network.lan_prefix, agent("attacker")) as attacker:
        assert attacker.wait(LIMIT_S) != 0, attacker.describe()
        assert "401" in json.dumps(attacker.events), attacker.events
    assert "boot.replayed" in json.dumps(room.ask("history", "audit"))
