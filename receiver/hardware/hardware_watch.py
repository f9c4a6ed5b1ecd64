"""A watch over this machine's hardware: disks that come and go, and their health, without delaying a check-in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from protocol.model.hardware import DiskHealth, Hardware, HardwareDisk
from receiver.disk.inventory.block_devices import SYSTEM_PATHS
from receiver.hardware.smart import read_health

READ_AGAIN_S: Final = 30.0
"""Pause between two readings of sysfs: a disk that is plugged in counts for the next cast."""

HEALTH_AGAIN_S: Final = 3600.0
"""Pause between two readings of a disk's health: it changes over days, and each reading interrupts the disk."""

ReadHealth = Callable[[HardwareDisk], DiskHealth | None]


def health_of(disk: HardwareDisk) -> DiskHealth | None:
    """Return the health of a disk of this machine; see :func:`receiver.hardware.smart.read_health`."""
    path = SYSTEM_PATHS.dev / disk.name.replace("!", "/")
    try:
        return read_health(str(path), Path(path).stat().st_rdev)
    except OSError:  # unplugged meanwhile
        return None


class HardwareWatch:
    """The current hardware of this machine; :meth:`run` keeps it current."""

    def __init__(self, read: Callable[[], Hardware], health: ReadHealth = health_of) -> None:
        """Read the hardware, which takes milliseconds; ``health`` may block, and is called in a thread."""
        self._read = read
        self._health = health
        self._known: dict[tuple[str, str, int], tuple[DiskHealth, float]] = {}
        self.hardware = read()

    async def run(self) -> None:
        """Keep :attr:`hardware` current until cancelled. A disk that never answers holds up nothing but this watch."""
        while True:
            for disk in self.hardware.disks:
                await self._examine(disk)
                self.hardware = self._with_health(self.hardware)
            await trio.sleep(READ_AGAIN_S)
            self.hardware = self._with_health(await trio.to_thread.run_sync(self._read))

    async def _examine(self, disk: HardwareDisk) -> None:
        known = self._known.get(_key(disk))
        if known is not None and trio.current_time() < known[1]:
            return
        health = await trio.to_thread.run_sync(self._health, disk, abandon_on_cancel=True)
        self._known[_key(disk)] = (health or DiskHealth(), trio.current_time() + HEALTH_AGAIN_S)

    def _with_health(self, hardware: Hardware) -> Hardware:
        keys = {_key(disk) for disk in hardware.disks}
        self._known = {key: value for key, value in self._known.items() if key in keys}
        disks = (
            dataclasses.replace(disk, health=self._known[_key(disk)][0])
            if _key(disk) in self._known
            else disk
            for disk in hardware.disks
        )
        return dataclasses.replace(hardware, disks=tuple(disks))


def _key(disk: HardwareDisk) -> tuple[str, str, int]:
    return disk.name, disk.serial, disk.size_bytes
