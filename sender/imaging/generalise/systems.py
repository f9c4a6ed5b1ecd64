"""The systems on a disk: which filesystem is mounted where, by the mount tables in the image itself."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Final

from protocol.constants import MIB
from protocol.disk.disk_reads import Read
from protocol.disk.partition_table import DiskLayout, Partition, TableKind
from protocol.errors import ConfigurationError
from sender.imaging.contents.ext_files import ExtFiles
from sender.imaging.contents.filesystem_labels import FilesystemLabel, read_label_untrusted
from sender.imaging.contents.image_contents import read_system_untrusted
from sender.imaging.generalise.mount_table import FstabMount, find_partition, parse_fstab_untrusted

_FSTAB_BYTES_MAX: Final = MIB
_IRRELEVANT: Final = frozenset(
    {"tmpfs", "proc", "sysfs", "devtmpfs", "devpts", "vfat", "nfs", "nfs4", "cifs", "none"}
)
"""Filesystems that keep nothing of one machine on this disk."""


@dataclasses.dataclass(frozen=True, slots=True)
class Systems:
    """The systems of a disk.

    Attributes:
        names: operating systems, each with its root filesystem's partition.
        mounts: mount point of each ext filesystem that a system uses, by partition number.
        swap_files: swap files by the partition number of their root filesystem.
        remarks: filesystems that the systems use and that can't be read here.
    """

    names: Mapping[int, str]
    mounts: Mapping[int, str]
    swap_files: Mapping[int, tuple[str, ...]]
    remarks: tuple[str, ...]


def partitions_of(layout: DiskLayout, raw_bytes: int) -> tuple[Partition, ...]:
    """Return the partitions, or the whole disk as number 0.

    Raises:
        ConfigurationError: some of them overlap.
    """
    if layout.table is TableKind.NONE:
        return (Partition(0, 0, raw_bytes, "", "", layout.filesystem),)
    parts = sorted(
        (part for part in layout.partitions if not part.is_extended), key=lambda part: part.start_bytes
    )
    for first, second in itertools.pairwise(parts):
        if second.start_bytes < first.stop_bytes:
            raise ConfigurationError(
                f"partitions {first.number} and {second.number} overlap: such a disk isn't changed"
            )
    return tuple(parts)


def find_systems_untrusted(parts: Sequence[Partition], reads: Mapping[int, Read]) -> Systems:
    """Find the systems whose root filesystem is one of ``reads``, readers of the disk's ext filesystems.

    Raises:
        ExtError: a filesystem is damaged, or has unsupported features.
    """
    names, mounts, swap_files = {}, {}, {}
    remarks: list[str] = []
    labels = {part.number: _label(reads.get(part.number)) for part in parts}
    for number, read in reads.items():
        name = read_system_untrusted("ext4", read)
        if not name:
            continue
        names[number], mounts[number] = name, "/"
        fstab = ExtFiles.open_untrusted(read).read_file_untrusted("/etc/fstab", _FSTAB_BYTES_MAX)
        table = parse_fstab_untrusted(fstab or b"")
        swap_files[number] = tuple(
            mount.source
            for mount in table
            if mount.filesystem == "swap"
            and mount.source.startswith("/")
            and not mount.source.startswith("/dev/")
        )
        for mount in table:
            if not mount.point.startswith("/") or mount.point == "/" or mount.filesystem in _IRRELEVANT:
                continue
            part = find_partition(mount, parts, labels)
            if part is not None and part.number in reads:
                mounts.setdefault(part.number, mount.point)
            else:
                remarks.append(_unread(mount, part))
    return Systems(names, mounts, swap_files, tuple(dict.fromkeys(remarks)))


def _label(read: Read | None) -> FilesystemLabel:
    return FilesystemLabel() if read is None else read_label_untrusted("ext4", read)


def _unread(mount: FstabMount, part: Partition | None) -> str:
    what = (
        mount.source if part is None else f"partition {part.number} ({part.filesystem or mount.filesystem})"
    )
    printable = "".join(letter if letter.isprintable() else "?" for letter in f"{mount.point} is on {what}")
    return f"{printable}, which isn't an ext filesystem of this disk: nothing in it was changed"
