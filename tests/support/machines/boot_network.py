"""A network for virtual machines: a bridge with taps, a server, and a DHCP server that knows nothing of diskcast."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.support.network.lab import INTERFACE, NamespaceNetwork, Program, run, wait_until
from tests.support.programs.processes import require_program

SERVER_ADDRESS: Final = "10.99.0.2"
"""Address of the host that runs diskcast."""
ROUTER_ADDRESS: Final = "10.99.0.1"
"""Address of the bridge, where the DHCP server listens."""
_TAP_QUEUE: Final = 10_000
"""Frames queued for a machine: under TCG it doesn't fetch any for tens of milliseconds."""


class BootNetwork(NamespaceNetwork):
    """A bridge with ``tap_count`` taps in one namespace, and a host for diskcast in a second one."""

    def __init__(self, folder: Path, tap_count: int = 2) -> None:
        super().__init__("dcm")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.tap_count = tap_count
        self.lan = f"{self._prefix}-lan"
        self.server = f"{self._prefix}-srv"

    @property
    def lan_prefix(self) -> tuple[str, ...]:
        """Prefix that runs a command beside the machines' taps, by exec."""
        return ("ip", "netns", "exec", self.lan)

    @property
    def server_prefix(self) -> tuple[str, ...]:
        """Prefix that runs a command on diskcast's host, by exec."""
        return ("ip", "netns", "exec", self.server)

    def start(
        self, prefix: Sequence[str], argv: Sequence[str | Path], environment: dict[str, str] | None = None
    ) -> Program:
        """Start a program in one of the namespaces; the network ends it if it is still running at the end."""
        return self._run_program(prefix, argv, environment)

    def start_dhcp(self, *options: str) -> ForeignDhcp:
        """Start the network's own DHCP server, and wait until it listens.

        Args:
            options: more lines of its configuration, as an administrator who was asked for them would add.
        """
        dhcp = ForeignDhcp(self, options)
        dhcp.wait_listening()
        return dhcp

    def sent_bytes(self, tap_index: int) -> int:
        """Return the number of bytes that the network sent to a machine so far."""
        return self._sent(tap_index, "bytes")

    def dropped_frames(self, tap_index: int) -> int:
        """Return the number of frames for which a machine's queue had no room so far."""
        return self._sent(tap_index, "dropped")

    def _sent(self, tap_index: int, counter: str) -> int:
        (link,) = json.loads(run("ip", "-s", "-j", "-n", self.lan, "link", "show", _tap(tap_index)))
        return int(link["stats64"]["tx"][counter])

    def set_link(self, tap_index: int, up: bool) -> None:
        """Plug or unplug the network cable of a machine."""
        run("ip", "-n", self.lan, "link", "set", _tap(tap_index), "up" if up else "down")

    def take_off_bridge(self, tap_index: int) -> None:
        """Leave the machine's link up but connected to nothing."""
        run("ip", "-n", self.lan, "link", "set", _tap(tap_index), "nomaster")

    def put_on_bridge(self, tap_index: int) -> None:
        """Connect the machine again."""
        run("ip", "-n", self.lan, "link", "set", _tap(tap_index), "master", "br0")

    @property
    def _namespaces(self) -> tuple[str, str]:
        return (self.server, self.lan)

    def _connect(self) -> None:
        bridge = ("type", "bridge", "mcast_snooping", "0", "forward_delay", "0", "stp_state", "0")
        lan = ("ip", "-n", self.lan)
        run(*lan, "link", "add", "br0", *bridge)
        batch = f"link set lo up\naddr add {ROUTER_ADDRESS}/24 brd + dev br0\nlink set br0 up\n"
        run(*lan, "-batch", "-", text=batch)
        for index in range(self.tap_count):
            tap = _tap(index)
            run(*self.lan_prefix, "ip", "tuntap", "add", tap, "mode", "tap", "vnet_hdr")
            run(*lan, "link", "set", tap, "master", "br0", "up", "txqueuelen", str(_TAP_QUEUE))
        peer = ("peer", "name", INTERFACE, "netns", self.server)
        run(*lan, "link", "add", "server", "type", "veth", *peer)
        run(*lan, "link", "set", "server", "master", "br0", "up")
        batch = (
            f"link set lo up\naddr add {SERVER_ADDRESS}/24 brd + dev {INTERFACE}\n"
            f"link set {INTERFACE} up\nroute add default via {ROUTER_ADDRESS}\n"
            f"route add 224.0.0.0/4 dev {INTERFACE}\n"
        )
        run("ip", "-n", self.server, "-batch", "-", text=batch)


class ForeignDhcp:
    """dnsmasq as the DHCP server that the network already had: addresses only, no word of booting."""

    def __init__(self, network: BootNetwork, options: Sequence[str] = ()) -> None:
        self._log = network.folder / "dnsmasq.log"
        config = network.folder / "dnsmasq.conf"
        lines = [
            "port=0",
            "interface=br0",
            "bind-interfaces",
            "except-interface=lo",
            "log-dhcp",
            f"log-facility={self._log}",
            "no-ping",
            "dhcp-range=10.99.0.100,10.99.0.199,255.255.255.0,1h",
            f"dhcp-leasefile={network.folder / 'dnsmasq.leases'}",
            *options,
        ]
        config.write_text("\n".join(lines) + "\n")
        dnsmasq = require_program("dnsmasq")
        argv = [dnsmasq, "--keep-in-foreground", "--conf-file=" + str(config), "--user=root", "--pid-file="]
        self._program = network.start(network.lan_prefix, argv)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def wait_listening(self) -> None:
        """Wait until it listens."""
        wait_until("dnsmasq listens", lambda: "DHCP, IP range" in self.log, describe=self._program.describe)

    def stop(self) -> None:
        """End it: from now on the network has no DHCP server."""
        self._program.close()


def _tap(index: int) -> str:
    return f"tap{index}"
