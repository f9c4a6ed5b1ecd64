"""A network for virtual machines: a bridge with taps, a server, and a DHCP server that knows nothing of diskcast."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import signal
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.network.lab import INTERFACE, Program, run, wait_until
from tests.support.programs.processes import require_program

SERVER_ADDRESS: Final = "10.99.0.2"
"""Address of the host that runs diskcast."""
ROUTER_ADDRESS: Final = "10.99.0.1"
"""Address of the bridge, where the DHCP server listens."""
_TAP_QUEUE: Final = 10_000
"""Frames queued for a machine: under TCG it doesn't fetch any for tens of milliseconds."""
_serial: Final = itertools.count()


class BootNetwork:
    """A bridge with ``tap_count`` taps in one namespace, and a host for diskcast in a second one.

    Names contain the process id, a serial number and a random part, so any number of runs can use the same addresses
    at once. Programs started here end with the network.
    """

    def __init__(self, folder: Path, tap_count: int = 2) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.tap_count = tap_count
        prefix = f"dcm{os.getpid()}-{next(_serial)}-{secrets.token_hex(2)}"
        self.lan = f"{prefix}-lan"
        self.server = f"{prefix}-srv"
        self._programs: list[Program] = []

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()

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
        program = Program(argv, prefix=prefix, environment=environment)
        self._programs.append(program)
        return program

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
        (link,) = json.loads(run("ip", "-s", "-j", "-n", self.lan, "link", "show", _tap(tap_index)))
        return int(link["stats64"]["tx"]["bytes"])

    def set_link(self, tap_index: int, up: bool) -> None:
        """Plug or unplug the network cable of a machine."""
        run("ip", "-n", self.lan, "link", "set", _tap(tap_index), "up" if up else "down")

    def take_off_bridge(self, tap_index: int) -> None:
        """Leave the machine's link up but connected to nothing."""
        run("ip", "-n", self.lan, "link", "set", _tap(tap_index), "nomaster")

    def put_on_bridge(self, tap_index: int) -> None:
        """Connect the machine again."""
        run("ip", "-n", self.lan, "link", "set", _tap(tap_index), "master", "br0")

    def _build(self) -> None:
        for namespace in (self.lan, self.server):
            run("ip", "netns", "add", namespace)
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

    def _remove(self) -> None:
        for program in reversed(self._programs):
            program.close()
        present = {line.split()[0] for line in run("ip", "netns", "list").splitlines() if line}
        for namespace in (self.server, self.lan):
            if namespace in present:
                # Anything that a program left behind in a namespace of ours is ours too.
                for pid in run("ip", "netns", "pids", namespace).split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                run("ip", "netns", "del", namespace)


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
