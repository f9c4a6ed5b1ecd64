"""Requirements of an image for the machines that get it."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from protocol.disk.partition_table import EFI_SYSTEM_TYPES, DiskLayout, TableKind
from protocol.model.hardware import FirmwareKind
from protocol.preflight.sectors import SectorNeeds

_BIOS_BOOT: Final = "21686148-6449-6E6F-744E-656564454649"
"""GPT type of the partition in which GRUB keeps its core for BIOS."""

_DEVICES_KEPT: Final = 4096
"""Devices whose result is kept: the machines of a room have a few dozen kinds."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRequirements:
    """Requirements of an image.

    Attributes:
        firmwares: firmwares by which it starts; empty if they are unknown.
        architecture: the kernel's name of its programs' architecture; empty if it is unknown.
        signed_loader: its EFI partition has a loader that Secure Boot accepts; None if that is unknown.
        drivers_known: its kernel modules were read: :class:`DriverAliases` has their devices.
    """

    sectors: SectorNeeds
    firmwares: tuple[FirmwareKind, ...] = ()
    architecture: str = ""
    signed_loader: bool | None = None
    drivers_known: bool = False

    @property
    def raw_bytes(self) -> int:
        """Return the size of the image: a disk must be at least as large."""
        return self.sectors.raw_bytes


def firmwares_of(layout: DiskLayout | None) -> tuple[FirmwareKind, ...]:
    """Return the firmwares by which a disk of this layout can start; empty if that is unknown."""
    if layout is None or layout.table is TableKind.NONE:
        return ()
    uefi = any(part.type in EFI_SYSTEM_TYPES for part in layout.partitions)
    if layout.table is TableKind.GPT:
        bios = any(part.type == _BIOS_BOOT for part in layout.partitions)
        return (*([FirmwareKind.UEFI] if uefi else []), *([FirmwareKind.BIOS] if bios else []))
    # An MBR has its boot code before the first partition, which the layout doesn't show.
    return (FirmwareKind.UEFI, FirmwareKind.BIOS) if uefi else (FirmwareKind.BIOS,)


class DriverAliases:
    """Patterns of the devices for which an image has drivers, as in ``modules.alias``; fast for a room of machines."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """Index ``patterns`` by their letters before the first wildcard: few start as a device does."""
        self._patterns: dict[str, list[str]] = defaultdict(list)
        self._known: dict[str, bool] = {}
        for pattern in patterns:
            self._patterns[re.split(r"[*?\[]", pattern, maxsplit=1)[0]].append(pattern)

    def has_driver(self, modalias: str) -> bool:
        """Return whether a pattern matches a device's ``modalias``."""
        known = self._known.get(modalias)
        if known is None:
            starts = (modalias[:length] for length in range(len(modalias) + 1))
            near = itertools.chain.from_iterable(self._patterns.get(start, ()) for start in starts)
            known = any(fnmatch.fnmatchcase(modalias, pattern) for pattern in near)
            if len(self._known) < _DEVICES_KEPT:
                self._known[modalias] = known
        return known
