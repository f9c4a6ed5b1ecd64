"""Growing filesystems: their claimed size, and kernel drivers."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from protocol.constants import MIB
from receiver.disk.fit.filesystem import check_size, filesystem_bytes_untrusted, has_driver
from receiver.disk.fit.programs import (
    StepError,
)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "ntfs", "vfat"])
@pytest.mark.parametrize("content", [b"", bytes(128 * 1024), b"\xff" * 128 * 1024])
def test_a_size_is_read_from_any_bytes(kind: str, content: bytes) -> None:
    assert filesystem_bytes_untrusted(lambda at, n: content[at : at + n], kind) >= 0


def test_a_filesystem_that_does_not_fill_its_place_is_not_grown() -> None:
    block = bytearray(2048)
    struct.pack_into("<I", block, 1024 + 4, 10 * 1024)  # blocks of 1 KiB
    with pytest.raises(StepError, match=r"has 10\.0 MiB instead of 100\.0 MiB"):
        check_size(lambda at, n: bytes(block[at : at + n]), "ext4", 100 * MIB)
    assert check_size(lambda at, n: bytes(block[at : at + n]), "ext4", 11 * MIB) == 10 * MIB


def test_a_driver_is_found_in_the_kernel_or_among_its_modules(tmp_path: Path) -> None:
    proc, modules = tmp_path / "proc", tmp_path / "modules"
    (proc / "sys/kernel").mkdir(parents=True)
    (proc / "sys/kernel/osrelease").write_text("6.1.0\n")
    (proc / "filesystems").write_text("nodev\tsysfs\n\text4\n")
    assert has_driver("ext4", proc=proc, modules=modules)
    assert not has_driver("xfs", proc=proc, modules=modules)
    (modules / "6.1.0").mkdir(parents=True)
    (modules / "6.1.0/modules.dep").write_text("kernel/fs/xfs/xfs.ko.xz: kernel/lib/libcrc32c.ko.xz\n")
    (modules / "6.1.0/modules.builtin").write_text("kernel/fs/btrfs/btrfs.ko\n")
    assert has_driver("xfs", proc=proc, modules=modules)
    assert has_driver("btrfs", proc=proc, modules=modules)
    assert not has_driver("fs", proc=proc, modules=modules)
