"""Disks that are larger than their images, made with the real tools, for fitting images to them.

The disk is claimed by its target all the while, as when the agent has just committed an image on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.constants import MIB
from protocol.disk.disk_layout import layout_metadata
from protocol.disk.partition_table import parse_layout_untrusted
from protocol.image.manifest import BlockKind, Manifest
from protocol.image.manifest_format import build_manifest
from receiver.disk.fit.fit_target import FitOptions, check_fit, fit
from receiver.disk.target import Target
from receiver.target.open_target import open_target
from tests.support.disks.devices import loop_device
from tests.support.network.lab import run, wait_until

ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
WINDOWS = "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"
RECOVERY = "DE94BBA4-06D1-4D40-A16A-BFD50179D6AC"
SWAP = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"
GROW = FitOptions(grow=True)
SMALLEST_MIB = {"ext4": 40, "xfs": 304, "btrfs": 128, "ntfs": 40}
MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
    "ntfs": ("mkntfs", "-q", "-Q", "-F"),
    "vfat": ("mkfs.vfat",),
    "swap": ("mkswap",),
}
BLOCK_BYTES = 256 * 1024


@dataclasses.dataclass(frozen=True)
class Part:
    """One partition of a test image."""

    size_mib: int
    type: str
    filesystem: str = ""
    extra: str = ""


@dataclasses.dataclass
class Disk:
    """A disk with an image that is smaller than the disk."""

    backing: Path
    image_bytes: int
    sector_bytes: int = 512
    manifest: Manifest = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.manifest = self.manifest_with(layout=True)

    def manifest_with(self, *, layout: bool) -> Manifest:
        count = -(-self.image_bytes // BLOCK_BYTES)
        hashes = np.zeros((count, 32), np.uint8)
        with self.backing.open("rb") as file:

            def read(offset: int, length: int) -> bytes:
                return os.pread(file.fileno(), max(0, min(length, self.image_bytes - offset)), offset)

            found = parse_layout_untrusted(read, self.image_bytes, sector_bytes=self.sector_bytes)
        metadata = {"layout": layout_metadata(found)} if layout else {}
        kinds = np.full(count, BlockKind.UNUSED, np.uint8)
        sizes = np.zeros(count, np.uint32)
        data = build_manifest("golden", self.image_bytes, BLOCK_BYTES, kinds, sizes, hashes, hashes, metadata)
        return Manifest.parse_untrusted(data)

    def grow_to(self, size_mib: int) -> None:
        os.truncate(self.backing, size_mib * MIB)

    def table(self) -> dict[str, Any]:
        with self.device() as device:
            table = json.loads(run("sfdisk", "--json", device))["partitiontable"]
        for part in table["partitions"]:
            part["node"] = part["node"].removeprefix(str(device))
        return {"id": table["id"], "partitions": table["partitions"]}

    def span(self, number: int) -> tuple[int, int]:
        """Return the start and size of a partition in bytes."""
        part = next(part for part in self.table()["partitions"] if part["node"] == f"p{number}")
        return part["start"] * self.sector_bytes, part["size"] * self.sector_bytes

    def digest(self) -> str:
        with self.backing.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @contextlib.contextmanager
    def device(self) -> Iterator[Path]:
        with loop_device(self.backing, "--sector-size", str(self.sector_bytes)) as device:
            yield device

    def fit(self, options: FitOptions, manifest: Manifest | None = None) -> list[str]:
        """Fit as the agent does, from claiming the disk to the end, and leave nothing behind."""
        manifest = manifest or self.manifest
        with self.device() as device, open_target(device, raw_bytes=self.image_bytes) as target:

            def still_claimed(_step: str) -> None:
                with pytest.raises(OSError, match="busy"):
                    os.close(os.open(device, os.O_RDONLY | os.O_EXCL))

            check_fit(options, target, manifest)
            try:
                return fit(target, manifest, options, on_step=still_claimed)
            finally:
                require_no_loops_over(device)
                assert "diskcast-fit-" not in Path("/proc/self/mountinfo").read_text()


@contextlib.contextmanager
def disk_target(disk: Disk) -> Iterator[Target]:
    with disk.device() as device, open_target(device, raw_bytes=disk.image_bytes) as target:
        yield target


def loops_over(device: Path) -> list[str]:
    found = []
    for attribute in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if attribute.read_text().strip() == str(device):
                found.append(attribute.parent.parent.name)
    return found


def require_no_loops_over(device: Path) -> None:
    """Wait until loop devices are gone: another program that probes disks may keep them open for a moment."""
    wait_until(f"no loop device over {device}", lambda: not loops_over(device))


def make_filesystem(path: Path, kind: str, size_bytes: int, sector_bytes: int) -> None:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    # On a loop device, as on a disk: the tools query its sector size.
    with loop_device(path, "--sector-size", str(sector_bytes)) as device:
        run(*MKFS[kind], device)


def make_disk(
    directory: Path, parts: list[Part], *, size_mib: int, table: str = "gpt", sector_bytes: int = 512
) -> Disk:
    """Create an image with filesystems, whose last partition ends a MiB before its end, on a disk of its size."""
    backing = directory / "disk"
    image_bytes = (1 + sum(part.size_mib for part in parts) + 1) * MIB
    with backing.open("wb") as file:
        file.truncate(image_bytes)
    start_mib, lines = 1, [f"label: {table}"]
    for part in parts:
        lines.append(f"start={start_mib}MiB, size={part.size_mib}MiB, type={part.type}{part.extra}")
        start_mib += part.size_mib
    with loop_device(backing, "--sector-size", str(sector_bytes)) as device:
        run("sfdisk", "-q", "--no-reread", "--no-tell-kernel", device, text="\n".join(lines) + "\n")
    start_mib = 1
    for index, part in enumerate(parts):
        if part.filesystem:
            path = directory / f"part{index}"
            make_filesystem(path, part.filesystem, part.size_mib * MIB, sector_bytes)
            place(path, backing, start_mib * MIB)
            path.unlink()
        start_mib += part.size_mib
    disk = Disk(backing, image_bytes, sector_bytes)
    disk.grow_to(size_mib)
    return disk


def place(path: Path, backing: Path, offset_bytes: int) -> None:
    where = (f"seek={offset_bytes // MIB}", "bs=1M", "conv=notrunc,sparse", "status=none")
    run("dd", f"if={path}", f"of={backing}", *where)


@contextlib.contextmanager
def opened(disk: Disk, kind: str, number: int, point: Path, *, write: bool = False) -> Iterator[Path]:
    """Mount a partition's filesystem for inspection."""
    start, size = disk.span(number) if number else (0, disk.backing.stat().st_size)
    place_options = ("--offset", str(start), "--sizelimit", str(size))
    with loop_device(disk.backing, *place_options, "--sector-size", str(disk.sector_bytes)) as device:
        point.mkdir(exist_ok=True)
        run(
            "mount", "-t", "ntfs-3g" if kind == "ntfs" else kind, "-o", "rw" if write else "ro", device, point
        )
        try:
            yield point
        finally:
            run("umount", point)


