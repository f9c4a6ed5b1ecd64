"""The hardware address of a neighbour, from the kernel's ARP table."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

ARP_TABLE: Final = Path("/proc/net/arp")
_COMPLETE: Final = 0x2
"""ATF_COM (linux/if_arp.h): the address is known."""


def find_mac(address: IPv4Address, table: Path = ARP_TABLE) -> str:
    """Return the hardware address of ``address`` in lower case with colons; empty if it is no known neighbour."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return ""
    for fields in map(str.split, lines):
        if len(fields) >= 6 and fields[0] == str(address) and int(fields[2], 16) & _COMPLETE:
            return fields[3].lower()
    return ""
