"""Image directories of Clonezilla and FOG become disks: made by their commands, judged by the filesystems' tools."""

from __future__ import annotations

import dataclasses
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from protocol.constants import MIB
from protocol.errors import ForeignImageError
from protocol.image.manifest import BlockKind
from sender.imaging.image_file import ImageFile
from tests.support.disks.devices import loop_device
from tests.support.disks.foreign_directories import (
    SWAP_UUID,
    FilledDisk,
    make_disk,
    save_by_clonezilla,
    save_by_fog,
)
from tests.support.disks.partclone_files import clone
from tests.support.network.lab import LIMIT_S, Program, diskcast, diskcast_agent, run

pytestmark = pytest.mark.needs_root

GPT_KINDS = ("fat32", "ntfs", "ext4", "xfs", "swap")
DOS_KINDS = ("ntfs", "fat32", "ext2", "ext4", "swap", "fat16")
FOG_ZSTD = ("zstd", "-q", "-3")


@pytest.fixture(scope="module")
def gpt_disk(tmp_path_factory: pytest.TempPathFactory) -> FilledDisk:
    return make_disk(tmp_path_factory.mktemp("gpt"), "gpt", GPT_KINDS)


@pytest.fixture(scope="module")
def dos_disk(tmp_path_factory: pytest.TempPathFactory) -> FilledDisk:
    return make_disk(tmp_path_factory.mktemp("dos"), "dos", DOS_KINDS)


def packed(directory: Path, output: Path, *options: str) -> dict[str, object]:
    """Pack a directory by the command, and return the fields of its last line."""
    with Program(diskcast("pack", directory, "-o", output, "--no-sign", "--json", *options)) as program:
        assert program.wait(LIMIT_S) == 0, program.describe()
        return dict(program.result)


