"""Clonezilla's image directories, as ``ocs-sr savedisk`` writes them.

One disk with MBR or GPT, partitions saved by partclone or dd, and swap areas by UUID and label. Images of LVM, of
several disks, of ntfsclone and of partimage are refused, encrypted ones too.
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

_DEVICE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.!-]{0,63}")
_PART_NUMBER: Final = re.compile(r"p?([0-9]{1,3})")
_HIDDEN_BYTES_MAX: Final = 64 << 20
"""Sectors before the first partition."""
_DISK_SIZE: Final = re.compile(r"^Disk /dev/\S+: ([0-9]{1,15})s$", re.MULTILINE)
_ASSIGNMENT: Final = re.compile(r'^(UUID|LABEL)="?([^"\n]*)"?$', re.MULTILINE)
_PARTCLONE: Final = re.compile(
    r"\.([A-Za-z0-9+_]{1,16})-ptcl-img(?:\.(?:gz|bz2|lzo|lzma|xz|lzip|lrz|lz4|zst|uncomp))?"
)
_OTHER_PROGRAMS: Final = {".ntfs-img": "ntfsclone", ".000": "partimage", ".aa": "partimage"}
_UNSUPPORTED: Final = {
    "lvm_vg_dev.list": "logical volumes (LVM)",
    "mdadm.conf": "software RAID",
    "ecryptfs.info": "encryption",
}


def describe_clonezilla_untrusted(directory: ImageDirectory) -> DiskDescription:
    """Return the disk that a directory of Clonezilla describes.

    Raises:
        ForeignImageError: files are missing, contradict each other, or need a feature that isn't supported.
        SourceError: a file can't be read.
    """
    name = str(directory.path)
    for file, feature in _UNSUPPORTED.items():
        if directory.read_if_present(file):
            raise ForeignImageError(
                f"{name}: the image has {feature}, which isn't supported: restore it with Clonezilla, and pack the disk"
            )
    device = _disk(directory)
    dump = parse_dump_untrusted(directory.read(f"{device}-pt.sf"), f"{name}/{device}-pt.sf")
    table = build_table(dump, _table_files(directory, device, dump), name)
    extended = dump.extended
    saved = [
        (number, part_name)
        for number, part_name in _saved_partitions(directory, device)
        if extended is None or number != extended.number
    ]
    contents = tuple(_content(directory, number, part_name) for number, part_name in saved)
    numbers = {number for number, _ in saved}
    swaps = (_swap(directory, device, part) for part in dump.areas if part.number not in numbers)
    return DiskDescription(name, dump, table, contents, tuple(swap for swap in swaps if swap is not None))


def _words(directory: ImageDirectory, file: str) -> list[str]:
    """Return the device names in a file, as they are part of file names."""
    words = directory.read(file).decode("ascii", "replace").split()
    for word in words:
        if not _DEVICE.fullmatch(word.replace("/", "-")) or word.startswith(("/", ".")) or ".." in word:
            raise ForeignImageError(f"{directory.path}/{file}: {word!r:.80} isn't the name of a device")
    return [word.replace("/", "-") for word in words]


def _disk(directory: ImageDirectory) -> str:
    disks = _words(directory, "disk")
    if len(disks) != 1:
        raise ForeignImageError(
            f"{directory.path}: an image of {len(disks)} disks: only one is supported; save each disk on its own"
        )
    return disks[0]


def _saved_partitions(directory: ImageDirectory, device: str) -> list[tuple[int, str]]:
    saved = []
    for part_name in _words(directory, "parts"):
        found = _PART_NUMBER.fullmatch(part_name[len(device) :]) if part_name.startswith(device) else None
        if found is None:
            raise ForeignImageError(f"{directory.path}/parts: {part_name} isn't a partition of {device}")
        saved.append((int(found[1]), part_name))
    if len({number for number, _ in saved}) != len(saved):
        raise ForeignImageError(f"{directory.path}/parts: a partition is named twice")
    return sorted(saved)


def _table_files(directory: ImageDirectory, device: str, dump: PartitionDump) -> TableFiles:
    def read(suffix: str) -> bytes:
        return directory.read_if_present(f"{device}-{suffix}", _HIDDEN_BYTES_MAX) or b""

    parted = read("pt.parted").decode("utf-8", "replace")
    found = _DISK_SIZE.search(parted)
    disk_bytes = int(found[1]) * dump.sector_bytes if found else None
    if dump.table is TableKind.GPT:
        return TableFiles(read("gpt-1st") or read("mbr"), disk_bytes=disk_bytes)
    return TableFiles(read("mbr"), read("hidden-data-after-mbr"), disk_bytes)


def _content(directory: ImageDirectory, number: int, part_name: str) -> PartitionFiles:
    """Return the files of one partition."""
    name = str(directory.path)
    bases = set()
    for file in directory.names:
        found = _PARTCLONE.match(file[len(part_name) :]) if file.startswith(f"{part_name}.") else None
        if found is not None:
            bases.add((file[: len(part_name) + found.end()], found[1] == "dd"))
    bases.add((f"{part_name}.dd-img", True))
    groups = [(ordered_pieces(base, directory.names, name), is_raw) for base, is_raw in sorted(bases)]
    groups = [(pieces, is_raw) for pieces, is_raw in groups if pieces]
    if len(groups) > 1:
        raise ForeignImageError(
            f"{name}: {groups[0][0][0]} and {groups[1][0][0]} are both images of {part_name}"
        )
    if groups:
        pieces, is_raw = groups[0]
        return PartitionFiles(number, ContentKind.RAW if is_raw else ContentKind.PARTCLONE, pieces)
    for suffix, program in _OTHER_PROGRAMS.items():
        if any(file.startswith(part_name + suffix) for file in directory.names):
            raise ForeignImageError(
                f"{name}: {part_name} was saved by {program}, which isn't supported: restore the image with "
                "Clonezilla, and pack the disk"
            )
    raise ForeignImageError(
        f"{name}: no image of {part_name}, which the file parts names: copy the image again"
    )


def _swap(directory: ImageDirectory, device: str, part: DumpedPartition) -> SwapArea | None:
    """Return the swap area whose UUID and label were saved; None if there are none."""
    for part_name in (f"{device}{part.number}", f"{device}p{part.number}"):
        text = directory.read_if_present(f"swappt-{part_name}.info")
        if text is not None:
            fields = dict(_ASSIGNMENT.findall(text.decode("utf-8", "replace")))
            return SwapArea(part.number, fields.get("UUID", ""), fields.get("LABEL", ""))
    return None
