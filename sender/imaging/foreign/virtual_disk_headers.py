"""Headers of virtual disks: their sizes, and the refusal of everything that leads to other files.

These checks come before any tool sees the image. The sandbox would deny the other files too; the message here names
the cause.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable
from typing import Final

import numpy as np

from protocol.constants import KIB, MIB
from protocol.disk.disk_reads import Read
from protocol.errors import ForeignImageError
from sender.imaging.foreign.sniff import VHD_FOOTER_BYTES, ForeignFormat, has_vhd_footer

SECTOR_BYTES: Final = 512
VMDK_DESCRIPTOR_BYTES_MAX: Final = 64 * KIB
"""Text of a VMDK descriptor: one line of 60 bytes for each 2 GB, 2 TB at most."""
VMDK_EXTENT_COUNT_MAX: Final = 128
"""Files of a VMDK: a descriptor each, and a tool may open 256."""
_SECTOR_COUNT_MAX: Final = 2**63 // SECTOR_BYTES - 1

_QCOW2_DIRTY, _QCOW2_COMPRESSION, _QCOW2_EXTENDED_L2 = 1 << 0, 1 << 3, 1 << 4
_QCOW2_CORRUPT, _QCOW2_DATA_FILE = 1 << 1, 1 << 2
_QCOW2_READABLE: Final = _QCOW2_DIRTY | _QCOW2_COMPRESSION | _QCOW2_EXTENDED_L2

_QCOW2_CLUSTER_BITS: Final = range(9, 22)
_QCOW2_L1_ENTRIES_MAX: Final = 4 * MIB
"""Limit of QEMU: 32 MiB."""
_QCOW2_OFFSET_MASK: Final = np.uint64(0x00FF_FFFF_FFFF_FE00)

_VHD_FIXED, _VHD_DYNAMIC, _VHD_DIFFERENCING = 2, 3, 4

_VHDX_REGION_TABLES: Final = (192 * KIB, 256 * KIB)
_VHDX_METADATA: Final = bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e")
_VHDX_BLOCKS: Final = bytes.fromhex("6677c22d23f600429d64115e9bfd4a08")
_VHDX_BLOCKS_BYTES_MAX: Final = 512 * MIB
"""Eight bytes for each MiB of 64 TiB, the largest VHDX."""
_VHDX_PRESENT: Final = 6
_VHDX_FILE_PARAMETERS: Final = bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b")
_VHDX_DISK_SIZE: Final = bytes.fromhex("2442a52f1bcd7648b2115dbed83bf4b8")
_VHDX_TABLE_ENTRIES_MAX: Final = 2047
_VHDX_HAS_PARENT: Final = 1 << 1

_VDI_DYNAMIC, _VDI_FIXED = 1, 2


class VmdkExtentKind(enum.StrEnum):
    """Kinds of a VMDK's parts."""

    FLAT = "FLAT"
    SPARSE = "SPARSE"
    ZERO = "ZERO"


@dataclasses.dataclass(frozen=True, slots=True)
class VmdkExtent:
    """One part of a VMDK in a file of its own."""

    kind: VmdkExtentKind
    sector_count: int
    name: str
    """A plain file name; empty for zeros."""
    offset_sectors: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class VmdkDescriptor:
    """A descriptor file: a disk whose content is in other files of the same folder."""

    extents: tuple[VmdkExtent, ...]

    @property
    def raw_bytes(self) -> int:
        """Size of the disk."""
        return SECTOR_BYTES * sum(extent.sector_count for extent in self.extents)

    def with_names(self, names: dict[str, str]) -> str:
        """Return a descriptor of the same disk with other file names, and nothing else of the original."""
        lines = ["# Disk DescriptorFile", "version=1", "CID=fffffffe", "parentCID=ffffffff"]
        lines += ['createType="twoGbMaxExtentFlat"']
        # No empty lines: QEMU reads the line behind one twice.
        for extent in self.extents:
            line = f"RW {extent.sector_count} {extent.kind}"
            if extent.kind is not VmdkExtentKind.ZERO:
                line += f' "{names[extent.name]}"'
            if extent.kind is VmdkExtentKind.FLAT:
                line += f" {extent.offset_sectors}"
            lines.append(line)
        return "\n".join([*lines, 'ddb.adapterType = "ide"', ""])


