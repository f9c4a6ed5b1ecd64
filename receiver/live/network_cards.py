"""The network cards of this machine, as sysfs shows them, in the order in which they are tried."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Final

SYSTEM_ROOT: Final = Path("/sys")

CARDS_MAX: Final = 32
"""More than any machine that is imaged."""

UNNAMED: Final = "unnamed"
"""Name of a machine without a card."""

_ETHERNET: Final = "1"
"""ARPHRD_ETHER of linux/if_arp.h."""


@dataclasses.dataclass(frozen=True, slots=True)
class NetworkCard:
    """An Ethernet card; not a bridge, a tunnel or another virtual interface.

    Attributes:
        name: as in ``ip link``.
        mac: hardware address, lower case with colons.
    """

    name: str
    mac: str


def read_cards(root: Path = SYSTEM_ROOT) -> list[NetworkCard]:
    """Return the cards by name."""
    found = []
    try:
        folders = sorted((root / "class/net").iterdir())
    except OSError:
        return []
    for folder in folders:
        is_wireless = (folder / "wireless").exists() or (folder / "phy80211").exists()
        if (folder / "device").exists() and _text(folder / "type") == _ETHERNET and not is_wireless:
            found.append(NetworkCard(folder.name, _text(folder / "address").lower()))
    return found[:CARDS_MAX]


def in_boot_order(cards: Iterable[NetworkCard], boot_mac: str) -> list[NetworkCard]:
    """Return the cards, the one that the machine booted by first."""
    return sorted(cards, key=lambda card: card.mac != boot_mac)


def mac_name(mac: str) -> str:
    """Return the name of a machine that has none but the hardware address of its card."""
    return mac.replace(":", "-") or UNNAMED


def has_link(name: str, root: Path = SYSTEM_ROOT) -> bool:
    """Return whether an interface that is up has a link."""
    return _text(root / "class/net" / name / "carrier") == "1"


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # the carrier of an interface that is down: EINVAL
        return ""
