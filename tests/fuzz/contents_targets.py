"""Fuzz targets of filesystems in images, of which the library shows labels and operating systems."""

from __future__ import annotations

import random
import struct

from protocol.disk.disk_reads import Read
from protocol.disk.filesystem_magic import FILESYSTEMS
from protocol.disk.partition_table import DiskLayout, Partition, TableKind
from sender.imaging.contents.ext_files import ExtError, ExtFiles
from sender.imaging.contents.filesystem_labels import read_label_untrusted
from sender.imaging.contents.generalisation import has_windows_untrusted
from sender.imaging.contents.image_contents import read_system_untrusted, system_name_untrusted
from sender.imaging.contents.image_requirements import driver_aliases_untrusted, read_requirements_untrusted
from tests.fuzz.target import Target
from tests.support.disks.ext_image import make_ext_image
from tests.support.disks.fat import fat_filesystem
from tests.support.disks.kernel_modules import ALIAS, BUILTIN, DEPENDENCIES

OS_RELEASE = b'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'
READ_BYTES_MAX = 16 << 20


def _reader(data: bytes) -> Read:
    left = READ_BYTES_MAX

    def read(offset: int, length: int) -> bytes:
        nonlocal left
        assert length <= 128 << 10
        left -= length
        assert left > 0, "a small filesystem makes its reader read without end"
        return data[offset : offset + length] if offset >= 0 else b""

    return read


def _read_labels(data: bytes) -> None:
    for filesystem in FILESYSTEMS:
        found = read_label_untrusted(filesystem, _reader(data))
        assert found.label.isprintable()
        assert len(found.label) <= 256
        assert len(found.uuid) <= 36


def _read_system(data: bytes) -> None:
    assert len(read_system_untrusted("ext4", _reader(data))) <= 100


def _read_file(data: bytes) -> None:
    files = ExtFiles.open_untrusted(_reader(data))
    for path in ("/etc/link", "/etc/../etc/os-release", "/etc/missing"):
        content = files.read_file_untrusted(path, 1000)
        entry = files.entry_untrusted(path)
        assert content is None or entry is not None
        assert content is None or len(content) <= 1000


def _read_requirements(data: bytes) -> None:
    assert read_requirements_untrusted("ext4", _reader(data)).architecture.isascii()
    assert len(ExtFiles.open_untrusted(_reader(data)).folder_names_untrusted("/etc", 2)) <= 2


def _read_loaders(data: bytes) -> None:
    assert read_requirements_untrusted("vfat", _reader(data)).architecture.isascii()


def _read_aliases(data: bytes) -> None:
    alias, dependencies, builtin = [*data.split(b"\1", 2), b"", b""][:3]
    found = driver_aliases_untrusted(alias, dependencies, builtin)
    assert found is None or all(pattern.isprintable() for pattern in found)


def _fat_seeds() -> list[bytes]:
    return [bytes(fat_filesystem(16)), bytes(fat_filesystem(32))]


def _find_windows(data: bytes) -> None:
    parts = (
        Partition(1, 0, 4096, "0x7", filesystem="ntfs"),
        Partition(2, 4096, 4096, "0x83", filesystem="ext4"),
    )
    for table in (TableKind.MBR, TableKind.GPT):
        assert has_windows_untrusted(DiskLayout(table, 512, parts), _reader(data)) in (False, True)


def _ext_seeds() -> list[bytes]:
    return [make_ext_image(OS_RELEASE, extents=True), make_ext_image(OS_RELEASE, extents=False)]


def _label_seeds() -> list[bytes]:
    pick = random.Random(1)
    ntfs = bytearray(8192)
    struct.pack_into("<H", ntfs, 11, 512)
    ntfs[13] = 8
    struct.pack_into("<Qb", ntfs, 48, 1, 0)
    struct.pack_into("<b", ntfs, 64, -10)
    ntfs[7168:7172] = b"FILE"
    struct.pack_into("<H", ntfs, 7168 + 20, 56)
    struct.pack_into("<IIBBHHHIH", ntfs, 7168 + 56, 0x60, 40, 0, 0, 0, 0, 0, 12, 24)
    ntfs[7168 + 80 : 7168 + 92] = "golden".encode("utf-16-le")
    return [*_ext_seeds(), bytes(ntfs), pick.randbytes(4096), b""]


TARGETS = (
    Target("filesystem labels", _read_labels, (), _label_seeds, share=5),
    Target("system of an image", _read_system, (ExtError,), _ext_seeds, share=5),
    Target("files of ext", _read_file, (ExtError,), _ext_seeds, share=5),
    Target("requirements of an image", _read_requirements, (ExtError,), _ext_seeds, share=5),
    Target("loaders of an image", _read_loaders, (), _fat_seeds, share=2),
    Target("drivers of a kernel", _read_aliases, (), lambda: [b"\1".join((ALIAS, DEPENDENCIES, BUILTIN))]),
    Target("Windows on a disk", _find_windows, (), _label_seeds),
    Target("os-release", system_name_untrusted, (), lambda: [OS_RELEASE, b"PRETTY_NAME=a\n"]),
)
