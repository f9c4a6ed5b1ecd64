"""Images of other programs become images of diskcast: qemu-img, which made them, says that the disks are identical."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from protocol.constants import KIB, MIB
from protocol.errors import ForeignImageError
from protocol.image.manifest import BlockKind
from protocol.image.provenance import SourceChecksums, provenance_of
from protocol.packing.source import Source
from sender.imaging.foreign.import_limits import ImportLimits
from sender.imaging.image_file import ImageFile
from sender.imaging.pack import PackOptions, pack_image
from tests.support.disks.foreign_images import COMPRESSORS, QEMU_KINDS, compress_disk, make_virtual_disk
from tests.support.network.lab import LIMIT_S, Program, diskcast, run

BLOCK_BYTES = 64 * KIB
OPTIONS = PackOptions(block_bytes=BLOCK_BYTES)
START_SECTOR = 2048
DISK_BYTES = 20 * MIB


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a disk with a partition table and an ext4 filesystem in which files were deleted."""
    folder = tmp_path_factory.mktemp("disk")
    tree = folder / "tree"
    tree.mkdir()
    rng = np.random.default_rng(1)
    for index in range(4):
        (tree / f"file{index}").write_bytes(rng.bytes(MIB))
    filesystem = folder / "ext4"
    with filesystem.open("wb") as file:
        file.write(rng.bytes(DISK_BYTES - START_SECTOR * 512))  # free space is full of the past
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard", "-d", tree, filesystem], check=True)
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(START_SECTOR * 512)
        file.seek(START_SECTOR * 512)
        file.write(filesystem.read_bytes())
    run("sfdisk", "-q", str(disk), text=f"label: dos\n{START_SECTOR},,83\n")
    filesystem.unlink()
    return disk


def pack(source: Path, output: Path, **options: object) -> Path:
    with Program(
        diskcast("pack", "--no-sign", source, "-o", output, "--block-size", "64KiB", "--json")
    ) as program:
        assert program.wait(LIMIT_S) == 0, program.describe()
    return output


def restored(image: Path, target: Path) -> Path:
    with Program(diskcast("unpack", image, target)) as program:
        assert program.wait(LIMIT_S) == 0, program.describe()
    return target


def kinds(image: Path) -> list[int]:
    with ImageFile.open(image) as opened:
        return [int(kind) for kind in opened.manifest.kind]


@pytest.mark.parametrize("kind", QEMU_KINDS)
def test_a_virtual_disk_is_imported_bit_by_bit(raw: Path, tmp_path: Path, kind: str) -> None:
    foreign = make_virtual_disk(raw, tmp_path / "disk.img", kind)
    before = sorted(path.name for path in tmp_path.iterdir())
    pack_image(foreign, tmp_path / "all.dci", PackOptions(block_bytes=BLOCK_BYTES, every_byte=True))
    target = restored(tmp_path / "all.dci", tmp_path / "target")
    driver = QEMU_KINDS[kind][0]
    compared = run("qemu-img", "compare", "-f", "raw", "-F", driver, target, foreign)
    assert "Images are identical." in compared
    assert target.read_bytes() == raw.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "all.dci", "target"])
    with ImageFile.open(tmp_path / "all.dci") as image:
        origin = provenance_of(image.manifest.metadata)
    assert origin is not None
    assert (origin.format, origin.checksums) == (kind.split(maxsplit=1)[0], SourceChecksums.NONE)
    assert (origin.tool, origin.tool_version[:1].isdigit()) == ("qemu-img", True)


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_a_compressed_disk_is_imported_bit_by_bit(raw: Path, tmp_path: Path, kind: str) -> None:
    foreign = compress_disk(raw, tmp_path / "disk.img", kind)
    image = tmp_path / "all.dci"
    pack_image(foreign, image, PackOptions(block_bytes=BLOCK_BYTES, every_byte=True))
    assert restored(image, tmp_path / "target").read_bytes() == raw.read_bytes()
    with ImageFile.open(image) as opened:
        origin = provenance_of(opened.manifest.metadata)
    assert origin is not None
    assert (origin.format, origin.checksums, origin.tool) == (kind, SourceChecksums.VERIFIED, kind)


def test_an_image_without_checksums_says_so(raw: Path, tmp_path: Path) -> None:
    for name, command in (("xz", ("xz", "-0c", "--check=none")), ("zstd", ("zstd", "-qc", "--no-check"))):
        with raw.open("rb") as source, (tmp_path / name).open("wb") as target:
            subprocess.run(command, stdin=source, stdout=target, check=True)
        pack_image(tmp_path / name, tmp_path / f"{name}.dci", OPTIONS)
        with ImageFile.open(tmp_path / f"{name}.dci") as opened:
            origin = provenance_of(opened.manifest.metadata)
        assert origin is not None
        assert origin.checksums is SourceChecksums.NONE


@pytest.mark.needs_root
@pytest.mark.parametrize("kind", ["qcow2", "zstd"])
def test_free_space_is_left_out_as_from_the_raw_disk(raw: Path, tmp_path: Path, kind: str) -> None:
    """A user would otherwise send the past of a template disk to a whole room."""
    foreign = (make_virtual_disk if kind in QEMU_KINDS else compress_disk)(raw, tmp_path / "disk.img", kind)
    pack_image(raw, tmp_path / "raw.dci", OPTIONS)
    pack_image(foreign, tmp_path / "foreign.dci", OPTIONS)
    expected = kinds(tmp_path / "raw.dci")
    assert expected.count(BlockKind.UNUSED) > 100
    assert kinds(tmp_path / "foreign.dci") == expected
    with ImageFile.open(tmp_path / "raw.dci") as one, ImageFile.open(tmp_path / "foreign.dci") as two:
        assert one.header.payload_bytes == two.header.payload_bytes


