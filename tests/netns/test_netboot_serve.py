"""The boot service on a real network, beside a foreign DHCP server: the judges are dnsmasq, curl and busybox.

If these failed, machines would stay at their boot loader, or the network's own DHCP would break.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import pytest

from protocol.errors import ConfigurationError, DoctorFoundProblemsError
from sender.netboot.medium import Flavour, Loader, MediumRecord, record_files
from tests.support.network.lab import (
    INTERFACE,
    LIMIT_S,
    REPOSITORY,
    Host,
    Network,
    Program,
    diskcast,
    run,
    wait_until,
)
from tests.support.programs.processes import require_program
from tests.support.programs.serving import toml_of

pytestmark = pytest.mark.needs_root

SERVICE = "10.77.0.1"
HTTP = f"http://{SERVICE}:8069"
PLANNED = "52:54:00:99:00:07"


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A medium of random bytes: this is about names and transfers."""
    folder = tmp_path_factory.mktemp("medium")
    pick = random.Random(13)
    sizes = {
        "vmlinuz": 300_001,
        "initrd": 2 << 20,
        Loader.BIOS: 70_000,
        Loader.UEFI: 170_001,
        Loader.SHIM: 512 * 30,
    }
    for name, size_bytes in sizes.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pick.randbytes(size_bytes))
    record = MediumRecord(
        diskcast_version="0",
        architecture="amd64",
        flavour=Flavour.CLOUD,
        suite="bookworm",
        kernel_release="6.1",
        root_sha256="0" * 64,
        lock_sha256="0" * 64,
        servers=(),
        pins=(),
        trusted_keys=(),
        files=MappingProxyType(record_files(folder)),
        parts_bytes=MappingProxyType({}),
    )
    (folder / "medium.json").write_text(record.to_json())
    return folder


class Room:
    """A network of the boot service, a foreign DHCP server and a machine."""

    def __init__(self, network: Network, folder: Path, medium: Path) -> None:
        self.network = network
        self.folder = folder
        self.medium = medium
        self.dhcp_host, self.machine = network.receivers
        self.environment = {"XDG_STATE_HOME": str(folder / "state")}

    def start_dhcp(self, *lines: str) -> Program:
        """Start dnsmasq as the network's DHCP server, and wait until it listens."""
        log = self.folder / f"dnsmasq{len(lines)}.log"
        config = self.folder / "dnsmasq.conf"
        settings = [
            "port=0",
            f"interface={INTERFACE}",
            "bind-interfaces",
            "except-interface=lo",
            f"log-facility={log}",
            "no-ping",
            "dhcp-range=10.77.0.100,10.77.0.199,255.255.255.0,1h",
            f"dhcp-leasefile={self.folder / 'leases'}",
            *lines,
        ]
        config.write_text("\n".join(settings) + "\n")
        argv = [
            require_program("dnsmasq"), "--keep-in-foreground", f"--conf-file={config}", "--user=root", "--pid-file=",
        ]  # fmt: skip
        program = self.network.start(self.dhcp_host, argv)
        wait_until(
            "dnsmasq listens",
            lambda: log.exists() and "DHCP, IP range" in log.read_text(),
            describe=program.describe,
        )
        return program

    def start_service(self, *options: str) -> Program:
        """Start the boot service, and wait until it serves."""
        argv = diskcast("netboot", "serve", self.medium, "--interface", INTERFACE, "--json", *options)
        program = self.network.start(self.network.sender, argv, environment=self.environment)
        program.wait_event("ready", LIMIT_S)
        return program

    def ask_dhcp(self, *arguments: str) -> list[dict[str, str]]:
        """Ask as boot firmware does, and return the replies."""
        argv = [*self.machine.prefix, *PYTHON, "tests.support.network.dhcp_client", *arguments]
        done = subprocess.run(
            argv, capture_output=True, text=True, check=True, cwd=REPOSITORY, timeout=LIMIT_S
        )
        return [line for line in map(json.loads, done.stdout.splitlines()) if line["event"] == "reply"]

    def command(self, *arguments: str) -> str:
        """Run a command of the daemon's operator."""
        return subprocess.run(
            [*self.network.sender.prefix, *diskcast(*arguments)],
            capture_output=True,
            text=True,
            check=True,
            cwd=REPOSITORY,
            env={**os.environ, **self.environment},
            timeout=LIMIT_S,
        ).stdout


