"""The format of a foreign image, by its magic bytes and never by its name alone.

A guest that writes its own first sectors can make a raw disk look like any of these formats. Therefore the readers
refuse every format's references to other files, and the operator can name the format.
"""

from __future__ import annotations

import enum
import itertools
import stat
from pathlib import Path
from typing import Final

from protocol.errors import ForeignImageError, SourceError


class ForeignFormat(enum.StrEnum):
    """Formats that ``pack`` reads."""

    RAW = "raw"
    """The bytes of a disk, in a file or a block device."""
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VHD = "vhd"
    VHDX = "vhdx"
    VDI = "vdi"
    GZIP = "gzip"
    """A raw disk, compressed; as the next three."""
    XZ = "xz"
    ZSTD = "zstd"
    BZIP2 = "bzip2"
    CLONEZILLA = "clonezilla"
    """A folder of Clonezilla's."""
    FOG = "fog"
    """A folder of FOG's."""
    PARTCLONE = "partclone"
    """One filesystem, without its disk."""


VIRTUAL_DISK_FORMATS: Final = frozenset(
    {ForeignFormat.QCOW2, ForeignFormat.VMDK, ForeignFormat.VHD, ForeignFormat.VHDX, ForeignFormat.VDI}
)
COMPRESSED_FORMATS: Final = frozenset(
    {ForeignFormat.GZIP, ForeignFormat.XZ, ForeignFormat.ZSTD, ForeignFormat.BZIP2}
)

SNIFFED_BYTES: Final = 4096
VHD_FOOTER_BYTES: Final = 512
FOLDER_ENTRIES_MAX: Final = 10_000
"""Files of an image's folder: 1 TB in Clonezilla's pieces of 4 GB has 250."""

_ZSTD_SKIPPABLE: Final = bytes.fromhex("2a4d18")
_BZIP2_BLOCKS: Final = (bytes.fromhex("314159265359"), bytes.fromhex("177245385090"))
"""Start of the first block, or the end of an empty stream."""
_MAGIC: Final = (
    (0, b"QFI\xfb", ForeignFormat.QCOW2),
    (0, b"KDMV", ForeignFormat.VMDK),
    (0, b"COWD", ForeignFormat.VMDK),
    (0, b"# Disk DescriptorFile", ForeignFormat.VMDK),
    (0, b"conectix", ForeignFormat.VHD),
    (0, b"vhdxfile", ForeignFormat.VHDX),
    (64, bytes.fromhex("7f10dabe"), ForeignFormat.VDI),
    (0, bytes.fromhex("1f8b08"), ForeignFormat.GZIP),
    (0, bytes.fromhex("fd377a585a00"), ForeignFormat.XZ),
    (0, bytes.fromhex("28b52ffd"), ForeignFormat.ZSTD),
    (0, b"partclone-image", ForeignFormat.PARTCLONE),
)
_UNSUPPORTED: Final = (
    (b"EVF\t\r\n\xff\x00", "an EnCase image: convert it with ewfexport"),
    (b"MSWIM\0\0\0", "a Windows image of files (WIM), not of a disk"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive: unpack it first"),
    (b"\x04\x22\x4d\x18", "compressed by lz4: decompress it first"),
    (b"\x89DCI\r\n\x1a\n", "an image of diskcast already"),
)


def sniff_format(path: Path) -> ForeignFormat:
    """Return the format of the image at ``path``; RAW for a block device and for unknown content.

    Raises:
        SourceError: it can't be read.
        ForeignImageError: it is a known kind of file that isn't a disk's content.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return _sniff_folder(path)
        if not stat.S_ISREG(status.st_mode):
            return ForeignFormat.RAW
        with path.open("rb") as file:
            start = file.read(SNIFFED_BYTES)
            file.seek(max(0, status.st_size - VHD_FOOTER_BYTES))
            end = file.read(VHD_FOOTER_BYTES)
    except OSError as error:
        raise SourceError(f"{path}: can't open the source: {error.strerror}") from error
    return _sniff_bytes(path, start, end)


def _sniff_bytes(path: Path, start: bytes, end: bytes) -> ForeignFormat:
    for magic, kind in _UNSUPPORTED:
        if start.startswith(magic):
            raise ForeignImageError(f"{path} is {kind}; if it really is a disk's content, use --format raw")
    for offset, magic, found in _MAGIC:
        if start.startswith(magic, offset):
            return found
    if start[1:4] == _ZSTD_SKIPPABLE and start[0] >> 4 == 5:  # pzstd starts with such a frame
        return ForeignFormat.ZSTD
    if start[:3] == b"BZh" and start[3:4].isdigit() and start[4:10] in _BZIP2_BLOCKS:
        return ForeignFormat.BZIP2
    # A fixed VHD is a raw disk with a footer; the checksum tells a footer from a disk's content.
    if len(end) == VHD_FOOTER_BYTES and has_vhd_footer(end):
        return ForeignFormat.VHD
    return ForeignFormat.RAW


def has_vhd_footer(sector: bytes) -> bool:
    """Return whether ``sector`` is a footer of Microsoft's VHD format with the right checksum."""
    checksum = ~(sum(sector) - sum(sector[64:68])) & 0xFFFFFFFF
    return sector.startswith(b"conectix") and int.from_bytes(sector[64:68]) == checksum


def _sniff_folder(path: Path) -> ForeignFormat:
    names = {entry.name for entry in itertools.islice(path.iterdir(), FOLDER_ENTRIES_MAX)}
    if {"disk", "parts"} <= names:
        return ForeignFormat.CLONEZILLA
    if any(name.startswith(("d1.", "d1p")) for name in names):
        return ForeignFormat.FOG
    raise SourceError(
        f"{path}: the source is a directory, and neither Clonezilla's nor FOG's; name a disk or a disk image file"
    )
