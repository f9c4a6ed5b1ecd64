"""Exports to Clonezilla: partclone itself accepts and restores each partition, and the directory packs again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from protocol.errors import ConfigurationError
from sender.imaging.image_file import ImageFile
from tests.support.disks.disk_images import make_image
from tests.support.disks.foreign_directories import SWAP_UUID, FilledDisk, make_disk
from tests.support.network.lab import LIMIT_S, Program, diskcast, run

pytestmark = pytest.mark.needs_root

KINDS = {
    "gpt": ("fat32", "ntfs", "ext4", "xfs", "swap", "btrfs", "exfat"),
    "dos": ("ntfs", "fat16", "ext2", "ext4", "swap"),
}
FILE_NAMES = {"gpt": "vfat ntfs ext4 xfs swap btrfs exfat", "dos": "ntfs vfat ext4 ext4 swap"}


@pytest.fixture(scope="module", params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FilledDisk:
    return make_disk(tmp_path_factory.mktemp(request.param), request.param, KINDS[request.param])


def call(*arguments: str | Path) -> None:
    with Program(diskcast(*arguments, "--json")) as program:
        assert program.wait(LIMIT_S) == 0, program.describe()


def test_partclone_accepts_and_restores_every_partition(disk: FilledDisk, tmp_path: Path) -> None:
    image, directory = tmp_path / "lab.dci", tmp_path / "lab"
    call("pack", disk.path, "-o", image, "--no-sign")
    call("export", image, "-o", directory, "--format", "clonezilla")
    dump = run("sfdisk", "--dump", disk.path).replace(str(disk.path), "/dev/sda")
    assert (directory / "sda-pt.sf").read_text() == dump
    for part, word in zip(disk.parts, FILE_NAMES[disk.table].split(), strict=True):
        name = f"sda{part.number}"
        if word == "swap":
            assert f'UUID="{SWAP_UUID}"' in (directory / f"swappt-{name}.info").read_text()
            continue
        image_file, target = tmp_path / "partition", tmp_path / f"restored-{name}"
        with image_file.open("wb") as file:
            pieces = sorted(directory.glob(f"{name}.{word}-ptcl-img.zst.*"))
            subprocess.run(["zstd", "-dcq", *pieces], stdout=file, check=True)
        run("partclone.chkimg", "-s", image_file, "-L", "/dev/null")
        with target.open("wb") as file:
            file.truncate(part.size)
        run("partclone.restore", "-C", "-s", image_file, "-O", target, "-L", "/dev/null", "-q")
        part.kind.check(target)
        assert part.kind.tree(target) == disk.trees[part.number]
        assert image_file.stat().st_size < part.size, "free space isn't stored"


def test_an_export_packs_into_the_same_disk(disk: FilledDisk, tmp_path: Path) -> None:
    image, directory, again = tmp_path / "lab.dci", tmp_path / "lab", tmp_path / "again.dci"
    call("pack", disk.path, "-o", image, "--no-sign", "--name", "lab")
    call("export", image, "-o", directory, "--format", "clonezilla")
    call("pack", directory, "-o", again, "--no-sign", "--name", "lab")
    with ImageFile.open(image) as first, ImageFile.open(again) as second:
        assert second.manifest.metadata["provenance"]["checksums"] == "verified"
        both_stored = first.manifest.stored_mask & second.manifest.stored_mask
        assert (first.manifest.raw_hash[both_stored] == second.manifest.raw_hash[both_stored]).all()
        lost = first.manifest.stored_mask & ~second.manifest.stored_mask
        assert int(lost.sum()) <= 2, "swap's first page is all that Clonezilla can't keep"


def test_a_disk_without_a_table_is_refused(tmp_path: Path) -> None:
    image = make_image("drzd").write(tmp_path / "plain.dci")
    with Program(
        diskcast("export", image, "-o", tmp_path / "out", "--format", "clonezilla", "--json")
    ) as program:
        assert program.wait(LIMIT_S) == ConfigurationError.exit_code
        assert "no partition table" in str(program.result["error"])
    assert not list(tmp_path.glob("*out*"))
