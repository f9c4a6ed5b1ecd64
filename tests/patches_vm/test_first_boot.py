"""A machine patch on a Debian with its own cloud-init and systemd: after the first boot the PC is what was declared.

Lost if this fails: every disk of a room is verified, and the PCs still come up with the name of the golden image,
without the administrator's key, or without a network.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from protocol.disk.disk_layout import layout_of
from sender.imaging.image_file import ImageFile
from tests.support.machines.boot_network import ROUTER_ADDRESS, BootNetwork
from tests.support.machines.debian_image import make_debian_image
from tests.support.machines.virtual_machine import Disk, MachineSpec, VirtualMachine, mac_of
from tests.support.network.lab import diskcast, diskcast_agent, run

pytestmark = pytest.mark.needs_root

_PACKAGES: Final = ("cloud-init", "openssh-server", "locales", "tzdata", "dbus")
NETWORK_PROGRAMS: Final = {
    "ifupdown": ("ifupdown", "resolvconf"),  # as Debian's installer, with what sets DNS servers
    "netplan": ("netplan.io", "systemd-resolved"),  # as Debian's cloud images
}
_FIRST_BOOT_LIMIT_S: Final = 1200.0
"""Limit until cloud-init has finished: kernel, key pairs and locale take minutes under TCG on a busy machine."""
_COMMAND_LIMIT_S: Final = 300.0
_ADDRESS: Final = "10.99.0.50"
_FLOOD_BYTES: Final = 10_000_000
_LOG_BYTES_MAX: Final = 64 << 10

_TEMPLATE: Final = """
hostname = "{{ name }}"
domain = "lab.example"
locale = "de_DE.UTF-8"
timezone = "Europe/Vienna"
secret_variables = ["join_password"]

[[users]]
name = "root"
ssh_keys = ["{{ key }}"]

[[users]]
name = "teacher"
groups = ["sudo"]
ssh_keys = ["{{ key }}"]

[network]
mode = "static"
addresses = ["{{ ip }}/24"]
gateway = "ROUTER"
dns = ["ROUTER"]
search = ["lab.example"]

[[files]]
path = "/etc/seat.conf"
owner = "teacher:teacher"
content = "seat: {{ position }} \u2013 \u00fc\\n"

[[files]]
path = "/etc/join.secret"
content = "{{ join_password }}"
secret = true

[[first_boot]]
name = "fails"
order = 10
content = "#!/bin/sh\\necho cannot join; exit 7\\n"

[[first_boot]]
name = "hangs"
order = 20
timeout_s = 5
content = "#!/bin/sh\\necho waiting; sleep 100000\\n"

[[first_boot]]
name = "floods"
order = 30
content = "#!/bin/sh\\nyes | head -c FLOOD; echo flooded > /root/flooded\\n"

[[first_boot]]
name = "last"
order = 40
content = "#!/bin/sh\\ncat /etc/join.secret; hostname\\n"
""".replace("ROUTER", ROUTER_ADDRESS).replace("FLOOD", str(_FLOOD_BYTES))


@pytest.fixture
def network(tmp_path: Path) -> Iterator[BootNetwork]:
    with BootNetwork(tmp_path / "network", 1) as network:
        yield network


class SecureShell:
    """Commands as a user of the new machine, by the declared key over the declared network."""

    def __init__(self, network: BootNetwork, folder: Path) -> None:
        self._network = network
        self._key = folder / "key"
        self.known_hosts = folder / "known_hosts"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "teacher", "-f", self._key)
        self.public_key = self._key.with_suffix(".pub").read_text().strip()

    def run(self, user: str, script: str) -> str:
        """Run a script and return its output."""
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "60",
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": str(self.known_hosts),
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        ssh = (
            *self._network.server_prefix,
            "ssh",
            "-F",
            "none",
            "-i",
            self._key,
            *words,
            f"{user}@{_ADDRESS}",
        )
        return run(*ssh, script, timeout_s=_COMMAND_LIMIT_S)

    def answers(self, commands: dict[str, str]) -> dict[str, str]:
        """Return the output of each command, all run as root in one session."""
        mark = "=====answer"
        script = "".join(
            f"echo {mark} {shlex.quote(name)}; {command}\n" for name, command in commands.items()
        )
        parts = self.run("root", script).split(f"{mark} ")[1:]
        return {name: text.strip() for name, _, text in (part.partition("\n") for part in parts)}


def make_patched_disk(folder: Path, packages: tuple[str, ...], public_key: str) -> Disk:
    """Build the golden image and the machine's patch, and restore both to a disk."""
    raw, image = folder / "golden.raw", folder / "golden.dci"
    make_debian_image(raw, packages=packages)
    run(*diskcast("pack", raw, "-o", image, "--name", "lab", "--seed-partition", "--patches", "daemon"))
    raw.unlink()
    template, machines, patches = folder / "lab.toml", folder / "lab.csv", folder / "patches"
    template.write_text(_TEMPLATE, encoding="utf-8")
    machines.write_text(
        f"name,mac,ip,position,key,join_password\npc-07,{mac_of(0)},{_ADDRESS},row 2,{public_key},Geheim!7\n",
        encoding="utf-8",
    )
    run(*diskcast("patches", "build", image, "--template", template, "--machines", machines, "-o", patches))
    with ImageFile.open(image) as opened:
        disk = Disk.blank(folder / "disk", opened.manifest.raw_bytes)
    target = ("--target", disk.path, "--patch", patches / "pc-07.dcp")
    run(*diskcast_agent("restore", image, *target, "--machine", "pc-07"))
    run(*diskcast_agent("compare", image, *target))
    return disk


