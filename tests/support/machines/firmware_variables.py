"""Variables of UEFI firmware, read from the flash image of a virtual machine that is off.

The layout is that of EDK II, MdeModulePkg/Include/Guid/VariableFormat.h: a store of authenticated variables, each with
a header, its name and its data.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from pathlib import Path
from typing import Final, Self

_STORE: Final = bytes.fromhex("782cf3aa7b949a43a1802e144ec37792")
"""GUID of a store of authenticated variables."""
_STORE_HEADER_BYTES: Final = 28
_VARIABLE: Final = struct.Struct("<HBBIQ16sIII16s")
"""Start, state, reserved, attributes, count, time, key, sizes of name and data, vendor."""
_START: Final = 0x55AA
_ADDED: Final = 0x3F
"""State of a variable that is in force; deleted and replaced ones have fewer bits."""
_GLOBAL: Final = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
"""GUID of the boot manager's variables (UEFI specification 2.10, section 3.3)."""
_ALIGNMENT: Final = 4
_ENTRY: Final = re.compile("Boot([0-9A-F]{4})")


@dataclasses.dataclass(frozen=True, slots=True)
class BootVariables:
    """The boot manager's variables.

    Attributes:
        labels: labels of the boot entries, by number.
        order: numbers of the entries, in the order in which the firmware tries them.
        next: number of the entry for the next boot; None for none.
    """

    labels: dict[int, str]
    order: tuple[int, ...]
    next: int | None

    @classmethod
    def read(cls, flash: Path) -> Self:
        """Read the variables from a flash image."""
        variables = _read_variables(flash.read_bytes())
        labels = {
            int(match[1], 16): _label(data)
            for name, data in variables.items()
            if (match := _ENTRY.fullmatch(name))
        }
        order = variables.get("BootOrder", b"")
        following = variables.get("BootNext")
        return cls(
            labels,
            struct.unpack(f"<{len(order) // 2}H", order),
            None if following is None else struct.unpack("<H", following)[0],
        )


def _label(option: bytes) -> str:
    """Return the description of a load option: after attributes and a length, text that ends with a zero."""
    return option[6:].decode("utf-16-le", errors="replace").partition("\0")[0]


def _read_variables(flash: bytes) -> dict[str, bytes]:
    start = flash.find(_STORE)
    assert start >= 0, "the flash image has no store of authenticated variables"
    position = start + _STORE_HEADER_BYTES
    found: dict[str, bytes] = {}
    while True:
        fields = _VARIABLE.unpack_from(flash, position)
        if fields[0] != _START:
            return found
        state, name_bytes, data_bytes, vendor = fields[1], fields[7], fields[8], fields[9]
        name_at = position + _VARIABLE.size
        data_at = name_at + name_bytes
        if state == _ADDED and vendor == _GLOBAL:
            name = flash[name_at:data_at].decode("utf-16-le").rstrip("\0")
            found[name] = flash[data_at : data_at + data_bytes]
        end = data_at + data_bytes
        position = end + -end % _ALIGNMENT