def test_a_wrong_format_is_refused_and_a_named_one_overrides_detection(raw: Path, tmp_path: Path) -> None:
    foreign = make_virtual_disk(raw, tmp_path / "disk.img", "qcow2")
    base = ("pack", "--no-sign", foreign, "-o", tmp_path / "x.dci", "--json", "--format")
    for name in ("vdi", "vmdk", "vhd", "vhdx", "gzip", "xz", "zstd", "bzip2"):
        with Program(diskcast(*base, name)) as program:
            assert program.wait(LIMIT_S) == ForeignImageError.exit_code, name
        assert not (tmp_path / "x.dci").exists()
    with Program(diskcast(*base, "raw")) as program:
        assert program.wait(LIMIT_S) == 0, program.describe()
    with ImageFile.open(tmp_path / "x.dci") as image:
        assert image.manifest.raw_bytes == foreign.stat().st_size


def test_progress_is_shown_for_unpacking_and_packing(raw: Path, tmp_path: Path) -> None:
    foreign = make_virtual_disk(raw, tmp_path / "disk.img", "qcow2")
    done: list[tuple[int, int]] = []
    pack_image(foreign, tmp_path / "x.dci", OPTIONS, on_import=lambda *update: done.append(update))
    assert done[-1] == (DISK_BYTES, DISK_BYTES)
    assert done == sorted(done)


@pytest.mark.parametrize(
    "kind",
    [
        *(
            "gzip",
            "xz",
            "zstd",
            "bzip2",
            "qcow2",
            "vhd dynamic",
            "vhdx",
            "vdi",
            "vmdk",
            "vmdk streamOptimized",
        ),
        *("qcow2 compressed", "vhdx fixed", "vdi static"),
        # A fixed VHD without its end is a raw disk: nothing in it says how long it was.
    ],
)
@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_truncated_image_leaves_nothing(raw: Path, tmp_path: Path, kind: str, share: float) -> None:
    """A user would deploy half a disk to a room."""
    foreign = (make_virtual_disk if kind in QEMU_KINDS else compress_disk)(raw, tmp_path / "disk.img", kind)
    os.truncate(foreign, int(foreign.stat().st_size * share))
    with pytest.raises(ForeignImageError, match=r"disk\.img"):
        pack_image(foreign, tmp_path / "x.dci", OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["disk.img"]


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_a_flipped_bit_in_a_compressed_image_leaves_nothing(raw: Path, tmp_path: Path, kind: str) -> None:
    foreign = compress_disk(raw, tmp_path / "disk.img", kind)
    with foreign.open("r+b") as file:
        file.seek(foreign.stat().st_size // 2)
        octet = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([octet ^ 16]))
    with pytest.raises(ForeignImageError, match="decompressed"):
        pack_image(foreign, tmp_path / "x.dci", OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["disk.img"]


def test_an_image_in_use_by_a_virtual_machine_is_refused(raw: Path, tmp_path: Path) -> None:
    foreign = make_virtual_disk(raw, tmp_path / "disk.img", "qcow2")
    command = ["qemu-io", "-f", "qcow2", str(foreign)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as machine:
        assert machine.stdin is not None
        assert machine.stdout is not None
        machine.stdin.write(b"read 0 512\n")
        machine.stdin.flush()
        assert b"read" in machine.stdout.readline() + machine.stdout.readline()
        with pytest.raises(ForeignImageError, match="lock"):
            pack_image(foreign, tmp_path / "x.dci", OPTIONS)


def test_a_disk_above_the_limit_needs_consent(raw: Path, tmp_path: Path) -> None:
    foreign = make_virtual_disk(raw, tmp_path / "disk.img", "qcow2")
    options = PackOptions(block_bytes=BLOCK_BYTES, limits=ImportLimits(DISK_BYTES - 1))
    with pytest.raises(ForeignImageError, match="--max-size"):
        pack_image(foreign, tmp_path / "x.dci", options)
    pack_image(
        foreign, tmp_path / "x.dci", PackOptions(block_bytes=BLOCK_BYTES, limits=ImportLimits(DISK_BYTES))
    )


def test_a_descriptor_is_a_source_and_stays_open(raw: Path) -> None:
    with raw.open("rb") as file:
        with Source.from_descriptor(raw, file.fileno(), logical_sector_bytes=4096) as source:
            assert (source.raw_bytes, source.logical_sector_bytes) == (DISK_BYTES, 4096)
        file.seek(0)
        assert file.read(16)


def test_the_origin_is_shown(raw: Path, tmp_path: Path) -> None:
    foreign = make_virtual_disk(raw, tmp_path / "disk.img", "qcow2")
    image = pack(foreign, tmp_path / "x.dci")
    assert "source     qcow2, without checksums, read by qemu-img" in run(*diskcast("inspect", image))
    shown = json.loads(run(*diskcast("inspect", image, "--json")).splitlines()[-1])
    assert shown["metadata"]["provenance"]["format"] == "qcow2"
