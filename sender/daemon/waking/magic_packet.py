"""The magic packet of Wake-on-LAN (AMD, "Magic Packet Technology", publication 20213)."""

from __future__ import annotations

from typing import Final

_SYNCHRONIZATION: Final = b"\xff" * 6
_REPETITIONS: Final = 16
MAGIC_PACKET_BYTES: Final = 6 + _REPETITIONS * 6
MAGIC_PACKET_PORT: Final = 9
"""Discard, the usual port. Network cards look for the payload anywhere in a frame, whatever its port."""


def magic_packet(mac: str) -> bytes:
    """Return the packet that wakes the network card with this address.

    Args:
        mac: six bytes in hexadecimal, separated by colons.

    Raises:
        ValueError: ``mac`` isn't such an address.
    """
    address = bytes.fromhex(mac.replace(":", ""))
    if len(address) != 6:
        raise ValueError(f"{mac!r} isn't a hardware address of six bytes")
    return _SYNCHRONIZATION + address * _REPETITIONS