def check_restored(image: Path, disk: FilledDisk, folder: Path) -> None:
    """Restore an image onto a loop device full of garbage, and compare everything that the disk had."""
    backing = folder / "backing"
    with backing.open("wb") as file:
        for _ in range(disk.path.stat().st_size // MIB):
            file.write(b"\xa5" * MIB)
    with loop_device(backing) as device:
        with Program(diskcast_agent("restore", image, "--target", device, "--json")) as program:
            assert program.wait(LIMIT_S) == 0, program.describe()
        if disk.table == "gpt":
            assert "No problems found" in run("sgdisk", "-v", device)
    restored = dataclasses.replace(disk, path=backing)
    assert table_of(backing) == table_of(disk.path)
    start = slice(0, MIB if disk.table == "dos" else 34 * 512)
    assert backing.read_bytes()[start] == disk.path.read_bytes()[start], (
        "boot code, tables and hidden sectors"
    )
    for part in disk.parts:
        content = folder / f"restored-{part.number}"
        with restored.device(part) as device:
            content.write_bytes(device.read_bytes())
        part.kind.check(content)
        if part.kind.name == "swap":
            said = run("blkid", "-p", "-o", "export", content)
            assert f"UUID={SWAP_UUID}" in said
        else:
            assert part.kind.tree(content) == disk.trees[part.number]
        content.unlink()
    backing.unlink()


def table_of(path: Path) -> str:
    return run("sfdisk", "-d", path).replace(str(path), "DISK")


def unused_bytes(image: Path) -> int:
    with ImageFile.open(image) as opened:
        return int((opened.manifest.kind == BlockKind.UNUSED).sum()) * opened.manifest.block_bytes


@pytest.mark.parametrize(("compressor", "suffix"), [(("gzip", "-1c"), "gz"), (("zstd", "-q1c"), "zst")])
def test_a_clonezilla_directory_of_a_gpt_disk(
    tmp_path: Path, gpt_disk: FilledDisk, compressor: tuple[str, ...], suffix: str
) -> None:
    directory = save_by_clonezilla(gpt_disk, tmp_path / "lab-image", compressor, suffix)
    packed(directory, tmp_path / "lab.dci", "--block-size", "64K")
    with ImageFile.open(tmp_path / "lab.dci") as opened:
        origin = opened.manifest.metadata["provenance"]
    assert origin["format"] == "clonezilla"
    assert origin["checksums"] == "verified"
    assert origin["details"].startswith("partclone ")
    assert unused_bytes(tmp_path / "lab.dci") > 100 * MIB
    check_restored(tmp_path / "lab.dci", gpt_disk, tmp_path)


def test_a_clonezilla_directory_of_an_mbr_disk(tmp_path: Path, dos_disk: FilledDisk) -> None:
    directory = save_by_clonezilla(dos_disk, tmp_path / "lab-image", ("cat",), "uncomp")
    packed(directory, tmp_path / "lab.dci")
    check_restored(tmp_path / "lab.dci", dos_disk, tmp_path)


def test_a_fog_directory_of_a_gpt_disk(tmp_path: Path, gpt_disk: FilledDisk) -> None:
    directory = save_by_fog(gpt_disk, tmp_path / "lab", FOG_ZSTD)
    packed(directory, tmp_path / "lab.dci")
    with ImageFile.open(tmp_path / "lab.dci") as opened:
        origin = opened.manifest.metadata["provenance"]
    assert (origin["format"], origin["checksums"]) == ("fog", "none")
    check_restored(tmp_path / "lab.dci", gpt_disk, tmp_path)


def test_a_split_fog_directory_of_an_mbr_disk(tmp_path: Path, dos_disk: FilledDisk) -> None:
    directory = save_by_fog(dos_disk, tmp_path / "lab", ("gzip", "-6"), split=True)
    packed(directory, tmp_path / "lab.dci")
    check_restored(tmp_path / "lab.dci", dos_disk, tmp_path)


@pytest.mark.parametrize("compressor", [("cat",), ("gzip", "-1c"), ("zstd", "-q1c")])
def test_one_file_of_partclone(tmp_path: Path, gpt_disk: FilledDisk, compressor: tuple[str, ...]) -> None:
    part = gpt_disk.parts[2]
    with gpt_disk.device(part) as device:
        clone(device, tmp_path / "clone", part.program)
    (tmp_path / "file").write_bytes(
        subprocess.run([*compressor, tmp_path / "clone"], capture_output=True, check=True).stdout
    )
    packed(tmp_path / "file", tmp_path / "lab.dci")
    with ImageFile.open(tmp_path / "lab.dci") as opened:
        assert opened.manifest.raw_bytes == part.size
        assert opened.manifest.metadata["provenance"]["format"] == "partclone"
    with Program(
        diskcast_agent("restore", tmp_path / "lab.dci", "--target", tmp_path / "disk", "--json")
    ) as program:
        assert program.wait(LIMIT_S) == 0, program.describe()
    part.kind.check(tmp_path / "disk")
    assert part.kind.tree(tmp_path / "disk") == gpt_disk.trees[part.number]


# -- damage -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(gpt_disk: FilledDisk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory whose partition images aren't compressed: only their checksums show damage."""
    return save_by_clonezilla(gpt_disk, tmp_path_factory.mktemp("saved") / "image", ("cat",), "uncomp")


def refused(directory: Path, folder: Path) -> str:
    """Pack a directory that is refused, and return the message; nothing may be left in ``folder``."""
    folder.mkdir()
    with Program(diskcast("pack", directory, "-o", folder / "lab.dci", "--no-sign", "--json")) as program:
        assert program.wait(LIMIT_S) == ForeignImageError.exit_code, program.describe()
        message = str(program.result["error"])
    assert not list(folder.iterdir()), "an image, or a part of one, is left behind"
    return message


@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_names_file_and_offset(saved: Path, tmp_path: Path, seed: int) -> None:
    directory = tmp_path / "image"
    shutil.copytree(saved, directory)
    pick = random.Random(seed)
    victim = pick.choice(sorted(directory.glob("sda*.aa")))
    content = bytearray(victim.read_bytes())
    at = pick.randrange(len(content) // 2, len(content))
    content[at] ^= 1 << pick.randrange(8)
    victim.write_bytes(content)
    message = refused(directory, tmp_path / "output")
    assert victim.name in message
    found = re.search(r"offset (\d+) .* the (\d+) bytes from there", message)
    assert found
    named, interval_bytes = int(found[1]), int(found[2])
    assert named <= at <= named + interval_bytes


def test_a_flipped_bit_of_a_compressed_file_names_it(gpt_disk: FilledDisk, tmp_path: Path) -> None:
    directory = save_by_fog(gpt_disk, tmp_path / "image", ("gzip", "-1"))
    victim = directory / "d1p3.img"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 4
    victim.write_bytes(content)
    assert "d1p3.img" in refused(directory, tmp_path / "output")


def test_a_missing_piece_is_refused(saved: Path, tmp_path: Path) -> None:
    directory = tmp_path / "image"
    shutil.copytree(saved, directory)
    (directory / "sda3.ext4-ptcl-img.uncomp.ab").unlink()
    assert "sda3.ext4-ptcl-img.uncomp.ab is missing" in refused(directory, tmp_path / "first")
    shutil.copytree(saved, directory, dirs_exist_ok=True)
    sorted(directory.glob("sda3.*"))[-1].unlink()
    assert "ends in the middle of its data" in refused(directory, tmp_path / "second")
