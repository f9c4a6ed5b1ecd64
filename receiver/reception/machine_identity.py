"""This machine's identity and inventory, as read from its firmware and its network interfaces."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from pathlib import Path
from typing import Final

import psutil  # type: ignore[import-untyped]

from protocol.constants import HARDWARE_ADDRESSES_MAX
from protocol.model.session_records import MachineIdentity
from protocol.shared.units import format_bytes

SYSTEM_ROOT: Final = Path("/sys")

_DMI: Final = "class/dmi/id"
_DEVICE_TREE_SERIAL: Final = "firmware/devicetree/base/serial-number"
"""Serial number of boards without DMI, such as most ARM boards."""

_INVENTORY_DMI_FIELDS: Final = ("sys_vendor", "product_name", "product_serial", "bios_version")
_DISKS_MAX: Final = 8
"""Disks that the inventory names: more don't fit a line."""
_SECTOR_BYTES: Final = 512
"""Unit of ``size`` in sysfs, whatever the disk's own sectors are."""
_SECURE_BOOT: Final = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
"""Variable of the UEFI specification: four bytes of attributes, then 1 if Secure Boot is enforced."""
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


def describe_machine(interface: str, *, root: Path = SYSTEM_ROOT) -> dict[str, str]:
    """Return the inventory of this machine for the operator; only facts that are cheap to read."""
    entries = psutil.net_if_addrs().get(interface, [])
    hardware = [entry.address for entry in entries if entry.family == socket.AF_PACKET]
    addresses = [entry.address for entry in entries if entry.family in (socket.AF_INET, socket.AF_INET6)]
    inventory = {
        "host": socket.gethostname(),
        "kernel": platform.release(),
        "firmware": _firmware(root),
        "processor": _processor(),
        "processors": str(os.cpu_count()),
        "memory": format_bytes(psutil.virtual_memory().total),
        "disks": _disks(root),
        "interface": " ".join([interface, *hardware[:1]]),
        "address": next(iter(addresses), "").partition("%")[0],
    }
    for field in _INVENTORY_DMI_FIELDS:
        inventory[field] = _text(root / _DMI / field)
    return {name: value for name, value in inventory.items() if value}


def _processor() -> str:
    """Return the model of the processor; empty where the kernel doesn't name it, as on most ARM boards."""
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return " ".join(value.split())
    return ""


def _firmware(root: Path) -> str:
    if not (root / "firmware/efi").is_dir():
        return "BIOS" if (root / _DMI).is_dir() else ""
    with contextlib.suppress(OSError):
        if (root / _SECURE_BOOT).read_bytes()[4:5] == b"\1":
            return "UEFI, Secure Boot"
    return "UEFI"


def _disks(root: Path) -> str:
    """Return names, sizes and models of the disks that have hardware of their own and aren't empty."""
    found = []
    for path in sorted((root / "block").glob("*")):
        sectors = _text(path / "size")
        if path.name.startswith("sr") or not (path / "device").exists() or not sectors.isdecimal():
            continue  # an optical drive, or no hardware: loop devices, RAM disks, device mapper
        if int(sectors):
            size, model = format_bytes(int(sectors) * _SECTOR_BYTES), _text(path / "device/model")
            found.append(" ".join(filter(None, (path.name, size, model))))
    return ", ".join(found[:_DISKS_MAX])


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
