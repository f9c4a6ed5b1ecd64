"""Formats are detected by content: a wrong name, or a raw disk that looks like an image, misleads nobody."""

from __future__ import annotations

import bz2
import gzip
import lzma
import subprocess
from pathlib import Path

import pytest
import zstandard

from protocol.errors import ForeignImageError, SourceError
from sender.imaging.foreign.sniff import ForeignFormat, sniff_format

DISK = bytes(1 << 20)
QEMU_FORMATS = {
    "qcow2": ForeignFormat.QCOW2,
    "vmdk": ForeignFormat.VMDK,
    "vpc": ForeignFormat.VHD,
    "vhdx": ForeignFormat.VHDX,
    "vdi": ForeignFormat.VDI,
}
COMPRESSORS = {
    ForeignFormat.GZIP: gzip.compress,
    ForeignFormat.XZ: lzma.compress,
    ForeignFormat.BZIP2: bz2.compress,
    ForeignFormat.ZSTD: zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize(("driver", "expected"), QEMU_FORMATS.items())
def test_virtual_disks_are_detected_under_any_name(
    tmp_path: Path, driver: str, expected: ForeignFormat
) -> None:
    path = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "create", "-q", "-f", driver, path, "64M"], check=True)
    assert sniff_format(path) is expected


@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentSparse", "streamOptimized"])
def test_vmdk_of_every_subformat_is_detected(tmp_path: Path, subformat: str) -> None:
    path = tmp_path / "disk.vmdk"
    options = ["-o", f"subformat={subformat}"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", *options, path, "64M"], check=True)
    assert sniff_format(path) is ForeignFormat.VMDK


def test_a_fixed_vhd_is_detected_by_its_footer_and_a_disk_that_mentions_one_is_raw(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    options = ["-o", "subformat=fixed"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "vpc", *options, path, "4M"], check=True)
    assert sniff_format(path) is ForeignFormat.VHD
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    assert sniff_format(path) is ForeignFormat.RAW


@pytest.mark.parametrize("expected", COMPRESSORS)
def test_compressed_disks_are_detected(tmp_path: Path, expected: ForeignFormat) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(COMPRESSORS[expected](DISK))
    assert sniff_format(path) is expected


@pytest.mark.parametrize("content", [b"", b"BZh", b"BZh9 is no bzip2", b"QFI", DISK])
def test_anything_else_is_raw(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(content)
    assert sniff_format(path) is ForeignFormat.RAW


@pytest.mark.parametrize(
    ("magic", "advice"),
    [(b"PK\x03\x04", "unpack"), (b"EVF\t\r\n\xff\x00", "ewfexport"), (b"\x89DCI\r\n\x1a\n", "already")],
)
def test_an_archive_is_no_disk(tmp_path: Path, magic: bytes, advice: str) -> None:
    """Otherwise a room would be imaged with the bytes of a zip file."""
    path = tmp_path / "disk.raw"
    path.write_bytes(magic + bytes(100))
    with pytest.raises(ForeignImageError, match=advice):
        sniff_format(path)


def test_folders_are_told_apart_by_their_files(tmp_path: Path) -> None:
    for name, files in (("clonezilla", ("disk", "parts", "sda-pt.sf")), ("fog", ("d1.mbr", "d1p1.img"))):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
        assert sniff_format(tmp_path / name) is ForeignFormat(name)
    (tmp_path / "other").mkdir()
    with pytest.raises(SourceError, match="directory"):
        sniff_format(tmp_path / "other")


def test_a_missing_file_is_an_error_of_the_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        sniff_format(tmp_path / "missing")
