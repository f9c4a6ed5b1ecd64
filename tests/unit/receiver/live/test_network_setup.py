"""The network of a netbooted machine: real interfaces and a real DHCP server, in network namespaces of the test.

If these fail, a machine with two cards waits on the one without a cable, or nobody learns why it has no address.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from receiver.live.messages import NETWORK_COMMAND, NO_CARD, NO_DHCP, NO_LINK
from receiver.live.network_setup import Lease, host_name_of, machine_name, parse_lease
from tests.support.network.lab import REPOSITORY

BUSYBOX = shutil.which("busybox")
needs_programs = pytest.mark.skipif(
    BUSYBOX is None or shutil.which("dnsmasq") is None, reason="needs busybox-static and dnsmasq-base"
)
_serial = itertools.count()


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Wire:
    """Two namespaces: a machine, and a switch port with a DHCP server for each of its cards that gets one."""

    def __init__(self, folder: Path, card_count: int) -> None:
        self.folder = folder
        name = f"dcl{os.getpid()}x{next(_serial)}"
        self.machine, self.server = f"{name}m", f"{name}s"
        self.cards = [f"card{number}" for number in range(card_count)]
        self._servers: list[subprocess.Popen[bytes]] = []
        for namespace in (self.machine, self.server):
            ip("netns", "add", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
        for number, card in enumerate(self.cards):
            ip("-n", self.machine, "link", "add", card, "address", self.mac(number), "type", "veth", "peer",
               "name", f"port{number}", "netns", self.server)  # fmt: skip
            ip("-n", self.server, "link", "set", f"port{number}", "up")

    @staticmethod
    def mac(number: int) -> str:
        return f"52:54:00:99:00:{number:02x}"

    def serve(self, interface: str, network: str, *options: str) -> None:
        """Run a DHCP server on an interface of the server's namespace."""
        ip("-n", self.server, "address", "add", f"{network}.1/24", "dev", interface)
        argv = [
            "ip", "netns", "exec", self.server, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null",
            "--no-resolv", "--no-hosts", "--port=0", "--no-ping", "--user=root", "--pid-file=",
            f"--interface={interface}", "--except-interface=lo", "--bind-interfaces",
            f"--dhcp-range={network}.10,{network}.20,255.255.255.0,1h",
            f"--dhcp-leasefile={self.folder}/leases.{interface}", "--dhcp-option=option:dns-server,192.0.2.53",
            *options,
        ]  # fmt: skip
        self._servers.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def boot(self, parameters: str = "", **patience: float) -> dict[str, Any]:
        """Set the machine's network up; return the outcome."""
        work = self.folder / "machine"
        work.mkdir()
        argv = [
            "ip", "netns", "exec", self.machine, sys.executable, "-m", "tests.unit.receiver.live.network_program",
            str(work), str(BUSYBOX), parameters, json.dumps(patience), *self.cards,
        ]  # fmt: skip
        done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        outcome: dict[str, Any] = json.loads(done.stdout)
        return outcome

    def close(self) -> None:
        for server in self._servers:
            server.terminate()
            server.wait()
        for namespace in (self.machine, self.server):
            ip("netns", "delete", namespace)


@pytest.fixture
def wires(tmp_path: Path) -> Iterator[Any]:
    made: list[Wire] = []

    def make(card_count: int) -> Wire:
        made.append(Wire(tmp_path, card_count))
        return made[-1]

    yield make
    for wire in made:
        wire.close()


@pytest.mark.needs_root
@needs_programs
def test_a_machine_gets_its_address_its_name_and_its_name_servers(wires: Any) -> None:
    wire = wires(1)
    wire.serve("port0", "192.0.2", f"--dhcp-host={wire.mac(0)},192.0.2.15,pc07")
    outcome = wire.boot()
    assert outcome["lease"] == {
        "interface": "card0",
        "address": "192.0.2.15/24",
        "server": "192.0.2.1",
        "host_name": "pc07",
        "mac": wire.mac(0),
    }
    assert outcome["name"] == "pc07"
    assert "192.0.2.15/24" in outcome["addresses"]
    assert "default via 192.0.2.1" in outcome["routes"]
    assert outcome["resolver"] == "nameserver 192.0.2.53\n"


