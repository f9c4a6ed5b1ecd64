"""The machines that a boot service has seen recently, so that each boot is one line of the log and not twenty."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, TypeVar

from sender.store.records.boots import BootFirmware

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

MACHINES_MAX: Final = 4096
"""Machines of one broadcast domain; with forged addresses beyond that, the oldest are forgotten."""
REPEATED_S: Final = 30.0
"""Firmware repeats a question for up to a minute; a machine takes longer than this to boot again."""


class MachineSightings:
    """Firmware of each machine, and the events that were logged for it recently."""

    def __init__(self) -> None:
        """Start without machines."""
        self._firmware: OrderedDict[str, BootFirmware] = OrderedDict()
        self._logged: OrderedDict[tuple[str, str], float] = OrderedDict()

    def saw(self, mac: str, firmware: BootFirmware) -> None:
        """Note the firmware of a machine that asked by DHCP."""
        _put(self._firmware, mac, firmware)

    def firmware(self, mac: str, *, uefi: bool) -> BootFirmware:
        """Return the firmware of a machine whose iPXE reports UEFI or not: only its first request shows more."""
        seen = self._firmware.get(mac)
        if seen is BootFirmware.UEFI_HTTP and uefi:
            return seen
        return BootFirmware.UEFI if uefi else BootFirmware.BIOS

    def is_news(self, mac: str, event: str, now: float) -> bool:
        """Return whether ``event`` of a machine should be logged; False if it was logged in the last seconds."""
        before = self._logged.get((mac, event))
        if before is not None and now - before < REPEATED_S:
            return False
        _put(self._logged, (mac, event), now)
        return True


def _put(table: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > MACHINES_MAX:
        table.popitem(last=False)
