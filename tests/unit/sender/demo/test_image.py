"""The demo's image is a disk that other tools recognise, with or without e2fsprogs on the machine."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from protocol.constants import MIB
from protocol.errors import ImageDamagedError, SourceError
from sender.demo.image import (
    CONTENT_FRACTION,
    FILE_BYTES_MAX,
    IMAGE_BYTES_MIN,
    SECTOR_BYTES,
    DemoImage,
    DemoPartition,
    default_file_roots,
    find_mke2fs,
    make_demo_image,
    read_partition_table,
    write_partition_table,
)

needs_mke2fs = pytest.mark.skipif(find_mke2fs() is None, reason="e2fsprogs isn't installed")


def _disk_with_table(path: Path, disk_bytes: int) -> DemoPartition:
    partition = DemoPartition("lab", MIB, disk_bytes - 2 * MIB)
    with path.open("wb") as disk:
        disk.truncate(disk_bytes)
        write_partition_table(disk.fileno(), disk_bytes, partition)
    return partition


def test_partition_table_is_read_back_as_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    partition = _disk_with_table(disk, 64 * MIB)
    assert read_partition_table(disk) == [partition]


@pytest.mark.skipif(
    shutil.which("sfdisk", path="/usr/sbin:/sbin") is None, reason="util-linux's sfdisk isn't installed"
)
def test_another_tool_finds_no_fault_in_the_partition_table(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    _disk_with_table(disk, 64 * MIB)
    sfdisk = shutil.which("sfdisk", path="/usr/sbin:/sbin")
    assert sfdisk
    report = subprocess.run([sfdisk, "--verify", disk], capture_output=True, text=True, check=True)
    assert "No errors detected" in report.stdout
    assert report.stderr == ""


@pytest.mark.parametrize(
    "damaged_byte",
    [SECTOR_BYTES, SECTOR_BYTES + 60, 2 * SECTOR_BYTES + 40, -SECTOR_BYTES + 60, -33 * SECTOR_BYTES],
    ids=["signature", "primary header", "primary entries", "backup header", "backup entries"],
)
def test_damage_to_either_copy_of_the_partition_table_is_found(tmp_path: Path, damaged_byte: int) -> None:
    disk = tmp_path / "disk.img"
    _disk_with_table(disk, 64 * MIB)
    with disk.open("r+b") as file:
        file.seek(damaged_byte, os.SEEK_END if damaged_byte < 0 else os.SEEK_SET)
        octet = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([octet ^ 0x10]))
    with pytest.raises(ImageDamagedError):
        read_partition_table(disk)


def test_a_disk_of_zeros_has_no_partition_table(tmp_path: Path) -> None:
    disk = tmp_path / "empty.img"
    disk.write_bytes(bytes(MIB))
    with pytest.raises(ImageDamagedError, match="no partition table"):
        read_partition_table(disk)


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    """Two trees with 300 files of all sizes, and files that can't be copied."""
    rng = random.Random(17)
    trees = [tmp_path / "tree-0", tmp_path / "tree-1"]
    for number in range(300):
        folder = trees[number % 2] / f"folder-{number // 40}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{number}").write_bytes(rng.randbytes(rng.choice([1, 700, 5000, 30_000])))
    (trees[0] / "empty").touch()
    (trees[0] / "link").symlink_to("folder-0/file-0")
    os.mkfifo(trees[1] / "pipe")
    with (trees[1] / "huge").open("wb") as huge:
        huge.truncate(FILE_BYTES_MAX + 1)
    return trees


def _assert_sound_filesystem(image: DemoImage, tmp_path: Path) -> None:
    [partition] = read_partition_table(image.path)
    filesystem = tmp_path / "partition.img"
    with image.path.open("rb") as disk:
        disk.seek(partition.start_bytes)
        filesystem.write_bytes(disk.read(partition.size_bytes))
    e2fsck = shutil.which("e2fsck", path="/usr/sbin:/sbin")
    assert e2fsck
    check = subprocess.run([e2fsck, "-f", "-n", filesystem], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout


@needs_mke2fs
def test_image_holds_a_sound_filesystem_with_real_files_and_holes(tmp_path: Path, roots: list[Path]) -> None:
    image = make_demo_image(
        tmp_path / "disk.img", IMAGE_BYTES_MIN, tmp_path, mke2fs=find_mke2fs(), file_roots=roots
    )
    assert image.filesystem == "ext4"
    assert image.raw_bytes == image.path.stat().st_size == IMAGE_BYTES_MIN
    assert image.path.stat().st_blocks * 512 < image.raw_bytes // 2
    assert image.file_count == 300, "all files, without the empty one, the link, the pipe and the huge one"
    _assert_sound_filesystem(image, tmp_path)
    assert not (tmp_path / "stage").exists()


@needs_mke2fs
def test_a_host_with_few_small_files_gets_a_sound_filesystem_too(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "only").write_text("one line\n")
    roots = [tmp_path / "missing", tmp_path / "tree"]
    image = make_demo_image(
        tmp_path / "disk.img", IMAGE_BYTES_MIN, tmp_path, mke2fs=find_mke2fs(), file_roots=roots
    )
    assert (image.file_count, image.content_bytes) == (1, 9)
    _assert_sound_filesystem(image, tmp_path)


def test_a_host_without_files_is_an_error_that_names_the_directories(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with pytest.raises(SourceError, match=f"no readable files .* below {tmp_path}/tree"):
        make_demo_image(
            tmp_path / "disk.img", IMAGE_BYTES_MIN, tmp_path, mke2fs=None, file_roots=[tmp_path / "tree"]
        )


def test_more_files_than_the_image_can_hold_are_left_out(tmp_path: Path, roots: list[Path]) -> None:
    """The demo of a host with full directories must not fail for want of space in its own filesystem."""
    for number in range(40):
        (roots[0] / f"more-{number}").write_bytes(bytes(MIB))
    image = make_demo_image(
        tmp_path / "disk.img", IMAGE_BYTES_MIN, tmp_path, mke2fs=find_mke2fs(), file_roots=roots
    )
    assert image.content_bytes < IMAGE_BYTES_MIN * CONTENT_FRACTION
    assert image.file_count > 150, "the second directory gets its share"


def test_without_mke2fs_the_partition_holds_a_tar_stream_and_says_so(
    tmp_path: Path, roots: list[Path]
) -> None:
    image = make_demo_image(tmp_path / "disk.img", IMAGE_BYTES_MIN, tmp_path, mke2fs=None, file_roots=roots)
    assert image.filesystem == "tar stream"
    assert image.file_count == 300
    [partition] = read_partition_table(image.path)
    with image.path.open("rb") as disk:
        disk.seek(partition.start_bytes)
        with tarfile.open(fileobj=disk, mode="r|") as archive:
            sizes = [member.size for member in archive]
    assert len(sizes) == image.file_count
    assert sum(sizes) == image.content_bytes


def test_the_default_directories_exist() -> None:
    assert any(root.is_dir() for root in default_file_roots())
