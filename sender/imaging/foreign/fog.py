"""FOG's image directories: one disk with MBR or GPT, its partitions saved by partclone.

FOG turns partclone's checksums off. A resizable image holds filesystems that FOG had shrunk: they come back into
partitions of the original size. The older forms of FOG 0.x (``sys.img.000``) and LVM are refused.
"""

from __future__ import annotations

import re
from typing import Final

from protocol.disk.partition_table import TableKind
from protocol.errors import ForeignImageError
from sender.imaging.foreign.disk_assembly import ContentKind, DiskDescription, PartitionFiles, SwapArea
from sender.imaging.foreign.image_directory import ImageDirectory
from sender.imaging.foreign.partition_dump import DumpedPartition, PartitionDump, parse_dump_untrusted
from sender.imaging.foreign.partition_tables import TableFiles, build_table
from sender.imaging.foreign.split_files import ordered_pieces

_DUMPS: Final = ("d1.partitions", "d1.original.partitions", "d1.minimum.partitions")
"""Texts of the partition table: the original one first."""
_BOOT_BYTES_MAX: Final = 2 << 20
"""FOG saves at most the first MiB; a GPT as sgdisk saves it has 18 KiB."""
_SECTOR_BYTES: Final = 512
_SIZE: Final = re.compile(r"1:([0-9]{1,15})\s*")
_SWAP: Final = re.compile(r"^(?:\S*[a-z])?([0-9]{1,3})\s+([0-9A-Fa-f-]{36})\s*$", re.MULTILINE)
_SWAP_TYPES: Final = frozenset({"82", "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"})


def describe_fog_untrusted(directory: ImageDirectory) -> DiskDescription:
    """Return the disk that a directory of FOG describes.

    Raises:
        ForeignImageError: files are missing, contradict each other, or need a feature that isn't supported.
        SourceError: a file can't be read.
    """
    name = str(directory.path)
    _refuse_unsupported(directory)
    dump_name = next((file for file in _DUMPS if file in directory.names), None)
    if dump_name is None:
        raise ForeignImageError(
            f"{name}: no {_DUMPS[0]}: the partition table is missing; copy the image again"
        )
    dump = parse_dump_untrusted(directory.read(dump_name), f"{name}/{dump_name}")
    table = build_table(dump, _table_files(directory, dump), name)
    swaps = _swaps(directory)
    contents = []
    for part in dump.areas:
        pieces = ordered_pieces(f"d1p{part.number}.img", directory.names, name)
        if pieces:
            contents.append(PartitionFiles(part.number, ContentKind.PARTCLONE, pieces))
        elif part.number not in swaps and part.type not in _SWAP_TYPES:
            raise ForeignImageError(
                f"{name}: d1p{part.number}.img is missing: the image is incomplete; copy it again"
            )
    saved = {content.number for content in contents}
    areas = tuple(SwapArea(part.number, swaps[part.number]) for part in _swap_parts(dump, swaps, saved))
    return DiskDescription(name, dump, table, tuple(contents), areas)


def _swap_parts(dump: PartitionDump, swaps: dict[int, str], saved: set[int]) -> list[DumpedPartition]:
    return [part for part in dump.areas if part.number in swaps and part.number not in saved]


def _refuse_unsupported(directory: ImageDirectory) -> None:
    for file in directory.names:
        feature = ""
        if re.fullmatch(r"d1p[0-9]+\.lvm", file):
            feature = "logical volumes (LVM)"
        elif re.match(r"d[2-9][.p]", file):
            feature = "several disks"
        elif file in ("sys.img.000", "rec.img.000"):
            feature = "the files of FOG 0.x"
        if feature:
            raise ForeignImageError(
                f"{directory.path}: the image has {feature} ({file}), which isn't supported: restore it with FOG, and "
                "pack the disk"
            )


def _table_files(directory: ImageDirectory, dump: PartitionDump) -> TableFiles:
    boot = directory.read_if_present("d1.mbr", _BOOT_BYTES_MAX) or b""
    found = _SIZE.fullmatch((directory.read_if_present("d1.size") or b"").decode("ascii", "replace"))
    if dump.table is TableKind.GPT and boot[2 * _SECTOR_BYTES :].startswith(b"EFI PART"):
        # As sgdisk saves it: boot record, header, the backup's header, entries.
        boot = boot[: 2 * _SECTOR_BYTES] + boot[3 * _SECTOR_BYTES :]
    return TableFiles(boot, disk_bytes=int(found[1]) if found else None)


def _swaps(directory: ImageDirectory) -> dict[int, str]:
    text = (directory.read_if_present("d1.original.swapuuids") or b"").decode("ascii", "replace")
    return {int(number): identity for number, identity in _SWAP.findall(text)}
