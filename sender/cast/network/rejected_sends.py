"""The deadline of datagrams that an interface rejects one after the other."""

from __future__ import annotations

import ipaddress
from typing import Final

from protocol.constants import ETHERNET_MTU_BYTES
from protocol.errors import InterfaceError
from sender.cast.network.interfaces import MulticastInterface, list_interfaces, symbol_bytes_for

REJECTED_S_MAX: Final = 5.0
"""A full queue takes the next datagram within a second, even of 64 KiB on a link of 1 Mbit/s."""


class RejectedSends:
    """The time for which an interface has rejected every datagram (ENOBUFS), although its link is up.

    A full queue, and a link that is down, end after a while. A link behind the interface that doesn't take datagrams of
    this size never does, and small control datagrams still pass: the cast would wait for ever.
    """

    def __init__(self, sender_address: str, destination: str, frame_bytes: int) -> None:
        """Args:
        sender_address: the interface's address.
        destination: group and port, for the message.
        frame_bytes: size of the datagrams.
        """
        self._sender_address = ipaddress.ip_address(sender_address)
        self._destination = destination
        self._frame_bytes = frame_bytes
        self._since: float | None = None

    def accept(self) -> None:
        """Record that a datagram was accepted."""
        self._since = None

    def reject(self, now: float) -> None:
        """Record a rejection.

        Raises:
            InterfaceError: every datagram has been rejected for five seconds.
        """
        if self._since is None:
            self._since = now
        lasted_s = now - self._since
        if lasted_s < REJECTED_S_MAX:
            return
        interface = self._interface()
        if interface is None or not interface.up:
            self._since = now  # the cable or the switch comes back, and the cast continues
            return
        raise InterfaceError(
            f"{interface.name} has rejected all datagrams of {self._frame_bytes} bytes to {self._destination} for "
            f"{lasted_s:.0f} s, although its link is up: {self._fix(interface)}"
        )

    def _interface(self) -> MulticastInterface | None:
        interfaces = list_interfaces().values()
        return next((found for found in interfaces if self._sender_address in found.addresses), None)

    def _fix(self, interface: MulticastInterface) -> str:
        if interface.mtu_bytes <= ETHERNET_MTU_BYTES:
            return f"see its queue and its counters (tc -s qdisc show dev {interface.name}, ip -s link)"
        small = MulticastInterface(interface.name, interface.index, True, ETHERNET_MTU_BYTES, ())
        symbol_bytes = symbol_bytes_for(small, self._sender_address.version)
        return (
            f"its MTU is {interface.mtu_bytes}, and the link behind it probably takes less. Set the same MTU on all "
            f"switches and machines, or choose --symbol-size {symbol_bytes}"
        )
