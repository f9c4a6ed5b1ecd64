"""Tests of image directories: what they describe, and names and links that would lead out of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protocol.constants import MIB
from protocol.errors import ForeignImageError, SourceError
from sender.imaging.foreign.clonezilla import describe_clonezilla_untrusted
from sender.imaging.foreign.disk_assembly import (
    AssembledDisk,
    ContentKind,
    DiskDescription,
    PartitionFiles,
    SwapArea,
    assemble_disk,
)
from sender.imaging.foreign.fog import describe_fog_untrusted
from sender.imaging.foreign.image_directory import ImageDirectory
from sender.imaging.foreign.partclone_sources import open_directory_stream
from sender.imaging.foreign.split_files import ordered_pieces
from sender.imaging.foreign.spool import Spool
from tests.support.disks.partclone_files import build_partclone

UUID = "6f0d9a86-4c41-4f0f-9d3c-6f2a0c8a5e11"
DUMP = """label: dos
label-id: 0x00112233
device: /dev/sda
unit: sectors

/dev/sda1 : start=        2048, size=        2048, type=83
/dev/sda2 : start=        4096, size=        4096, type=5
/dev/sda5 : start=        6144, size=        1024, type=82
"""
BLOCKS = [os.urandom(4096) if index % 3 else b"" for index in range(256)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a directory with what both programs save, except the table and their own names."""
    path = tmp_path / "image"
    path.mkdir()
    return path


@pytest.fixture
def clonezilla(folder: Path) -> Path:
    (folder / "disk").write_text("sda\n")
    (folder / "parts").write_text("sda1\n")
    (folder / "sda-pt.sf").write_text(DUMP)
    (folder / "sda-mbr").write_bytes(b"boot".ljust(512, b"\0"))
    (folder / "sda1.ext4-ptcl-img.uncomp").write_bytes(build_partclone(BLOCKS))
    (folder / "swappt-sda5.info").write_text(f'UUID="{UUID}"\nLABEL=""\n')
    return folder


@pytest.fixture
def fog(folder: Path) -> Path:
    (folder / "d1.partitions").write_text(DUMP)
    (folder / "d1.mbr").write_bytes(b"boot".ljust(MIB, b"\xee"))
    (folder / "d1p1.img").write_bytes(build_partclone(BLOCKS, checksum=False))
    (folder / "d1p2.ebr").touch()
    (folder / "d1.original.swapuuids").write_text(f"5 {UUID}\n")
    return folder


def described_clonezilla(path: Path) -> DiskDescription:
    with ImageDirectory(path) as directory:
        return describe_clonezilla_untrusted(directory)


def described_fog(path: Path) -> DiskDescription:
    with ImageDirectory(path) as directory:
        return describe_fog_untrusted(directory)


def assembled(path: Path, disk: DiskDescription, folder: Path) -> tuple[AssembledDisk, bytes]:
    with ImageDirectory(path) as directory, Spool(folder, 64 * MIB) as spool:
        result = assemble_disk(
            disk, spool, lambda names: open_directory_stream(directory, names), lambda *_: None
        )
        return result, os.pread(spool.fd, spool.raw_bytes, 0)


def test_a_clonezilla_directory_is_described(clonezilla: Path) -> None:
    disk = described_clonezilla(clonezilla)
    assert disk.contents == (PartitionFiles(1, ContentKind.PARTCLONE, ("sda1.ext4-ptcl-img.uncomp",)),)
    assert disk.swaps == (SwapArea(5, UUID),)
    assert disk.table.disk_bytes == 4 * MIB


def test_a_fog_directory_is_described(fog: Path) -> None:
    disk = described_fog(fog)
    assert disk.contents == (PartitionFiles(1, ContentKind.PARTCLONE, ("d1p1.img",)),)
    assert disk.swaps == (SwapArea(5, UUID),)


