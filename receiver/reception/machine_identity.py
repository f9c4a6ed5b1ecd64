"""This machine's identity and inventory, as read from its firmware and its network interfaces."""

from __future__ import annotations

import contextlib
import platform
import socket
from pathlib import Path
from typing import Final

import psutil  # type: ignore[import-untyped]

from protocol.constants import HARDWARE_ADDRESSES_MAX
from protocol.model.hardware import Hardware, hardware_texts
from protocol.model.session_records import MachineIdentity

SYSTEM_ROOT: Final = Path("/sys")

_DMI: Final = "class/dmi/id"
_DEVICE_TREE_SERIAL: Final = "firmware/devicetree/base/serial-number"
"""Serial number of boards without DMI, such as most ARM boards."""

_INVENTORY_DMI_FIELDS: Final = ("sys_vendor", "product_name", "product_serial", "bios_version")
_NO_ADDRESS: Final = "00:00:00:00:00:00"


def read_identity(interface: str, *, root: Path = SYSTEM_ROOT) -> MachineIdentity:
    """Return the identity by which a daemon recognises this machine.

    Args:
        interface: the interface that casts arrive on, as in ``ip link``.
        root: replaces ``/sys``.
    """
    serial = _text(root / _DMI / "product_serial") or _text(root / _DEVICE_TREE_SERIAL)
    asset_tag = _text(root / _DMI / "chassis_asset_tag") or _text(root / _DMI / "board_asset_tag")
    return MachineIdentity(_hardware_addresses(interface, root), serial, asset_tag)


def describe_machine(interface: str, hardware: Hardware, *, root: Path = SYSTEM_ROOT) -> dict[str, str]:
    """Return the textual inventory of this machine for the operator; only facts that are cheap to read."""
    entries = psutil.net_if_addrs().get(interface, [])
    macs = [entry.address for entry in entries if entry.family == socket.AF_PACKET]
    addresses = [entry.address for entry in entries if entry.family in (socket.AF_INET, socket.AF_INET6)]
    inventory = {
        "host": socket.gethostname(),
        "kernel": platform.release(),
        **hardware_texts(hardware),
        "interface": " ".join([interface, *macs[:1]]),
        "address": next(iter(addresses), "").partition("%")[0],
    }
    for field in _INVENTORY_DMI_FIELDS:
        inventory[field] = _text(root / _DMI / field)
    return {name: value for name, value in inventory.items() if value}


def _hardware_addresses(interface: str, root: Path) -> tuple[str, ...]:
    """Return the addresses of ``interface`` and of all cards; bridges and other virtual interfaces have random ones."""
    found: list[str] = []
    entries = psutil.net_if_addrs()
    for name in sorted(entries, key=lambda name: (name != interface, name)):
        if name != interface and not (root / "class/net" / name / "device").exists():
            continue
        shown = [entry.address for entry in entries[name] if entry.family == socket.AF_PACKET]
        # Cards of a bond all show the bond's address, and a boot token is for the card that booted.
        permanent = _text(root / "class/net" / name / "bonding_slave/perm_hwaddr")
        for address in map(str.lower, filter(None, (permanent, *shown))):
            if address not in (_NO_ADDRESS, *found):
                found.append(address)
    return tuple(found[:HARDWARE_ADDRESSES_MAX])


def _text(path: Path) -> str:
    """Return a firmware text; empty if there is none, or it isn't readable without root."""
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip(" \t\r\n\0")
    return ""
