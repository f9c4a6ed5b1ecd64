"""The network of the live system: links, bond, VLAN, and an address by DHCP.

The card that the machine booted by comes first. The others join in when it has no lease after some seconds: firmware
doesn't always report the card, and a machine may boot from a stick. The DHCP client is busybox's, one process for each
card; the one with the first lease stays to renew it, the others end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from protocol.control.boot_parameters import BondMode, BootParameters
from receiver.live.messages import NETWORK_COMMAND, NO_CARD, NO_DHCP, NO_LINK, BootStopError
from receiver.live.network_cards import (
    SYSTEM_ROOT,
    NetworkCard,
    has_link,
    in_boot_order,
    mac_name,
    read_cards,
)

POLL_S: Final = 0.2
COMMAND_TIMEOUT_S: Final = 30.0
TERMINATE_WAIT_S: Final = 2.0
LEASE_BYTES_MAX: Final = 4096
INTERFACE_NAME_MAX: Final = 15
"""IFNAMSIZ without its zero (linux/if.h)."""

LEASE_FOLDER: Final = Path("/run/diskcast")
LEASE_SCRIPT: Final = Path("/usr/lib/diskcast/udhcpc.sh")
BUSYBOX: Final = Path("/bin/busybox")

BOND: Final = "bonded"
"""Not bond0: the kernel's module makes one of that name itself when it is loaded."""
_BOND_OPTIONS: Final = {BondMode.LACP: ("lacp_rate", "fast")}


@dataclasses.dataclass(frozen=True, slots=True)
class NetworkPatience:
    """Times to wait.

    Attributes:
        card_s: for a card to appear after its driver was loaded; USB cards take some seconds.
        link_s: for a link; negotiation takes 2 to 5 s, at 10 Gbit/s over copper up to 15 s.
        head_start_s: before other cards than the one that the machine booted by, which has just got an address there.
        dhcp_s: for an address; a switch port without PortFast forwards after 30 s, and some servers probe first.
    """

    card_s: float = 10.0
    link_s: float = 20.0
    head_start_s: float = 12.0
    dhcp_s: float = 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class NetworkPaths:
    """Files and programs of the live system that setting up the network uses."""

    system: Path = SYSTEM_ROOT
    leases: Path = LEASE_FOLDER
    script: Path = LEASE_SCRIPT
    busybox: Path = BUSYBOX
    resolver: Path = Path("/etc/resolv.conf")


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """An address from DHCP.

    Attributes:
        interface: the interface that has it.
        address: with its prefix length, such as ``10.0.0.7/24``.
        server: the DHCP server; empty if it doesn't identify itself.
        host_name: the name that the server gives this machine; empty if it gives none.
        mac: hardware address of the interface.
    """

    interface: str
    address: str
    server: str
    host_name: str
    mac: str