def test_a_disk_is_assembled_with_its_unused_ranges(clonezilla: Path, tmp_path: Path) -> None:
    result, raw = assembled(clonezilla, described_clonezilla(clonezilla), tmp_path)
    assert raw[MIB : 2 * MIB] == b"".join(block.ljust(4096, b"\0") for block in BLOCKS)
    assert raw[:4] == b"boot"
    unused = {(start, stop) for start, stop in result.unused.tolist()}
    assert (MIB, MIB + 4096) in unused
    assert (3 * MIB + 4096, 3 * MIB + MIB // 2) in unused, "a swap area behind its header"
    assert len(unused) == sum(not block for block in BLOCKS) + 1


def test_a_raw_partition_is_copied_and_must_be_complete(clonezilla: Path, tmp_path: Path) -> None:
    (clonezilla / "sda1.ext4-ptcl-img.uncomp").unlink()
    content = os.urandom(MIB)
    for index in range(4):
        (clonezilla / f"sda1.dd-img.a{'abcd'[index]}").write_bytes(content[index << 18 : index + 1 << 18])
    (clonezilla / "sda1.dd-img.info").write_text("partition=BSD_slice\n")
    result, raw = assembled(clonezilla, described_clonezilla(clonezilla), tmp_path)
    assert raw[MIB : 2 * MIB] == content
    assert result.unchecked == (1,)
    (clonezilla / "sda1.dd-img.ad").write_bytes(b"short")
    with pytest.raises(ForeignImageError, match="truncated"):
        assembled(clonezilla, described_clonezilla(clonezilla), tmp_path)
    (clonezilla / "sda1.dd-img.ad").write_bytes(content)
    with pytest.raises(ForeignImageError, match="more data than partition 1"):
        assembled(clonezilla, described_clonezilla(clonezilla), tmp_path)


def test_a_filesystem_larger_than_its_partition_is_refused(clonezilla: Path, tmp_path: Path) -> None:
    (clonezilla / "sda1.ext4-ptcl-img.uncomp").write_bytes(build_partclone([*BLOCKS, b""]))
    with pytest.raises(ForeignImageError, match="different images are mixed"):
        assembled(clonezilla, described_clonezilla(clonezilla), tmp_path)


# -- names and links --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "", ".", "..", "a\0b"])
def test_a_name_outside_the_directory_is_refused(clonezilla: Path, name: str) -> None:
    with ImageDirectory(clonezilla) as directory, pytest.raises(ForeignImageError, match="isn't a file name"):
        directory.open(name)


@pytest.mark.parametrize("file", ["sda-pt.sf", "sda-mbr", "disk", "parts", "swappt-sda5.info"])
def test_links_are_refused(clonezilla: Path, tmp_path: Path, file: str) -> None:
    (tmp_path / "other").write_bytes((clonezilla / file).read_bytes())
    (clonezilla / file).unlink()
    (clonezilla / file).symlink_to(tmp_path / "other")
    with pytest.raises(ForeignImageError, match=f"{file}: not a readable regular file"):
        described_clonezilla(clonezilla)


def test_a_link_or_pipe_as_an_image_is_refused(clonezilla: Path, tmp_path: Path) -> None:
    image = clonezilla / "sda1.ext4-ptcl-img.uncomp"
    image.rename(tmp_path / "other")
    image.symlink_to(tmp_path / "other")
    with pytest.raises(ForeignImageError, match="regular file"):
        assembled(clonezilla, described_clonezilla(clonezilla), tmp_path)
    image.unlink()
    os.mkfifo(image)
    with pytest.raises(ForeignImageError, match="regular file"):
        assembled(clonezilla, described_clonezilla(clonezilla), tmp_path)


@pytest.mark.parametrize("text", ["../sda", "/dev/sda", "sda/../../x", "sda sdb", "", "s\u0435da", "-sda"])
def test_a_disk_with_another_name_is_refused(clonezilla: Path, text: str) -> None:
    (clonezilla / "disk").write_text(text)
    with pytest.raises(ForeignImageError, match="disk"):
        described_clonezilla(clonezilla)


@pytest.mark.parametrize("text", ["../sda1", "sda1 sda1", "sdb1", "sda", "sda1/../x", "sda9999"])
def test_partitions_of_another_name_are_refused(clonezilla: Path, text: str) -> None:
    (clonezilla / "parts").write_text(text)
    with pytest.raises(ForeignImageError, match="parts"):
        described_clonezilla(clonezilla)


def test_a_partition_that_the_table_lacks_is_refused(clonezilla: Path, tmp_path: Path) -> None:
    (clonezilla / "parts").write_text("sda7")
    (clonezilla / "sda1.ext4-ptcl-img.uncomp").rename(clonezilla / "sda7.ext4-ptcl-img.uncomp")
    with pytest.raises(ForeignImageError, match="partition 7"):
        assembled(clonezilla, described_clonezilla(clonezilla), tmp_path)


def test_features_that_are_not_supported_are_named(clonezilla: Path) -> None:
    for file, feature in (("lvm_vg_dev.list", "LVM"), ("ecryptfs.info", "encryption")):
        (clonezilla / file).write_text("vg /dev/sda2\n")
        with pytest.raises(ForeignImageError, match=feature):
            described_clonezilla(clonezilla)
        (clonezilla / file).unlink()
    (clonezilla / "sda1.ext4-ptcl-img.uncomp").rename(clonezilla / "sda1.ntfs-img.aa")
    with pytest.raises(ForeignImageError, match="ntfsclone"):
        described_clonezilla(clonezilla)


@pytest.mark.parametrize(
    ("file", "feature"), [("d1p2.lvm", "LVM"), ("d2.mbr", "several disks"), ("sys.img.000", r"FOG 0\.x")]
)
def test_features_of_fog_that_are_not_supported_are_named(fog: Path, file: str, feature: str) -> None:
    (fog / file).touch()
    with pytest.raises(ForeignImageError, match=feature):
        described_fog(fog)


def test_a_missing_fog_partition_is_refused(fog: Path) -> None:
    (fog / "d1p1.img").unlink()
    with pytest.raises(ForeignImageError, match=r"d1p1\.img is missing"):
        described_fog(fog)
    (fog / "d1.partitions").unlink()
    with pytest.raises(ForeignImageError, match="partition table is missing"):
        described_fog(fog)


def test_an_oversized_text_is_refused(clonezilla: Path) -> None:
    with (clonezilla / "sda-pt.sf").open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(ForeignImageError, match="too many for such a file"):
        described_clonezilla(clonezilla)


def test_a_missing_directory_is_an_error_of_the_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="can't open"):
        ImageDirectory(tmp_path / "missing")


# -- pieces -----------------------------------------------------------------------------------------------------


def test_pieces_are_ordered_by_their_suffix() -> None:
    letters = [f"x.{first}{second}" for first in "ab" for second in "abcdefghijklmnopqrstuvwxyz"]
    assert ordered_pieces("x", reversed(letters), "image") == tuple(letters)
    numbers = [f"x.{number:03d}" for number in range(120)]
    assert ordered_pieces("x", reversed(numbers), "image") == tuple(numbers)
    assert ordered_pieces("x", ["x", "xy", "x.info"], "image") == ("x",)
    assert ordered_pieces("x", ["y"], "image") == ()


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["x.aa", "x.ac"], r"x\.ab is missing"),
        (["x.001", "x.002"], r"x\.000 is missing"),
        (["x", "x.aa"], "both there"),
        (["x.aa", "x.000"], "both there"),
    ],
)
def test_incomplete_or_ambiguous_pieces_are_refused(names: list[str], problem: str) -> None:
    with pytest.raises(ForeignImageError, match=problem):
        ordered_pieces("x", names, "image")