def system_of(folder: Path) -> str:
    """Return the filesystem of the system on the disk, as e2fsprogs names a part of a file."""
    with ImageFile.open(folder / "golden.dci") as image:
        layout = layout_of(image.manifest.metadata)
    assert layout is not None
    return f"{folder / 'disk'}?offset={layout.partitions[1].start_bytes}"


@pytest.mark.parametrize("network_programs", NETWORK_PROGRAMS)
def test_a_patched_debian_becomes_what_was_declared(
    network_programs: str, network: BootNetwork, tmp_path: Path
) -> None:
    shell = SecureShell(network, tmp_path)
    disk = make_patched_disk(tmp_path, _PACKAGES + NETWORK_PROGRAMS[network_programs], shell.public_key)
    golden_key = run("debugfs", "-R", "cat /etc/ssh/ssh_host_ed25519_key.pub", system_of(tmp_path)).split()[1]
    with VirtualMachine(network, 0, MachineSpec(disks=(disk,), niceness=0), name=network_programs) as machine:
        machine.console.wait_for("finished at", _FIRST_BOOT_LIMIT_S)
        seconds = machine.console.seconds_to("finished at")
        scripts = "/var/lib/diskcast/first-boot"
        found = shell.answers(
            {
                "status": "cloud-init status --wait; cat /run/cloud-init/result.json",
                "name": "hostname; hostname -f; cat /etc/hostname",
                "address": "ip -o -4 addr show dev lan0",
                "route": "ip -4 route show default",
                "dns": "cat /etc/resolv.conf; resolvectl dns 2>/dev/null",
                "locale": "cat /etc/default/locale",
                "translated": "LC_ALL=de_DE.UTF-8 date -d 2026-12-01 +%B; LC_ALL=de_DE.UTF-8 locale charmap",
                "time zone": "cat /etc/timezone; date -d '2026-01-01 00:00 UTC' +%H%Z",
                "groups": "id -nG teacher; passwd -S teacher",
                "file": "stat -c '%a %U:%G' /etc/seat.conf; cat /etc/seat.conf",
                "secret": "stat -c '%a %U:%G' /etc/join.secret; cat /etc/join.secret",
                "exits": f"cd {scripts}; for file in *.exit; do echo $file $(cat $file); done",
                "logs": f"cd {scripts}; stat -c '%n %s' *.log",
                "last": f"cat {scripts}/40-last.log {scripts}/20-hangs.log; cat /root/flooded",
                "rights": f"stat -c %a {scripts}/*.log | sort -u",
                "machine id": "cat /etc/machine-id",
            }
        )
        print(f"\n{network_programs}: cloud-init finished after {seconds:.0f} s")
        for name, text in found.items():
            print(f"-- {name}\n{text}")
        assert shell.run("teacher", "id -un").strip() == "teacher"
        host_keys = shell.known_hosts.read_text()
        shell.run("root", "systemctl poweroff --no-block")
        machine.wait_off(_COMMAND_LIMIT_S)
    assert "status: done" in found["status"]
    assert '"errors": []' in found["status"]
    assert found["name"].split() == ["pc-07", "pc-07.lab.example", "pc-07"]
    assert f"inet {_ADDRESS}/24 " in found["address"]
    assert f"via {ROUTER_ADDRESS} dev lan0" in found["route"]
    assert ROUTER_ADDRESS in found["dns"]
    assert "LANG=de_DE.UTF-8" in found["locale"].replace('"', "")
    assert found["translated"].split() == ["Dezember", "UTF-8"]
    assert found["time zone"].split() == ["Europe/Vienna", "01CET"]
    assert found["groups"].splitlines()[0].split() == ["teacher", "sudo"]
    assert found["groups"].splitlines()[1].split()[1] == "L"
    assert found["file"].splitlines() == ["644 teacher:teacher", "seat: row 2 \u2013 \u00fc"]
    assert found["secret"].splitlines() == ["600 root:root", "Geheim!7"]
    assert found["exits"].splitlines() == [
        "10-fails.exit 7",
        "20-hangs.exit 124",
        "30-floods.exit 0",
        "40-last.exit 0",
    ]
    log_bytes = {name: int(size) for name, size in map(str.split, found["logs"].splitlines())}
    assert log_bytes["30-floods.log"] == _LOG_BYTES_MAX
    assert found["last"].splitlines() == ["Geheim!7pc-07", "waiting", "flooded"]
    assert found["rights"] == "600"
    assert len(found["machine id"]) == 32
    assert golden_key not in host_keys
    run("e2fsck", "-fn", system_of(tmp_path))
