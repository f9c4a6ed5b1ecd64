"""Golden images with one partition that has a filesystem, for tests of patches of that filesystem."""

from __future__ import annotations

import functools
import operator
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

from protocol.constants import MIB
from protocol.disk.disk_layout import layout_of
from protocol.image.manifest import Manifest
from protocol.patch.machine_patch import MachinePatch
from sender.imaging.image_file import ImageFile
from sender.imaging.pack import PackOptions, pack_image
from sender.imaging.verified_blocks import VerifiedBlocks
from tests.support.patches import contents_of

GUIDS = ("--disk-guid", "6F0D8F5E-9B7C-4F53-8E15-3A6E4E0C1D11")

_NONE = 0xFFFFFFFF
"""No cell of a registry hive."""

GOLDEN_TIME_S = 1_700_000_000
"""Time of the last write of a golden ext4 filesystem."""


def make_image_of(folder: Path, filesystem: Path) -> Path:
    """Return the image of a disk whose partition 1 is ``filesystem``."""
    disk = folder / "golden.raw"
    size_bytes = filesystem.stat().st_size
    with disk.open("wb") as file:
        file.truncate(size_bytes + 2 * MIB)
    sectors = size_bytes // 512
    guids = (*GUIDS, "--partition-guid", "1:77777777-1111-4111-8111-111111111111")
    subprocess.run(["sgdisk", f"--new=1:2048:+{sectors}", *guids, disk], capture_output=True, check=True)
    copy = ("dd", f"if={filesystem}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
    subprocess.run(copy, check=True)
    return pack_image(disk, folder / "golden.dci", PackOptions()).path


def make_ext4(folder: Path, size_bytes: int = 64 * MIB, *, features: str = "metadata_csum") -> Path:
    """Return a filesystem with the files of a golden Debian that matter."""
    root = folder / "root"
    (root / "etc").mkdir(parents=True)
    (root / "home/teacher").mkdir(parents=True)
    (root / "etc/hostname").write_text("golden\n")
    (root / "etc/hosts").write_text("127.0.0.1\tlocalhost\n127.0.1.1\tgolden\n::1\tlocalhost\n")
    (root / "etc/machine-id").write_text("")
    (root / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/bash\nteacher:x:1000:1001::/home/teacher:/bin/bash\n"
    )
    (root / "etc/group").write_text("root:x:0:\nteacher:x:1001:\nshadow:x:42:\n")
    (root / "etc/link").symlink_to("hostname")
    filesystem = folder / "filesystem.ext4"
    with filesystem.open("wb") as file:
        file.truncate(size_bytes)
    command = ("mkfs.ext4", "-q", "-O", features, "-d", root, filesystem)
    subprocess.run(command, check=True, env={**os.environ, "E2FSPROGS_FAKE_TIME": str(GOLDEN_TIME_S)})
    return filesystem


def make_fat(folder: Path, fill: Callable[[Path], None] = lambda _: None) -> Path:
    """Return a FAT filesystem with the configuration of a board."""
    filesystem = folder / "filesystem.fat"
    with filesystem.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mkfs.fat", "-F", "32", "-i", "12345678", filesystem], capture_output=True, check=True)
    config = folder / "config.txt"
    config.write_text("arm_64bit=1\n")
    subprocess.run(["mcopy", "-i", filesystem, config, "::config.txt"], check=True)
    fill(filesystem)
    return filesystem


def patched_partition(image_path: Path, patch: MachinePatch, result: Path) -> Path:
    """Write the image's partition 1 with a patch into a file."""
    blocks = contents_of(patch)
    with ImageFile.open(image_path) as image:
        reader = VerifiedBlocks(image)
        start, size = _partition(image.manifest)
        block_bytes = image.manifest.block_bytes
        content = b"".join(
            bytes(blocks.get(block, b"") or reader.read(block)) for block in range(image.manifest.block_count)
        )
        assert all(start <= block * block_bytes < start + size for block in blocks)
    result.write_bytes(content[start : start + size])
    return result


def _partition(manifest: Manifest) -> tuple[int, int]:
    layout = layout_of(manifest.metadata)
    assert layout is not None
    return layout.partitions[0].start_bytes, layout.partitions[0].size_bytes


def make_windows(folder: Path) -> Path:
    """Return an NTFS filesystem with the registry hive SYSTEM of a golden Windows."""
    filesystem, mount, hive = folder / "filesystem.ntfs", folder / "windows", folder / "SYSTEM"
    with filesystem.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mkntfs", "-F", "-q", "-f", filesystem], capture_output=True, check=True)
    make_system_hive(hive)
    mount.mkdir()
    subprocess.run(["ntfs-3g", filesystem, mount], check=True)
    try:
        (mount / "Windows/System32/config").mkdir(parents=True)
        (mount / "Windows/Panther").mkdir()
        (mount / "Windows/System32/config/SYSTEM").write_bytes(hive.read_bytes())
        (mount / "Windows/win.ini").write_text("[golden]\n")
    finally:
        subprocess.run(["umount", mount], check=True)
    return filesystem


def make_system_hive(path: Path) -> None:
    """Make a hive with an empty root, and let hivexregedit add the keys of the computer's name."""
    root_cell, key_cell = 0x20, 0x78
    key = struct.pack(
        "<2sHQIIIIIIIIII", b"nk", 0x2C, 0, 0, _NONE, 0, 0, _NONE, _NONE, 0, _NONE, key_cell, _NONE
    )
    key += bytes(20) + struct.pack("<HH", 4, 0) + b"ROOT"
    security = struct.pack("<BBHIIII", 1, 0, 0x8000, 0, 0, 0, 0)
    owner = struct.pack("<2sHIIII", b"sk", 0, key_cell, key_cell, 1, len(security)) + security
    cells = b"".join(
        struct.pack("<i", -size) + data.ljust(size - 4, b"\0")
        for data, size in ((key, key_cell - root_cell), (owner, 48))
    )
    free = 4096 - 32 - len(cells)
    page = (
        struct.pack("<4sII8xQI", b"hbin", 0, 4096, 0, 0) + cells + struct.pack("<i", free) + bytes(free - 4)
    )
    header = struct.pack("<4sIIQIIIIIII", b"regf", 1, 1, 0, 1, 3, 0, 1, root_cell, 4096, 1).ljust(508, b"\0")
    checksum = functools.reduce(operator.xor, struct.unpack("<127I", header))
    path.write_bytes((header + struct.pack("<I", checksum)).ljust(4096, b"\0") + page)
    changes = path.with_suffix(".reg")
    keys = r"""Windows Registry Editor Version 5.00

[\Select]
"Current"=dword:00000002

[\ControlSet002]
[\ControlSet002\Control]
[\ControlSet002\Control\ComputerName]
[\ControlSet002\Control\ComputerName\ComputerName]
"ComputerName"="GOLDEN"
[\ControlSet002\Services]
[\ControlSet002\Services\Tcpip]
[\ControlSet002\Services\Tcpip\Parameters]
"Hostname"="golden"
"NV Hostname"="golden"
"DataBasePath"="kept"
"""
    changes.write_text(keys.replace("\n[", "\n\n["))
    subprocess.run(["hivexregedit", "--merge", path, changes], check=True)