def virtual_size_untrusted(kind: ForeignFormat, read: Read, file_bytes: int) -> int | VmdkDescriptor:
    """Return the size of a virtual disk in bytes, or a VMDK's descriptor.

    Args:
        kind: one of :data:`sender.imaging.foreign.sniff.VIRTUAL_DISK_FORMATS`.
        read: reads the file.
        file_bytes: size of the file.

    Raises:
        ForeignImageError: it is damaged, of an unsupported kind, encrypted, or refers to other disks.
    """
    return _READERS[kind](read, file_bytes)


def parse_vmdk_descriptor_untrusted(text: bytes) -> VmdkDescriptor:
    """Return a descriptor's parts.

    Raises:
        ForeignImageError: as :func:`virtual_size_untrusted`.
    """
    lines = [line.strip() for line in text.split(b"\0", 1)[0].decode(errors="replace").splitlines()]
    _refuse_vmdk_parent(lines)
    extents = []
    for line in lines:
        found = _VMDK_EXTENT.fullmatch(line)
        if found is None:
            if re.match(r"(RW|RDONLY|NOACCESS)\s", line):
                raise ForeignImageError("a part of this VMDK is of an unsupported kind")
            continue
        kind = VmdkExtentKind.FLAT if found["kind"] == "VMFS" else VmdkExtentKind(found["kind"])
        name = found["name"] or ""
        if (kind is VmdkExtentKind.ZERO) == bool(name):
            raise ForeignImageError("a part of this VMDK has no file")
        if name and not is_plain_name(name):
            raise ForeignImageError(
                "a part of this VMDK is outside its folder: a VMDK may only name files beside it"
            )
        extents.append(VmdkExtent(kind, _sectors(found["count"]), name, _sectors(found["offset"] or "0")))
    if not extents or len(extents) > VMDK_EXTENT_COUNT_MAX:
        raise ForeignImageError(f"this VMDK has {len(extents)} parts, 1 to {VMDK_EXTENT_COUNT_MAX} expected")
    return VmdkDescriptor(tuple(extents))


def is_plain_name(name: str) -> bool:
    """Return whether ``name`` is the name of a file, without a folder, and harmless in a descriptor."""
    return re.fullmatch(r"[^/\\:\"\x00-\x1f\x7f]+", name) is not None and name not in {".", ".."}


_VMDK_EXTENT: Final = re.compile(
    r'(RW|RDONLY) (?P<count>\d{1,19}) (?P<kind>FLAT|SPARSE|ZERO|VMFS)( "(?P<name>[^"]*)")?( (?P<offset>\d{1,19}))?'
)


def _sectors(digits: str) -> int:
    count = int(digits)
    if count > _SECTOR_COUNT_MAX:
        raise ForeignImageError("a part of this VMDK has an impossible size")
    return count


def _refuse_vmdk_parent(lines: list[str]) -> None:
    for line in lines:
        key, _, value = (part.strip().strip('"').lower() for part in line.partition("="))
        if key == "parentfilenamehint" or (key == "parentcid" and value != "ffffffff"):
            raise _refers("VMDK", "parent disk")


def _refers(name: str, target: str) -> ForeignImageError:
    return ForeignImageError(
        f"this {name} image refers to a {target}, and only a complete image is read: merge it first (qemu-img "
        "convert, or a full clone in the virtual machine manager)"
    )


def truncated() -> ForeignImageError:
    """Return the error for an image that refers to bytes behind its end; its tool would read zeros there."""
    return ForeignImageError("the image ends before its content does: it is truncated; copy it again")