@pytest.mark.needs_root
@needs_programs
def test_the_card_of_the_boot_comes_first(wires: Any) -> None:
    """Both networks have a server: only the one that the machine booted by leads to the daemon."""
    wire = wires(2)
    wire.serve("port0", "192.0.2")
    wire.serve("port1", "198.51.100")
    outcome = wire.boot("BOOTIF=01-52-54-00-99-00-01", head_start_s=60)
    assert outcome["lease"]["interface"] == "card1"
    assert outcome["steps"] == ["DHCP on card1"]


@pytest.mark.needs_root
@needs_programs
def test_another_card_takes_over_when_that_of_the_boot_has_no_server(wires: Any) -> None:
    wire = wires(2)
    wire.serve("port0", "192.0.2")
    outcome = wire.boot("BOOTIF=01-52-54-00-99-00-01", head_start_s=0.5)
    assert outcome["lease"]["interface"] == "card0"
    assert outcome["name"] == "52-54-00-99-00-00"
    assert outcome["steps"] == ["DHCP on card1", "DHCP on card0"]


@pytest.mark.needs_root
@needs_programs
def test_a_card_without_a_link_costs_no_head_start(wires: Any) -> None:
    wire = wires(2)
    wire.serve("port0", "192.0.2")
    ip("-n", wire.server, "link", "set", "port1", "down")
    outcome = wire.boot("BOOTIF=01-52-54-00-99-00-01", head_start_s=60)
    assert outcome["lease"]["interface"] == "card0"


@pytest.mark.needs_root
@needs_programs
def test_no_link_names_every_card(wires: Any) -> None:
    wire = wires(2)
    for number in range(2):
        ip("-n", wire.server, "link", "set", f"port{number}", "down")
    assert wire.boot(link_s=0.5)["stop"] == NO_LINK.text(cards="card0, card1")


@pytest.mark.needs_root
@needs_programs
def test_no_dhcp_names_the_cards_that_were_tried(wires: Any) -> None:
    wire = wires(2)
    ip("-n", wire.server, "link", "set", "port0", "down")
    assert wire.boot(dhcp_s=1, head_start_s=0)["stop"] == NO_DHCP.text(cards="card1")


@pytest.mark.needs_root
@needs_programs
def test_no_card_is_named(wires: Any) -> None:
    assert wires(0).boot(card_s=0.5)["stop"] == NO_CARD.text()


@pytest.mark.needs_root
@needs_programs
def test_a_vlan_gets_the_address(wires: Any) -> None:
    wire = wires(1)
    try:
        ip("-n", wire.server, "link", "add", "link", "port0", "name", "port0.42", "type", "vlan", "id", "42")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this kernel has no VLANs: {error.stderr!r}")
    ip("-n", wire.server, "link", "set", "port0.42", "up")
    wire.serve("port0.42", "192.0.2")
    wire.serve("port0", "198.51.100")
    outcome = wire.boot("diskcast.vlan=42")
    assert outcome["lease"]["interface"] == "card0.42"
    assert outcome["lease"]["address"].startswith("192.0.2.")


@pytest.mark.needs_root
@needs_programs
def test_a_bond_gets_the_address_or_the_reason_why_there_is_none(wires: Any) -> None:
    wire = wires(2)
    wire.serve("port0", "192.0.2")
    outcome = wire.boot("diskcast.bond=active-backup BOOTIF=01-52-54-00-99-00-00")
    if "stop" in outcome:
        assert NETWORK_COMMAND.matches(outcome["stop"])
        assert "bonded" in outcome["stop"]
        pytest.skip(f"this kernel has no bonds: {outcome['stop']}")
    assert outcome["lease"]["interface"] == "bonded"
    assert outcome["lease"]["mac"] == wire.mac(0)


# -- what the network says ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("pc07", "pc07"),
        ("pc07.lab.example.com", "pc07"),
        ("", ""),
        ("localhost", ""),
        ("-rf", ""),
        ("a b", ""),
        ("pc\x1b[2J", ""),
        ("ü", ""),
        ("x" * 64, ""),
    ],
)
def test_a_name_from_the_network_is_a_host_name_or_nothing(text: str, name: str) -> None:
    assert host_name_of(text) == name


def test_a_machine_without_a_name_is_called_by_its_address_and_never_live() -> None:
    lease = Lease("eth0", "10.0.0.7/24", "10.0.0.1", "", "52:54:00:99:00:01")
    assert machine_name(lease) == "52-54-00-99-00-01"
    assert machine_name(dataclasses.replace(lease, host_name="pc07")) == "pc07"


def test_a_damaged_lease_has_no_address() -> None:
    assert parse_lease("nonsense\n=\n", "eth0", "52:54:00:99:00:01").address == ""
