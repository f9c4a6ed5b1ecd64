"""The state of an image as the source of clones."""

from __future__ import annotations

import enum
from typing import Final

from protocol.constants import KIB
from protocol.disk.disk_reads import Read
from protocol.disk.partition_table import DiskLayout, TableKind

GENERALISED_KEY: Final = "generalised"
"""Key of the manifest's metadata."""

_EFI_SYSTEM: Final = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_MICROSOFT_RESERVED: Final = "E3C9E316-0B5C-4DB8-817D-F92DF00215AE"
_ACTIVE: Final = 0x80
_ENTRIES_OFFSET: Final = 446
_ENTRY_BYTES: Final = 16


class Generalisation(enum.StrEnum):
    """Generalisation of the operating systems on an image."""

    NO_SYSTEM = "no_system"
    """No operating system was recognised on it."""
    GENERALISED = "generalised"
    NOT_GENERALISED = "not_generalised"


def has_windows_untrusted(layout: DiskLayout, read: Read) -> bool:
    """Return whether a disk boots Windows, by its partitions: Windows's own files aren't read.

    With a GPT, Windows makes a reserved partition beside the EFI system partition; with an MBR, the active partition's
    boot sector loads ``BOOTMGR``.
    """
    filesystems = {part.filesystem for part in layout.partitions}
    if "ntfs" not in filesystems:
        return False
    if layout.table is TableKind.GPT:
        return {part.type for part in layout.partitions} >= {_EFI_SYSTEM, _MICROSOFT_RESERVED}
    entries = read(0, 512)[_ENTRIES_OFFSET : _ENTRIES_OFFSET + 4 * _ENTRY_BYTES]
    active = {index + 1 for index in range(4) if entries[index * _ENTRY_BYTES :][:1] == bytes([_ACTIVE])}
    return any(
        part.number in active and part.filesystem == "ntfs" and b"BOOTMGR" in read(part.start_bytes, 8 * KIB)
        for part in layout.partitions
    )
