"""Hardware that the live system can't use: devices without a driver, and firmware that drivers miss.

Findings come from sysfs, from the list of the drivers' devices (``modules.alias``) and from the kernel's log. A device
whose driver is only absent is another finding than one that its driver refuses.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from receiver.hardware.pci_devices import SYSTEM_ROOT, PciDevice, read_pci_devices
from receiver.live.messages import (
    DRIVER_FAILED,
    FIRMWARE_MISSING,
    NO_NETWORK_DRIVER,
    NO_STORAGE_DRIVER,
    BootMessage,
)

KERNEL_LOG: Final = Path("/dev/kmsg")

FINDINGS_MAX: Final = 12
"""Most lines: half a screen."""

KERNEL_RECORD_BYTES_MAX: Final = 8192
"""Longest record of ``/dev/kmsg``; a shorter buffer is an error."""
KERNEL_RECORDS_MAX: Final = 20_000

_ALIAS: Final = re.compile(r"alias (pci:\S+) (\S+)")
_FIRMWARE: Final = (
    # Debian's kernels, then others: firmware_class is in drivers/base/firmware_loader/main.c.
    re.compile(r"(?P<device>\S+ \S+): firmware: failed to load (?P<file>\S+) \(-"),
    re.compile(r"(?P<device>\S+ \S+): Direct firmware load for (?P<file>\S+) failed with error"),
)


def modules_for(modalias: str, alias_lines: Iterable[str]) -> list[str]:
    """Return the modules whose patterns match ``modalias``.

    Args:
        modalias: a device's.
        alias_lines: lines of ``modules.alias``.
    """
    found: dict[str, None] = {}
    for line in alias_lines:
        match = _ALIAS.match(line)
        if match and fnmatch.fnmatchcase(modalias, match[1]):
            found[match[2]] = None
    return list(found)


def find_missing_drivers(devices: Iterable[PciDevice], alias_lines: Iterable[str]) -> list[str]:
    """Return a message for each network card and disk controller that no driver uses."""
    lines = list(alias_lines)
    found = []
    for device in devices:
        if device.driver:
            continue
        missing, kind = _kind(device)
        if missing is None:
            continue
        modules = modules_for(device.modalias, lines)
        if modules:
            found.append(DRIVER_FAILED.text(module=modules[0], kind=kind, id=device.id_text))
        else:
            found.append(missing.text(id=device.id_text))
    return list(dict.fromkeys(found))


def _kind(device: PciDevice) -> tuple[BootMessage | None, str]:
    if device.is_network_card:
        return NO_NETWORK_DRIVER, "network card"
    if device.is_disk_controller:
        return NO_STORAGE_DRIVER, "disk controller"
    return None, ""


def find_missing_firmware(kernel_log: Iterable[str]) -> list[str]:
    """Return a message for each firmware file that a driver requested in vain."""
    found: dict[str, None] = {}
    for line in kernel_log:
        for pattern in _FIRMWARE:
            match = pattern.search(line)
            if match:
                found[FIRMWARE_MISSING.text(file=match["file"], device=match["device"])] = None
    return list(found)


def read_kernel_log(path: Path = KERNEL_LOG) -> list[str]:
    """Return the texts of the kernel's log; none if it can't be read."""
    found: list[str] = []
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return found
    try:
        while len(found) < KERNEL_RECORDS_MAX:
            try:
                record = os.read(fd, KERNEL_RECORD_BYTES_MAX)
            except OSError as error:
                if (
                    error.errno == errno.EPIPE
                ):  # older records were overwritten meanwhile; reading continues after them
                    continue
                break  # EAGAIN: no more
            if not record:
                break
            # "6,339,5140900,-;message\n KEY=value\n" (Documentation/ABI/testing/dev-kmsg)
            text = record.decode(errors="replace").partition(";")[2]
            found.append(text.partition("\n")[0])
    finally:
        os.close(fd)
    return found


def read_findings(root: Path = SYSTEM_ROOT, kernel_log: Path = KERNEL_LOG) -> list[str]:
    """Return the messages about this machine's hardware."""
    aliases = Path("/lib/modules") / os.uname().release / "modules.alias"
    lines = _text(aliases).splitlines()
    drivers = find_missing_drivers(read_pci_devices(root), lines)
    return [*drivers, *find_missing_firmware(read_kernel_log(kernel_log))][:FINDINGS_MAX]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