def fill(point: Path) -> None:
    rng = np.random.default_rng(4)
    for index in range(40):
        directory = point / f"lessons {index % 3}"
        directory.mkdir(exist_ok=True)
        (directory / f"file {index}").write_bytes(rng.bytes(index * 1000))


def digests(point: Path) -> dict[str, str]:
    return {
        str(path.relative_to(point)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(point.rglob("*"))
        if path.is_file()
    }


def room_bytes(point: Path) -> int:
    state = os.statvfs(point)
    return state.f_blocks * state.f_frsize


def require_right_gpt(disk: Disk) -> None:
    """Require that sgdisk accepts the GPT and that its backup is in the last sector."""
    with disk.device() as device:
        assert "No problems found" in run("sgdisk", "--verify", device)
        assert "No errors detected" in run("sfdisk", "--verify", device)
    with disk.backing.open("rb") as file:
        file.seek(-disk.sector_bytes, os.SEEK_END)
        assert file.read(8) == b"EFI PART"


def filesystem_check(disk: Disk, kind: str, number: int) -> None:
    start, size = disk.span(number) if number else (0, disk.backing.stat().st_size)
    commands = {
        "ext4": ("e2fsck", "-f", "-n"),
        "xfs": ("xfs_repair", "-n"),
        "btrfs": ("btrfs", "check", "--readonly"),
        "ntfs": ("ntfsfix", "-n"),
    }
    place_options = (
        "--offset",
        str(start),
        "--sizelimit",
        str(size),
        "--sector-size",
        str(disk.sector_bytes),
    )
    with loop_device(disk.backing, "--read-only", *place_options) as device:
        run(*commands[kind], device)


def partition_of(kind: str) -> Part:
    return Part(SMALLEST_MIB[kind], WINDOWS if kind == "ntfs" else LINUX, kind, ', name="the system"')