PYTHON = (diskcast()[0], "-m")


@pytest.fixture
def room(tmp_path: Path, medium: Path) -> Iterator[Room]:
    with Network(2) as network:
        yield Room(network, tmp_path, medium)


def curl(host: Host, *arguments: str | Path) -> bytes:
    argv = [*host.prefix, require_program("curl"), "--silent", "--show-error", "--fail", "--max-time", "60"]
    return subprocess.run([*argv, *arguments], capture_output=True, check=True).stdout


def test_dhcp_beside_a_server_that_knows_nothing(room: Room) -> None:
    room.start_dhcp()
    service = room.start_service()
    for architecture, file in ((0, "undionly.kpxe"), (7, "snponly.efi"), (16, f"{HTTP}/snponly.efi")):
        by_server = {reply["server"]: reply for reply in room.ask_dhcp("1", "discover", str(architecture))}
        theirs, ours = by_server["10.77.0.2"], by_server[SERVICE]
        assert theirs["address"].startswith("10.77.0.1")
        assert theirs["file"] == ""
        assert (ours["address"], ours["file"], ours["next_server"]) == ("0.0.0.0", file, SERVICE)
    (answer,) = room.ask_dhcp("1", "request", "7")
    assert (answer["type"], answer["file"]) == ("ACK", "snponly.efi")
    os.kill(service.pid, signal.SIGTERM)
    assert service.wait(LIMIT_S) == 0, service.describe()
    assert not [reply for reply in room.ask_dhcp("1") if reply["server"] == SERVICE]


def test_files_arrive_whole_and_nothing_else_does(room: Room, tmp_path: Path) -> None:
    room.start_service()
    machine, content = (
        room.machine,
        {path.name: path.read_bytes() for path in room.medium.rglob("*") if path.is_file()},
    )
    for name in ("vmlinuz", "initrd", "undionly.kpxe", "snponly.efi"):
        assert curl(machine, f"{HTTP}/{name}") == content[name]
        assert curl(machine, "--tftp-blksize", "1428", f"tftp://{SERVICE}/{name}") == content[name]
    assert curl(machine, f"tftp://{SERVICE}/shimx64.efi") == content["shimx64.efi"]  # ends at a block's end
    assert curl(machine, "--range", "1000-1999", f"{HTTP}/initrd") == content["initrd"][1000:2000]
    head = curl(machine, "--head", f"{HTTP}/initrd").decode().lower()
    assert f"content-length: {len(content['initrd'])}" in head
    assert "accept-ranges: bytes" in head
    for name in (
        "medium.json",
        "../../../etc/passwd",
        "/etc/passwd",
        "loaders/../medium.json",
        "%2e%2e/medium.json",
    ):
        for scheme in (f"{HTTP}/", f"tftp://{SERVICE}/"):
            with pytest.raises(subprocess.CalledProcessError):
                curl(machine, "--path-as-is", f"{scheme}{name}")
    busybox = require_program("busybox")
    target = tmp_path / "by-busybox"
    run(*machine.prefix, busybox, "tftp", "-g", "-b", "1468", "-r", "\\initrd", "-l", target, SERVICE)
    assert target.read_bytes() == content["initrd"]


