"""Packing used blocks only: free blocks are left out, and no block that a filesystem needs is lost.

Every target is full of other data before the restore, and unused blocks are overwritten with garbage afterwards: a
filesystem must be intact with any content in those blocks.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from protocol.constants import KIB, MIB
from protocol.disk.disk_layout import layout_of
from protocol.disk.partition_table import TableKind
from protocol.errors import EXIT_INTERRUPTED, SourceInUseError
from protocol.image.manifest import BlockKind
from sender.imaging.image_file import ImageFile
from sender.imaging.pack import PackOptions, pack_image
from tests.support.disks.devices import loop_device, remove_partition
from tests.support.disks.filesystems import (
    FILESYSTEMS,
    Filesystem,
    Tree,
    mounted,
    mounted_ntfs,
    partclone_free_ranges,
)
from tests.support.network.lab import LIMIT_S, Program, diskcast, diskcast_agent, run, wait_until
from tests.support.programs.tool_folder import tool_folder

pytestmark = pytest.mark.needs_root

BLOCK_BYTES = 64 * KIB
OPTIONS = PackOptions(block_bytes=BLOCK_BYTES)
GARBAGE = b"\xff" * MIB


def deployed(image: Path, target: Path) -> Path:
    """Restore ``image`` to a file full of garbage, and overwrite its unused blocks with garbage."""
    with ImageFile.open(image) as opened:
        manifest = opened.manifest
        with target.open("wb") as file:
            for _ in range(-(-manifest.raw_bytes // MIB)):
                file.write(GARBAGE)
            file.truncate(manifest.raw_bytes)
        with Program(diskcast_agent("restore", image, "--target", target, "--json")) as program:
            assert program.wait(LIMIT_S) == 0, program.describe()
        with target.open("r+b") as file:
            for block in np.flatnonzero(manifest.kind == BlockKind.UNUSED).tolist():
                file.seek(block * BLOCK_BYTES)
                file.write(GARBAGE[: manifest.raw_length(block)])
    return target


def unused_blocks(image: Path) -> set[int]:
    with ImageFile.open(image) as opened:
        return set(np.flatnonzero(opened.manifest.kind == BlockKind.UNUSED).tolist())


def whole_blocks(ranges: Sequence[tuple[int, int]], offset: int = 0) -> set[int]:
    return {
        block
        for start, stop in ranges
        for block in range(-(-(start + offset) // BLOCK_BYTES), (stop + offset) // BLOCK_BYTES)
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which filesystems are created once for all tests."""
    return tmp_path_factory.mktemp("sources")


_trees: dict[str, Tree] = {}