class NetworkSetup:
    """Sets the network up, once; :meth:`close` ends the DHCP client."""

    def __init__(
        self,
        parameters: BootParameters,
        report: Callable[[str], None],
        paths: NetworkPaths = NetworkPaths(),
        patience: NetworkPatience = NetworkPatience(),
    ) -> None:
        """Args:
        parameters: bond, VLAN and the card that the machine booted by.
        report: shows a step.
        paths: files and programs.
        patience: times to wait.
        """
        self._parameters = parameters
        self._report = report
        self._paths = paths
        self._patience = patience
        self._clients: dict[str, subprocess.Popen[bytes]] = {}

    def run(self) -> Lease:
        """Set the network up.

        Raises:
            BootStopError: no card, no link, no DHCP, or a bond or VLAN that can't be created.
        """
        cards = self._find_cards()
        for card in cards:
            self._ip("link", "set", "dev", card.name, "up")
        if self._parameters.bond is not None:
            cards = [self._create_bond(cards, self._parameters.bond)]
        self._await_link(cards)
        lease = self._request_lease(cards)
        self._end_clients(keep=lease.interface)
        return lease

    def close(self) -> None:
        """End the DHCP client."""
        self._end_clients(keep="")

    def _find_cards(self) -> list[NetworkCard]:
        wanted = self._parameters.boot_mac
        deadline = time.monotonic() + self._patience.card_s
        while True:
            cards = read_cards(self._paths.system)
            complete = any(card.mac == wanted for card in cards) if wanted else bool(cards)
            if complete or (time.monotonic() >= deadline and cards):
                return in_boot_order(cards, wanted)
            if time.monotonic() >= deadline:
                raise BootStopError(NO_CARD.text())
            time.sleep(POLL_S)

    def _create_bond(self, cards: Sequence[NetworkCard], mode: BondMode) -> NetworkCard:
        self._report(f"bond of {_names(cards)}, {mode.value}")
        options = ("mode", mode.value, "miimon", "100", *_BOND_OPTIONS.get(mode, ()))
        self._ip("link", "add", "dev", BOND, "type", "bond", *options)
        for card in cards:
            self._ip("link", "set", "dev", card.name, "down")
            self._ip("link", "set", "dev", card.name, "master", BOND)
        self._ip("link", "set", "dev", BOND, "up")
        return NetworkCard(BOND, cards[0].mac)

    def _await_link(self, cards: Sequence[NetworkCard]) -> None:
        """Wait until a card has a link; its own carrier counts for a VLAN too."""
        deadline = time.monotonic() + self._patience.link_s
        while not any(has_link(card.name, self._paths.system) for card in cards):
            if time.monotonic() >= deadline:
                raise BootStopError(NO_LINK.text(cards=_names(cards)))
            time.sleep(POLL_S)

    def _request_lease(self, cards: Sequence[NetworkCard]) -> Lease:
        boot_mac = self._parameters.boot_mac
        started_at = time.monotonic()
        while True:
            elapsed_s = time.monotonic() - started_at
            for card in cards:
                # Another card starts at once if the first one has no link: its cable may have been moved.
                is_due = not boot_mac or card.mac == boot_mac or not self._clients
                if (is_due or elapsed_s >= self._patience.head_start_s) and card.name not in self._clients:
                    self._start_client(card)
            for card in cards:
                lease = self._read_lease(card)
                if lease is not None:
                    return lease
            if elapsed_s >= self._patience.dhcp_s:
                tried = [card for card in cards if card.name in self._clients]
                self.close()
                raise BootStopError(NO_DHCP.text(cards=_names(tried, self._parameters.vlan)))
            time.sleep(POLL_S)

    def _start_client(self, card: NetworkCard) -> None:
        if not has_link(card.name, self._paths.system):
            return
        interface = self._interface(card)
        if self._parameters.vlan:
            vlan = str(self._parameters.vlan)
            self._ip("link", "add", "link", card.name, "name", interface, "type", "vlan", "id", vlan)
            self._ip("link", "set", "dev", interface, "up")
        self._report(f"DHCP on {interface}")
        self._paths.leases.mkdir(parents=True, exist_ok=True)
        self._lease_path(interface).unlink(missing_ok=True)
        # Many tries: whether to give up is decided here.
        argv = [
            str(self._paths.busybox), "udhcpc", "-f", "-i", interface, "-s", str(self._paths.script),
            "-t", "1000", "-T", "2",
        ]  # fmt: skip
        self._clients[card.name] = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"LEASE_FOLDER": str(self._paths.leases), "RESOLV_CONF": str(self._paths.resolver)},
        )

    def _interface(self, card: NetworkCard) -> str:
        """Return the name of the interface that gets an address: the card, or its VLAN."""
        if not self._parameters.vlan:
            return card.name
        suffix = f".{self._parameters.vlan}"
        return card.name[: INTERFACE_NAME_MAX - len(suffix)] + suffix

    def _read_lease(self, card: NetworkCard) -> Lease | None:
        if card.name not in self._clients:
            return None
        interface = self._interface(card)
        try:
            with self._lease_path(interface).open(errors="replace") as file:
                text = file.read(LEASE_BYTES_MAX)
        except OSError:
            return None
        return parse_lease(text, interface, card.mac)

    def _lease_path(self, interface: str) -> Path:
        return self._paths.leases / f"lease.{interface}"

    def _end_clients(self, *, keep: str) -> None:
        for name, client in list(self._clients.items()):
            if self._interface(NetworkCard(name, "")) == keep:
                continue
            client.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(TERMINATE_WAIT_S)
            del self._clients[name]

    def _ip(self, *arguments: str) -> None:
        try:
            done = subprocess.run(
                ["ip", *arguments], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BootStopError(NETWORK_COMMAND.text(error=error)) from error
        if done.returncode != 0:
            reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise BootStopError(NETWORK_COMMAND.text(error=f"ip {' '.join(arguments)}: {reason}"))


def parse_lease(text: str, interface: str, mac: str) -> Lease:
    """Return the lease that the DHCP client's script wrote; it comes from the network."""
    values = dict(line.partition("=")[::2] for line in text.splitlines())
    return Lease(
        interface=interface,
        address=values.get("address", ""),
        server=values.get("server", ""),
        host_name=host_name_of(values.get("hostname", "")),
        mac=mac,
    )


def host_name_of(text: str) -> str:
    """Return the first label of a host name from DHCP; empty if it is none (RFC 1123 section 2.1)."""
    label = text.partition(".")[0]
    usable = 0 < len(label) <= 63 and label.isascii() and label.replace("-", "").isalnum()
    return label if usable and not label.startswith("-") and label != "localhost" else ""


def machine_name(lease: Lease) -> str:
    """Return the name by which this machine introduces itself: that of the DHCP server, or its hardware address."""
    return lease.host_name or mac_name(lease.mac)


def _names(cards: Sequence[NetworkCard], vlan: int = 0) -> str:
    names = ", ".join(card.name for card in cards)
    return f"{names}, VLAN {vlan}" if vlan else names