def test_the_daemon_decides_each_boot(room: Room) -> None:
    """A machine with a cast boots the live system, any other its disk; without the daemon, all do."""
    config = room.folder / "diskcast.toml"
    state = room.folder / "state/diskcast"
    config.write_text(
        toml_of(
            {
                "server": {"listen": "0.0.0.0:7400", "state_directory": str(state)},
                "network": {"interface": INTERFACE},
            }
        )
    )
    argv = diskcast("serve", "--config", config, "--json")
    daemon = room.network.start(room.network.sender, argv, environment=room.environment)
    daemon.wait_event("ready", LIMIT_S)
    room.command("rooms", "create", "lab-1", "--unknown-machines", "auto")
    service = room.start_service("--room", "lab-1")
    mac = run(*room.machine.prefix, "cat", f"/sys/class/net/{INTERFACE}/address").strip()

    start = curl(room.machine, f"{HTTP}/boot.ipxe").decode()
    assert "mac=${netX/mac}" in start
    query = "uuid=4c4c4544-0042-4a10-8051-b7c04f483732&serial=X1&platform=efi&arch=x86_64"
    live = curl(room.machine, f"{HTTP}/boot.ipxe?mac={mac}&{query}").decode()
    assert f"BOOTIF=01-{mac.replace(':', '-')}" in live
    assert "diskcast.boot=dcb_" in live
    assert f"diskcast.server=https://{SERVICE}:7400" in live

    stolen = curl(room.machine, f"{HTTP}/boot.ipxe?mac={PLANNED}&{query}").decode()
    assert "dcb_" not in stolen
    assert "sanboot" in stolen

    grub = curl(room.machine, f"tftp://{SERVICE}/grub/grub.cfg").decode()
    assert f"configfile (tftp,{SERVICE})/boot/$net_default_mac/" in grub
    script = curl(room.machine, f"tftp://{SERVICE}/boot/{mac}/-/run.cfg").decode()
    assert "diskcast.boot=dcb_" in script
    assert f"linux (tftp,{SERVICE})/vmlinuz" in script

    os.kill(daemon.pid, signal.SIGTERM)
    daemon.wait(LIMIT_S)
    disk = curl(room.machine, f"{HTTP}/boot.ipxe?mac={mac}&{query}").decode()
    assert "no answer from the daemon" in disk
    assert "sanboot" in disk
    assert "boot_undecided" in service.stderr_text()
    assert "dcb_" not in service.stderr_text()
    metrics = curl(room.machine, f"{HTTP}/metrics").decode()
    assert 'diskcast_netboot_boots_total{result="live"} 2.0' in metrics
    assert 'diskcast_netboot_boots_total{result="wrong_mac"} 1.0' in metrics
    assert 'diskcast_netboot_boots_total{result="no_daemon"} 1.0' in metrics


def test_an_isolated_network_gets_addresses(room: Room) -> None:
    room.start_service("--mode", "dhcp", "--pool", "10.77.0.50-10.77.0.59")
    replies = room.ask_dhcp("1", "discover", "0")
    assert [reply["server"] for reply in replies] == [SERVICE]
    assert replies[0]["file"] == "undionly.kpxe"
    assert replies[0]["address"].startswith("10.77.0.5")
    script = room.folder / "lease.sh"
    script.write_text('#!/bin/sh\n[ "$1" = bound ] && echo "bound $ip $subnet $lease"\nexit 0\n')
    script.chmod(0o755)
    argv = ["udhcpc", "-i", INTERFACE, "-f", "-q", "-n", "-s", script]
    bound = run(*room.machine.prefix, require_program("busybox"), *argv)
    assert "bound 10.77.0.5" in bound
    assert "255.255.255.0 3600" in bound


def test_a_second_dhcp_server_is_refused(room: Room) -> None:
    """Two servers would lease one address twice."""
    room.start_dhcp()
    argv = diskcast("netboot", "serve", room.medium, "--interface", INTERFACE, "--mode", "dhcp", "--json")
    program = room.network.start(room.network.sender, argv, environment=room.environment)
    assert program.wait(LIMIT_S) == ConfigurationError.exit_code, program.describe()
    assert "10.77.0.2" in program.result["error"]
    assert "--mode proxy" in program.result["error"]


def test_the_doctor_names_ignored_offers_and_the_dhcp_server(room: Room) -> None:
    room.start_dhcp()
    room.start_service()
    argv = diskcast("netboot", "doctor", "--interface", INTERFACE, "--seconds", "12", "--json")
    doctor = room.network.start(room.network.sender, argv)
    # The doctor first asks the DHCP server itself; then it has a raw socket.
    wait_until(
        "the doctor watches",
        lambda: len(Path(f"/proc/{doctor.pid}/net/packet").read_text().splitlines()) > 1,
        describe=doctor.describe,
    )
    room.ask_dhcp("0.5", "discover", "7", "4")
    assert doctor.wait(LIMIT_S) == DoctorFoundProblemsError.exit_code, doctor.describe()
    findings = {line["check"]: line for line in doctor.events if line["event"] == "finding"}
    server = findings.pop(f"DHCP on {INTERFACE}")
    assert server["status"] == "ok"
    assert "10.77.0.2" in server["detail"]
    (boot,) = findings.values()
    assert "DISCOVER sent 4 times, offers ignored" in boot["detail"]
    assert "set options 66/67 on 10.77.0.2" in boot["fix"]