def source_of(kind: Filesystem, sources: Path) -> tuple[Path, Tree]:
    """Return a filled filesystem and its content; the file must not be changed."""
    path = sources / kind.name
    if path.exists():
        return path, _trees[kind.name]
    kind.create(path)
    copy = sources / f"{kind.name}.read"
    run("cp", "--sparse=always", path, copy)
    _trees[kind.name] = kind.tree(copy)
    for leftover in sources.glob(f"{kind.name}.*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return path, _trees[kind.name]


@pytest.mark.parametrize("kind", FILESYSTEMS.values(), ids=lambda kind: kind.name)
def test_a_filesystem_is_whole_without_its_free_blocks(
    kind: Filesystem, sources: Path, tmp_path: Path
) -> None:
    source, tree = source_of(kind, sources)
    assert len(tree) > 10 or kind.name == "swap"
    image = tmp_path / "image.dci"
    (area,) = pack_image(source, image, OPTIONS).areas
    assert area.used_bytes is not None, area.kept_because
    unused = unused_blocks(image)
    kept_bytes = kind.size_bytes - len(unused) * BLOCK_BYTES
    print(f"{kind.name}: {area.used_bytes} used by {area.learnt_by}, {kept_bytes} kept of {kind.size_bytes}")
    if kind.name == "btrfs":
        # partclone keeps one of two copies of metadata, and free space that has the address of used space.
        expected = whole_blocks(partclone_free_ranges(kind, source))
        assert abs(len(expected) - len(unused)) * BLOCK_BYTES < 4 * MIB
    elif kind.name == "fat12":
        found = re.search(r"(\d+)/(\d+) clusters", run("fsck.vfat", "-n", source))
        assert found
        assert (
            kind.size_bytes - area.used_bytes == (int(found[2]) - int(found[1])) * 16 * 512
        )  # partclone misreads it
    elif kind.partclone:
        assert unused == whole_blocks(partclone_free_ranges(kind, source))
    assert kept_bytes < area.used_bytes + 3 * MIB
    target = deployed(image, tmp_path / "target")
    kind.check(target)
    assert kind.tree(target) == tree


# -- whole disks ----------------------------------------------------------------------------------------------


def put(disk: Path, offset: int, content: Path) -> None:
    """Copy a file into the disk."""
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(content.read_bytes())


def cut(disk: Path, offset: int, size_bytes: int, into: Path) -> Path:
    """Copy a partition out of the disk."""
    with disk.open("rb") as file:
        file.seek(offset)
        into.write_bytes(file.read(size_bytes))
    return into


GPT_PARTITIONS = (
    ("ef02", ""),
    ("ef00", "fat16"),
    ("8300", "ext4"),
    ("8200", "swap"),
    ("0700", "ntfs"),
    ("8300", "unknown"),
)
"""Partitions of a machine with two systems: GRUB, the ESP, Linux, swap, Windows, unknown data."""


def gpt_disk(
    path: Path, sources: Path, partitions: Sequence[tuple[str, str]] = GPT_PARTITIONS, sector_bytes: int = 512
) -> dict[int, tuple[str, int, int]]:
    """Create a disk with garbage between its partitions; return (kind, offset, size) by partition number."""
    rng = np.random.default_rng(7)
    sizes = [FILESYSTEMS[name].size_bytes if name in FILESYSTEMS else MIB for _, name in partitions]
    total = sum(sizes) + (len(sizes) + 2) * MIB
    with path.open("wb") as file:
        for _ in range(total // MIB):
            file.write(rng.bytes(64 * KIB) + bytes(MIB - 64 * KIB))
    places = {}
    offset = MIB
    arguments = []
    for number, ((code, name), size) in enumerate(zip(partitions, sizes, strict=True), start=1):
        places[number] = (name, offset, size)
        first, last = offset // sector_bytes, (offset + size) // sector_bytes - 1
        arguments += ["-n", f"{number}:{first}:{last}", "-t", f"{number}:{code}"]
        offset += size + MIB  # a gap with garbage
    with loop_device(path, "--sector-size", str(sector_bytes)) as device:
        run("sgdisk", "--zap-all", device)
        run("sgdisk", "--set-alignment=1", *arguments, device)
        run("sync", device)
    for name, start, size in places.values():
        if name in FILESYSTEMS:
            put(path, start, source_of(FILESYSTEMS[name], sources)[0])
        else:
            made = path.with_name("random")
            made.write_bytes(rng.bytes(size))
            put(path, start, made)
    return places


def check_partitions(
    source: Path, target: Path, places: dict[int, tuple[str, int, int]], sources: Path, folder: Path
) -> None:
    for number, (name, offset, size) in places.items():
        part = cut(target, offset, size, folder / f"part{number}")
        if name in FILESYSTEMS:
            FILESYSTEMS[name].check(part)
            assert FILESYSTEMS[name].tree(part) == source_of(FILESYSTEMS[name], sources)[1], name
        else:
            assert part.read_bytes() == cut(source, offset, size, folder / "original").read_bytes()
    ends = [0, *(offset + size for _, offset, size in places.values())]
    starts = [*(offset for _, offset, _ in places.values()), source.stat().st_size]
    for start, stop in zip(ends, starts, strict=True):
        assert (
            cut(source, start, stop - start, folder / "original").read_bytes()
            == cut(target, start, stop - start, folder / "gap").read_bytes()
        ), "what lies between partitions, boot loaders for example, is kept"


def test_a_whole_gpt_disk_keeps_everything_but_free_space(sources: Path, tmp_path: Path) -> None:
    disk, image = tmp_path / "disk", tmp_path / "image.dci"
    places = gpt_disk(disk, sources)
    result = pack_image(disk, image, OPTIONS)
    assert [(area.number, area.used_bytes is None) for area in result.areas] == [
        (number, name not in FILESYSTEMS) for number, (name, _, _) in places.items()
    ]
    with ImageFile.open(image) as opened:
        layout = layout_of(opened.manifest.metadata)
    assert layout is not None
    assert layout.table is TableKind.GPT
    assert [part.filesystem for part in layout.partitions] == [
        "",
        "vfat",
        "ext4",
        "swap",
        "ntfs",
        "",
    ]
    expected: set[int] = set()
    for name, offset, _ in places.values():
        if name in FILESYSTEMS and FILESYSTEMS[name].partclone:
            ranges = partclone_free_ranges(FILESYSTEMS[name], source_of(FILESYSTEMS[name], sources)[0])
            expected |= whole_blocks(ranges, offset)
    assert expected <= unused_blocks(image)
    target = deployed(image, tmp_path / "target")
    run("sgdisk", "--verify", target)
    check_partitions(disk, target, places, sources, tmp_path)
    again = tmp_path / "again.dci"
    pack_image(disk, again, PackOptions(name="disk", block_bytes=BLOCK_BYTES, jobs=1))
    assert again.read_bytes() == image.read_bytes()


def test_a_device_with_sectors_of_4096_bytes(sources: Path, tmp_path: Path) -> None:
    disk, image = tmp_path / "disk", tmp_path / "image.dci"
    places = gpt_disk(disk, sources, [("8300", "ext2"), ("8200", "swap"), ("0700", "exfat")], 4096)
    with loop_device(disk, "--sector-size", "4096") as device:
        result = pack_image(device, image, OPTIONS)
    assert [area.kept_because for area in result.areas] == ["", "", ""]
    check_partitions(disk, deployed(image, tmp_path / "target"), places, sources, tmp_path)


def test_logical_partitions_of_an_mbr_disk(sources: Path, tmp_path: Path) -> None:
    disk, image = tmp_path / "disk", tmp_path / "image.dci"
    names = ["fat16", "ext2", "swap"]
    sizes = {name: FILESYSTEMS[name].size_bytes // MIB for name in names}
    disk.write_bytes(b"\x5a" * (sum(sizes.values()) + 8) * MIB)
    script = [
        "label: dos",
        f"start=2048, size={sizes['fat16']}MiB, type=c, bootable",
        f"start={(sizes['fat16'] + 2) * 2048}, type=5",
        f"start={(sizes['fat16'] + 3) * 2048}, size={sizes['ext2']}MiB, type=83",
        f"start={(sizes['fat16'] + sizes['ext2'] + 5) * 2048}, size={sizes['swap']}MiB, type=82",
    ]
    run("sfdisk", "--quiet", "--wipe", "never", disk, text="\n".join(script))
    starts = (1, sizes["fat16"] + 3, sizes["fat16"] + sizes["ext2"] + 5)
    places = {
        number: (name, start * MIB, sizes[name] * MIB)
        for number, name, start in zip((1, 5, 6), names, starts, strict=True)
    }
    for name, offset, _ in places.values():
        put(disk, offset, source_of(FILESYSTEMS[name], sources)[0])
    result = pack_image(disk, image, OPTIONS)
    assert [(area.number, area.kept_because) for area in result.areas] == [(1, ""), (5, ""), (6, "")]
    target = deployed(image, tmp_path / "target")
    check_partitions(disk, target, places, sources, tmp_path)
    assert run("sfdisk", "--dump", target).replace(str(target), "") == run("sfdisk", "--dump", disk).replace(
        str(disk), ""
    )


# -- filesystems that aren't trusted --------------------------------------------------------------------------


def kept_whole(source: Path, folder: Path) -> str:
    """Pack, check that everything was kept, and return the reason."""
    image = folder / "kept.dci"
    result = pack_image(source, image, OPTIONS)
    assert [area.used_bytes for area in result.areas] == [None]
    assert not unused_blocks(image)
    return result.areas[0].kept_because


@pytest.mark.parametrize("name", ["ext4", "xfs"])
def test_a_filesystem_whose_power_was_cut_is_kept_whole(name: str, sources: Path, tmp_path: Path) -> None:
    """The journal holds changes that the metadata doesn't have yet."""
    source = tmp_path / "source"
    run("cp", "--sparse=always", source_of(FILESYSTEMS[name], sources)[0], source)
    with mounted(source) as point:
        (point / "late").write_bytes(b"late" * 100_000)
        run("sync", "-f", point)
        run("cp", "--sparse=always", source, tmp_path / "cut")
    assert "unmount it" in kept_whole(tmp_path / "cut", tmp_path)


def test_windows_volumes_that_are_not_shut_down_are_kept_whole(sources: Path, tmp_path: Path) -> None:
    original = source_of(FILESYSTEMS["ntfs"], sources)[0]
    dirty, hibernated, open_journal = tmp_path / "dirty", tmp_path / "hibernated", tmp_path / "journal"
    for path in (dirty, hibernated, open_journal):
        shutil.copy(original, path)
    run("ntfsfix", dirty)
    assert "marked dirty" in kept_whole(dirty, tmp_path)
    with mounted_ntfs(hibernated) as point:
        (point / "hiberfil.sys").write_bytes(b"hibr" + bytes(8188))
    assert "Fast Startup" in kept_whole(hibernated, tmp_path)
    run("ntfscp", open_journal, _open_journal(tmp_path / "page"), "$LogFile")
    assert "journal is open" in kept_whole(open_journal, tmp_path)


def _open_journal(path: Path) -> Path:
    """Create a $LogFile whose latest restart page has an active client."""
    page = bytearray(b"RSTR".ljust(4096, b"\0"))
    page[4:8] = (0x1E).to_bytes(2, "little") + (9).to_bytes(2, "little")
    page[16:26] = b"\0\x10\0\0\0\x10\0\0\x30\0"
    page[0x30 : 0x30 + 8] = (5).to_bytes(8, "little")
    page[0x30 + 8 : 0x30 + 16] = b"\1\0\xff\xff\0\0\0\0"
    path.write_bytes(page * 2)
    return path


# -- sources in use -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def in_use(kind: str, source: Path) -> Iterator[Path]:
    """Mount a source writable, and yield the path to pack."""
    if kind == "device":
        with loop_device(source) as device:
            point = source.with_name("point")
            point.mkdir()
            run("mount", device, point)
            try:
                yield device
            finally:
                run("umount", point)
    elif kind == "file behind a loop device":
        with mounted(source):
            yield source
    else:
        point = source.with_name("point")
        point.mkdir()
        run("ntfs-3g", source, point)
        try:
            yield source
        finally:
            run("umount", point)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("device", "ext4"),
        ("device", "btrfs"),
        ("file behind a loop device", "ext4"),
        ("file mounted by a program", "ntfs"),
    ],
)
def test_a_source_that_is_mounted_writable_is_refused_by_default(
    kind: str, name: str, sources: Path, tmp_path: Path
) -> None:
    source, image = tmp_path / "source", tmp_path / "image.dci"
    run("cp", "--sparse=always", source_of(FILESYSTEMS[name], sources)[0], source)
    with in_use(kind, source) as path:
        with Program(diskcast("pack", path, "-o", image, "--json")) as program:
            assert program.wait(LIMIT_S) == SourceInUseError.exit_code
            assert "--allow-mounted" in program.result["error"]
        assert not image.exists()
        options = PackOptions(block_bytes=BLOCK_BYTES, allow_mounted=True, level=1)
        result = pack_image(path, image, options)
        assert [area.kept_because for area in result.areas] == ["the source is mounted writable"]
    assert not unused_blocks(image)


def test_a_source_that_is_mounted_read_only_is_packed(sources: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    run("cp", "--sparse=always", source_of(FILESYSTEMS["xfs"], sources)[0], source)
    with mounted(source, "-o", "ro"):
        (area,) = pack_image(source, tmp_path / "image.dci", OPTIONS).areas
    assert area.used_bytes is not None, area.kept_because


@pytest.mark.parametrize("name", ["ext2", "xfs", "btrfs", "ntfs", "exfat"])
def test_without_loop_devices_tools_read_the_source_through_its_descriptor(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As an ordinary user packs the file of a virtual disk: confined tools must still be able to open it."""
    monkeypatch.setattr("protocol.packing.used_blocks.os.geteuid", lambda: 1000)
    source = source_of(FILESYSTEMS[name], sources)[0]
    before = source.read_bytes()
    with loop_device(source, "--read-only") as device:
        for path in (source, device):
            (area,) = pack_image(path, tmp_path / f"{path.name}.dci", OPTIONS).areas
            assert area.used_bytes is not None, area.kept_because
    assert source.read_bytes() == before


def test_no_loop_device_is_left_behind(sources: Path, tmp_path: Path) -> None:
    source = source_of(FILESYSTEMS["xfs"], sources)[0]
    pack_image(source, tmp_path / "image.dci", OPTIONS)
    assert not run("losetup", "--associated", source)


def test_a_disk_one_partition_of_which_is_mounted_writable_is_refused(sources: Path, tmp_path: Path) -> None:
    """The source may be the disk of the running system."""
    disk, point = tmp_path / "disk", tmp_path / "point"
    point.mkdir()
    places = gpt_disk(disk, sources, [("8300", "ext2"), ("8200", "swap")])
    _, offset, size = places[1]
    with loop_device(disk, "--partscan") as device:
        run("addpart", device, "1", str(offset // 512), str(size // 512))
        try:
            run("mount", f"{device}p1", point)
            try:
                with pytest.raises(SourceInUseError, match=str(point)):
                    pack_image(device, tmp_path / "image.dci", OPTIONS)
                run("mount", "-o", "remount,ro", point)
                areas = pack_image(device, tmp_path / "image.dci", OPTIONS).areas
                assert [area.kept_because for area in areas] == ["", ""]
            finally:
                run("umount", point)
        finally:
            remove_partition(device, 1)


def test_a_device_that_another_program_holds_is_refused(sources: Path, tmp_path: Path) -> None:
    """The mount may be in another container, where it can't be seen."""
    with loop_device(source_of(FILESYSTEMS["ext2"], sources)[0]) as device:
        holder = os.open(device, os.O_RDONLY | os.O_EXCL)
        try:
            with pytest.raises(SourceInUseError, match="in use by another container or program"):
                pack_image(device, tmp_path / "image.dci", OPTIONS)
        finally:
            os.close(holder)
        assert pack_image(device, tmp_path / "image.dci", OPTIONS).areas[0].used_bytes


def test_an_interrupted_pack_leaves_no_tool_behind(sources: Path, tmp_path: Path) -> None:
    source, image = source_of(FILESYSTEMS["xfs"], sources)[0], tmp_path / "image.dci"
    seconds = 10**6 + os.getpid()  # by which the tool is found

    def hangs() -> bool:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has exited
                if path.read_bytes() == b"sleep\0%d\0" % seconds:
                    return True
        return False

    with tool_folder() as tools:
        hanging = tools / "xfs_logprint"
        hanging.write_text(f"#!/bin/sh\nexec sleep {seconds}\n")
        hanging.chmod(0o755)
        environment = {"PATH": f"{tools}:{os.environ['PATH']}"}
        with Program(diskcast("pack", source, "-o", image), environment=environment) as program:
            wait_until("the tool hangs", hangs, describe=program.describe)
            os.kill(program.pid, signal.SIGTERM)
            assert program.wait(LIMIT_S) == EXIT_INTERRUPTED
    assert not hangs()
    assert not run("losetup", "--associated", source)
    assert not [path for path in tmp_path.iterdir() if "image" in path.name]