def _qcow2(read: Read, file_bytes: int) -> int:
    head = read(0, 104)
    version = _big(head, 4, 4)
    if len(head) < 72 or version not in {2, 3}:
        raise ForeignImageError(f"qcow version {version} isn't supported, only 2 and 3")
    features = _big(head, 72, 8) if version == 3 else 0
    if _big(head, 8, 8):
        raise _refers("qcow2", "backing file")
    if features & _QCOW2_DATA_FILE:
        raise _refers("qcow2", "data file")
    if _big(head, 32, 4):
        raise ForeignImageError("this qcow2 image is encrypted: decrypt it first (qemu-img convert)")
    if features & _QCOW2_CORRUPT:
        raise ForeignImageError("this qcow2 image is marked as corrupt: run qemu-img check -r all on a copy")
    if features & ~_QCOW2_READABLE:
        raise ForeignImageError("this qcow2 image has features that diskcast doesn't know")
    cluster_bits, l1_count, l1_offset = _big(head, 20, 4), _big(head, 36, 4), _big(head, 40, 8)
    if cluster_bits not in _QCOW2_CLUSTER_BITS or l1_count > _QCOW2_L1_ENTRIES_MAX:
        raise ForeignImageError("this qcow2 image has impossible tables: it is damaged")
    l1_bytes = l1_count * 8
    l1 = read(l1_offset, l1_bytes) if l1_offset + l1_bytes <= file_bytes else b""
    offsets = np.frombuffer(l1, ">u8") & _QCOW2_OFFSET_MASK
    if len(l1) != l1_bytes or (len(offsets) and int(offsets.max()) + (1 << cluster_bits) > file_bytes):
        raise truncated()
    return _big(head, 24, 8)


def _vmdk(read: Read, file_bytes: int) -> int | VmdkDescriptor:
    head = read(0, SECTOR_BYTES)
    if head.startswith(b"# Disk DescriptorFile"):
        if file_bytes > VMDK_DESCRIPTOR_BYTES_MAX:
            raise ForeignImageError("the descriptor of this VMDK is too long")
        return parse_vmdk_descriptor_untrusted(read(0, file_bytes))
    return vmdk_sparse_size_untrusted(read)


def vmdk_sparse_size_untrusted(read: Read) -> int:
    """Return the size of a sparse VMDK file, whole disk or part of one.

    Raises:
        ForeignImageError: as :func:`virtual_size_untrusted`.
    """
    head = read(0, SECTOR_BYTES)
    if not head.startswith(b"KDMV"):
        raise ForeignImageError("VMDK files of old ESX servers (COWD) and damaged ones aren't supported")
    sector_count = _little(head, 12, 8)
    offset_sectors, length_sectors = _little(head, 28, 8), _little(head, 36, 8)
    if not 0 < sector_count <= _SECTOR_COUNT_MAX:
        # QEMU would read such a file's embedded descriptor as a list of other files.
        raise ForeignImageError("this VMDK has an impossible size")
    if length_sectors * SECTOR_BYTES > VMDK_DESCRIPTOR_BYTES_MAX or offset_sectors > _SECTOR_COUNT_MAX:
        raise ForeignImageError("the descriptor of this VMDK is too long")
    if offset_sectors:
        # QEMU reads 20 sectors, whatever the header says.
        length = max(length_sectors, 20) * SECTOR_BYTES
        text = read(offset_sectors * SECTOR_BYTES, length).split(b"\0", 1)[0].decode(errors="replace")
        _refuse_vmdk_parent([line.strip() for line in text.splitlines()])
    return sector_count * SECTOR_BYTES


def _vhd(read: Read, file_bytes: int) -> int:
    footer = read(max(0, file_bytes - VHD_FOOTER_BYTES), VHD_FOOTER_BYTES)
    if len(footer) != VHD_FOOTER_BYTES or not has_vhd_footer(footer):
        raise ForeignImageError("this VHD has no footer: it is truncated or damaged")
    kind = _big(footer, 60, 4)
    if kind == _VHD_DIFFERENCING:
        raise _refers("VHD", "parent disk")
    start = read(0, VHD_FOOTER_BYTES)
    if kind == _VHD_DYNAMIC and start != footer:
        raise ForeignImageError("the two copies of this VHD's footer differ: it is damaged")
    if kind not in {_VHD_FIXED, _VHD_DYNAMIC}:
        raise ForeignImageError(f"VHD files of type {kind} aren't supported")
    return _big(footer, 48, 8)


def _vhdx(read: Read, file_bytes: int) -> int:
    for table_offset in _VHDX_REGION_TABLES:
        table = read(table_offset, 64 * KIB)
        if table.startswith(b"regi"):
            break
    else:
        raise ForeignImageError("this VHDX has no region table: it is damaged")
    regions = {
        table[at : at + 16]: (_little(table, at + 16, 8), _little(table, at + 24, 4))
        for at in _entries(table, 8, 4, 16, 32)
    }
    if _VHDX_METADATA not in regions or _VHDX_BLOCKS not in regions:
        raise ForeignImageError("this VHDX has no metadata: it is damaged")
    size_bytes, block_bytes = _vhdx_metadata(read, regions[_VHDX_METADATA][0])
    table_start, table_bytes = regions[_VHDX_BLOCKS]
    if table_bytes > _VHDX_BLOCKS_BYTES_MAX or table_start + table_bytes > file_bytes:
        raise truncated()
    entries = np.frombuffer(read(table_start, table_bytes), "<u8")
    offsets = entries[entries & 7 == _VHDX_PRESENT] >> np.uint64(20) << np.uint64(20)
    if len(offsets) and int(offsets.max()) + min(block_bytes, size_bytes) > file_bytes:
        raise truncated()
    return size_bytes


def _vhdx_metadata(read: Read, start: int) -> tuple[int, int]:
    """Return the sizes of the disk and of a block."""
    if start > _SECTOR_COUNT_MAX:
        raise ForeignImageError("this VHDX has no metadata: it is damaged")
    table = read(start, 64 * KIB)
    if not table.startswith(b"metadata"):
        raise ForeignImageError("this VHDX has no metadata: it is damaged")
    values: dict[bytes, bytes] = {}
    for at in _entries(table, 10, 2, 32, 32):
        offset, length = _little(table, at + 16, 4), _little(table, at + 20, 4)
        if offset <= MIB and length <= KIB:
            values.setdefault(table[at : at + 16], read(start + offset, length))
    parameters, size = values.get(_VHDX_FILE_PARAMETERS, b""), values.get(_VHDX_DISK_SIZE, b"")
    if len(parameters) < 8 or len(size) < 8:
        raise ForeignImageError("this VHDX has no size: it is damaged")
    if _little(parameters, 4, 4) & _VHDX_HAS_PARENT:
        raise _refers("VHDX", "parent disk")
    return _little(size, 0, 8), _little(parameters, 0, 4)


def _entries(table: bytes, count_at: int, count_bytes: int, first: int, entry_bytes: int) -> range:
    count = min(_little(table, count_at, count_bytes), _VHDX_TABLE_ENTRIES_MAX)
    return range(first, min(first + count * entry_bytes, len(table) - entry_bytes + 1), entry_bytes)


def _vdi(read: Read, file_bytes: int) -> int:
    head = read(0, 512)
    if len(head) < 512:
        raise ForeignImageError("this VDI is truncated")
    if _little(head, 76, 4) not in {_VDI_DYNAMIC, _VDI_FIXED} or any(head[424:456]):
        raise _refers("VDI", "parent disk")
    if _little(head, 344, 4) > file_bytes:
        raise truncated()
    return _little(head, 368, 8)


def _big(data: bytes, offset: int, length: int) -> int:
    return int.from_bytes(data[offset : offset + length], "big")


def _little(data: bytes, offset: int, length: int) -> int:
    return int.from_bytes(data[offset : offset + length], "little")


_READERS: Final[dict[ForeignFormat, Callable[[Read, int], int | VmdkDescriptor]]] = {
    ForeignFormat.QCOW2: _qcow2,
    ForeignFormat.VMDK: _vmdk,
    ForeignFormat.VHD: _vhd,
    ForeignFormat.VHDX: _vhdx,
    ForeignFormat.VDI: _vdi,
}
