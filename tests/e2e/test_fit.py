"""Fitting images to larger disks with the real tools: GPT backup, grown partitions and filesystems, boot entries.

The disk is claimed by its target all the while, as when the agent has just committed an image on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from protocol.constants import MIB
from protocol.disk.disk_layout import layout_metadata
from protocol.disk.partition_table import parse_layout_untrusted
from protocol.errors import ConfigurationError, FitError, MissingDependencyError, TargetError
from protocol.image.manifest import BlockKind, Manifest
from protocol.image.manifest_format import build_manifest
from receiver.disk.fit import efi, programs
from receiver.disk.fit.filesystem import GROWERS
from receiver.disk.fit.fit_target import NO_FIT, FitOptions, check_fit, fit
from receiver.disk.target import Target
from receiver.target.open_target import open_target
from tests.support.disks.devices import loop_device
from tests.support.network.lab import REPOSITORY, run, wait_until

pytestmark = pytest.mark.needs_root

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

    def table(self) -> dict:
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


@pytest.mark.parametrize(
    ("kind", "sector_bytes"),
    [("ext4", 512), ("xfs", 512), ("btrfs", 512), ("ntfs", 512), ("ext4", 4096), ("xfs", 4096)],
)
def test_the_last_partition_and_its_filesystem_fill_a_larger_disk(
    tmp_path: Path, kind: str, sector_bytes: int
) -> None:
    disk = make_disk(
        tmp_path,
        [Part(34, ESP, "vfat" if sector_bytes == 512 else ""), partition_of(kind)],
        size_mib=700,
        sector_bytes=sector_bytes,
    )
    point = tmp_path / "look"
    with opened(disk, kind, 2, point, write=True):
        fill(point)
    with opened(disk, kind, 2, point):
        files = digests(point)
    before = disk.table()
    sentences = disk.fit(GROW)
    assert len(sentences) == 2
    assert "end of the disk" in sentences[0]
    assert re.search(rf"Partition 2 was grown: its {kind} has 66\d\.\d MiB now", sentences[1])
    require_right_gpt(disk)
    after = disk.table()
    assert after["partitions"][0] == before["partitions"][0]
    changed = {**before["partitions"][1], "size": (699 - 35) * MIB // sector_bytes}
    assert after["partitions"][1] == changed
    filesystem_check(disk, kind, 2)
    with opened(disk, kind, 2, point):
        assert digests(point) == files
        assert room_bytes(point) > 0.85 * 664 * MIB
    assert disk.fit(GROW) == []


def test_a_larger_disk_gets_the_backup_table_at_its_end_and_nothing_else_changes(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=90)
    before = disk.backing.read_bytes()
    assert disk.fit(NO_FIT) == ["The backup of the partition table was moved to the end of the disk."]
    require_right_gpt(disk)
    after = disk.backing.read_bytes()
    assert disk.span(1)[1] == SMALLEST_MIB["ext4"] * MIB
    assert after[34 * 512 : -33 * 512] == before[34 * 512 : -33 * 512]
    digest = disk.digest()
    assert disk.fit(NO_FIT) == []
    assert disk.digest() == digest


def test_a_hybrid_mbr_stays_one(tmp_path: Path) -> None:
    """Machines that boot both ways have a hybrid MBR: its entries must not change."""
    disk = make_disk(tmp_path, [partition_of("ext4"), Part(8, LINUX)], size_mib=90)
    os.truncate(disk.backing, disk.image_bytes)
    with disk.device() as device:
        run("sgdisk", "--hybrid=2", device)
    disk.grow_to(90)
    record = disk.backing.read_bytes()[:512]
    assert record[446 + 4] == 0xEE
    assert record[446 + 16 + 4] == 0x83
    assert disk.fit(NO_FIT) == ["The backup of the partition table was moved to the end of the disk."]
    require_right_gpt(disk)
    assert disk.backing.read_bytes()[:512] == record


@pytest.mark.parametrize("options", [NO_FIT, GROW])
def test_a_disk_of_the_images_size_is_left_alone(tmp_path: Path, options: FitOptions) -> None:
    """Even if its last partition couldn't grow: one command serves a room of different disks."""
    disk = make_disk(tmp_path, [partition_of("ext4"), Part(8, RECOVERY)], size_mib=50)
    assert disk.backing.stat().st_size == disk.image_bytes
    digest = disk.digest()
    assert disk.fit(options) == []
    assert disk.digest() == digest


def test_a_primary_partition_of_an_mbr_grows_and_stays_bootable(tmp_path: Path) -> None:
    disk = make_disk(
        tmp_path, [Part(8, "c", "vfat"), Part(40, "83", "ext4", ", bootable")], size_mib=120, table="dos"
    )
    before = disk.table()
    assert len(disk.fit(GROW)) == 1
    after = disk.table()
    before["partitions"][1]["size"] = (120 - 9) * MIB // 512
    assert after == before
    filesystem_check(disk, "ext4", 2)
    with opened(disk, "ext4", 2, tmp_path / "look") as point:
        assert room_bytes(point) > 0.85 * 111 * MIB


def test_a_logical_partition_grows_with_the_extended_one_around_it(tmp_path: Path) -> None:
    backing = tmp_path / "disk"
    with backing.open("wb") as file:
        file.truncate(64 * MIB)
    script = (
        "label: dos\nstart=1MiB, size=8MiB, type=83\nstart=9MiB, size=54MiB, type=5\n"
        "start=10MiB, size=10MiB, type=83\nstart=22MiB, size=40MiB, type=83\n"
    )
    run("sfdisk", "-q", backing, text=script)
    make_filesystem(tmp_path / "part", "ext4", 40 * MIB, 512)
    place(tmp_path / "part", backing, 22 * MIB)
    disk = Disk(backing, 64 * MIB)
    disk.grow_to(130)
    before = {number: disk.span(number) for number in (1, 5)}
    assert len(disk.fit(GROW)) == 1
    assert {number: disk.span(number) for number in (1, 5)} == before
    assert disk.span(2) == (9 * MIB, 121 * MIB)
    assert disk.span(6) == (22 * MIB, 108 * MIB)
    filesystem_check(disk, "ext4", 6)
    assert disk.fit(GROW) == []


@pytest.mark.parametrize("kind", ["ext4", "btrfs"])
def test_a_filesystem_without_a_partition_table_grows_alone(tmp_path: Path, kind: str) -> None:
    """The image of a partition is written to a larger partition."""
    size_bytes = SMALLEST_MIB[kind] * MIB
    make_filesystem(tmp_path / "disk", kind, size_bytes, 512)
    disk = Disk(tmp_path / "disk", size_bytes)
    disk.grow_to(260)
    sentences = disk.fit(GROW)
    assert len(sentences) == 1
    assert sentences[0].startswith("The filesystem was grown")
    filesystem_check(disk, kind, 0)
    with opened(disk, kind, 0, tmp_path / "look") as point:
        assert room_bytes(point) > 0.85 * 260 * MIB
    assert disk.fit(GROW) == []


def fit_until_killed(backing: str, image_bytes: str, steps: str) -> None:
    """Fit in a process of its own, and kill it before step number ``steps`` or while growing."""
    disk = Disk(Path(backing), int(image_bytes))
    left = int(steps)

    def count(_step: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    device = next(Path("/dev", name) for name in loops_over(disk.backing))
    with open_target(device, raw_bytes=disk.image_bytes) as target:
        fit(target, disk.manifest, GROW, on_step=count)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_kill_between_any_two_steps_leaves_a_working_disk_that_the_next_run_finishes(
    tmp_path: Path, kind: str
) -> None:
    made = make_disk(tmp_path, [partition_of(kind)], size_mib=500)
    golden = tmp_path / "golden"
    run("cp", "--sparse=always", made.backing, golden)
    code = "import sys; from tests.e2e.test_fit import fit_until_killed; fit_until_killed(*sys.argv[1:])"
    for step in range(1, 6):
        run("cp", "--sparse=always", golden, made.backing)
        disk = Disk(made.backing, made.image_bytes)
        with disk.device() as device:
            argv = [sys.executable, "-c", code, str(disk.backing), str(disk.image_bytes), str(step)]
            done = subprocess.run(argv, cwd=REPOSITORY, check=False)
            assert done.returncode == -signal.SIGKILL
            require_no_loops_over(device)
        with disk.device() as device:
            assert "corrupt" not in run("sgdisk", "--verify", device)
        filesystem_check(disk, kind, 1)
        disk.fit(GROW)
        require_right_gpt(disk)
        assert disk.span(1)[1] == 498 * MIB
        filesystem_check(disk, kind, 1)
        assert disk.fit(GROW) == []


def test_a_loop_device_disappears_with_its_process(tmp_path: Path) -> None:
    """After a kill while a tool uses the loop device, the disk can be claimed again at once."""
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=90)
    code = (
        "import os, pathlib, sys; from receiver.disk.fit.loop_device import loop_device\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_EXCL)\n"
        "with loop_device(fd, 1 << 20, 40 << 20, sector_bytes=512, name='x') as device:\n"
        "    print(device, pathlib.Path('/sys/class/block', device.name, 'size').read_text(), flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    with disk.device() as device:
        argv = [sys.executable, "-c", code, str(device)]
        done = subprocess.run(argv, cwd=REPOSITORY, check=False, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL
        assert done.stdout.split()[1] == str((40 << 20) // 512)
        require_no_loops_over(device)
        os.close(os.open(device, os.O_RDWR | os.O_EXCL))


def test_btrfs_grows_on_a_disk_where_this_machine_saw_a_newer_copy_of_it(tmp_path: Path) -> None:
    """The kernel remembers an older use of the disk: the same filesystem with a higher generation."""
    disk = make_disk(tmp_path, [partition_of("btrfs")], size_mib=300)
    point = tmp_path / "look"
    golden = tmp_path / "golden"
    shutil.copyfile(disk.backing, golden)
    start, size = disk.span(1)
    with loop_device(disk.backing, "--offset", str(start), "--sizelimit", str(size)) as old:
        point.mkdir()
        for name in "abc":
            run("mount", "-t", "btrfs", old, point)
            (point / name).touch()
            run("umount", point)
        run("btrfs", "device", "scan", old)
        run("dd", f"if={golden}", f"of={disk.backing}", "bs=1M", "conv=notrunc", "status=none")
        assert "grown" in disk.fit(GROW)[-1]
    filesystem_check(disk, "btrfs", 1)


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (Part(34, LINUX, "vfat"), r"partition \(2\), the filesystem is vfat"),
        (Part(8, LINUX), r"partition \(2\), the filesystem is unknown"),
        (Part(8, SWAP, "swap"), r"partition \(2\) is swap"),
        (Part(8, LINUX, "swap"), r"partition \(2\), the content is swap"),
        (Part(40, RECOVERY, "ntfs"), r"partition \(2\) is a Windows recovery partition"),
        (Part(34, ESP, "vfat"), r"partition \(2\) is an EFI system partition"),
    ],
    ids=lambda value: f"{value.type[:8]}-{value.filesystem}" if isinstance(value, Part) else "",
)
def test_growth_with_an_obstacle_is_refused_before_anything_is_written(
    tmp_path: Path, last: Part, reason: str
) -> None:
    disk = make_disk(tmp_path, [partition_of("ext4"), last], size_mib=120)
    digest = disk.digest()
    with pytest.raises(ConfigurationError, match=f"{reason}.*without --grow; nothing was written"):
        disk.fit(GROW)
    assert disk.digest() == digest
    # An image without a layout is checked once it is on the disk.
    old = disk.manifest_with(layout=False)
    with pytest.raises(FitError, match=f"{reason}.*complete and verified"):
        disk.fit(GROW, old)
    require_right_gpt(disk)
    assert disk.fit(NO_FIT, old) == []


def test_an_image_without_a_layout_grows_too(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=120)
    assert "Partition 1 was grown" in disk.fit(GROW, disk.manifest_with(layout=False))[1]


def test_growing_a_file_is_refused(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=120)
    path = tmp_path / "copy.raw"
    with open_target(path, raw_bytes=disk.image_bytes) as target:
        with pytest.raises(TargetError, match=r"is a file.*nothing was written"):
            check_fit(GROW, target, disk.manifest)
        check_fit(NO_FIT, target, disk.manifest)
        assert fit(target, disk.manifest, NO_FIT) == []


def test_a_missing_tool_is_named_with_its_package_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = make_disk(tmp_path, [partition_of("ntfs")], size_mib=120)
    with disk_target(disk) as target, monkeypatch.context() as patch:
        patch.setattr(programs, "_SYSTEM_PATH", ())
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(MissingDependencyError, match=r"ntfsresize.*apt install fdisk ntfs-3g"):
            check_fit(GROW, target, disk.manifest)
        with pytest.raises(MissingDependencyError, match=r"needs sfdisk.*apt install fdisk"):
            check_fit(NO_FIT, target, disk.manifest)


def test_a_kernel_that_cannot_mount_it_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = make_disk(tmp_path, [partition_of("btrfs")], size_mib=200)
    monkeypatch.setattr("receiver.disk.fit.fit_target.has_driver", lambda _name: False)
    with disk_target(disk) as target, pytest.raises(MissingDependencyError, match="no driver"):
        check_fit(GROW, target, disk.manifest)


def test_an_ntfs_that_is_due_for_chkdsk_keeps_its_partition(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, [partition_of("ntfs")], size_mib=120)
    start, size = disk.span(1)
    with loop_device(disk.backing, "--offset", str(start), "--sizelimit", str(size)) as device:
        run("ntfsresize", "--force", "--size", "30M", device)  # which schedules chkdsk
    with pytest.raises(
        FitError, match=r"ntfsresize failed.*chkdsk.*the image on it is complete and verified"
    ):
        disk.fit(GROW)
    assert disk.span(1) == (start, size)
    require_right_gpt(disk)


def test_an_ext4_that_e2fsck_cannot_fix_automatically_keeps_its_partition(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=120)
    before = disk.span(1)
    with loop_device(disk.backing, "--offset", str(before[0]), "--sizelimit", str(before[1])) as device:
        run("debugfs", "-w", "-R", "clri <2>", device)
    with pytest.raises(
        FitError, match=r"e2fsck failed with code 4: .*the image on it is complete and verified"
    ):
        disk.fit(GROW)
    assert disk.span(1) == before


def test_a_filesystem_that_fails_its_check_after_growing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Growing failed unnoticed by the tool: that is never a success."""
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=120)
    ext = GROWERS["ext4"]

    def grow_badly(device: Path) -> None:
        ext.grow(device)
        run("debugfs", "-w", "-R", "clri <2>", device)

    growers = {"ext4": dataclasses.replace(ext, grow=grow_badly)}
    monkeypatch.setattr("receiver.disk.fit.fit_target.GROWERS", growers)
    with pytest.raises(FitError, match=r"checking the grown.*e2fsck failed.*run the same command again"):
        disk.fit(GROW)


def test_a_filesystem_that_did_not_grow_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=120)
    idle = dataclasses.replace(GROWERS["ext4"], grow=lambda _device: None)
    monkeypatch.setattr("receiver.disk.fit.fit_target.GROWERS", {"ext4": idle})
    with pytest.raises(FitError, match=r"has 40\.0 MiB instead of 118\.0 MiB"):
        disk.fit(GROW)


def test_a_linux_raid_member_is_not_grown(tmp_path: Path) -> None:
    """A RAID superblock is at the end, so that the member looks like the filesystem inside."""
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=120)
    before = disk.span(1)
    with disk.backing.open("r+b") as file:
        file.seek(sum(before) - 8192)
        file.write(b"\xfc\x4e\x2b\xa9")
    with pytest.raises(FitError, match="Linux RAID"):
        disk.fit(GROW)
    assert disk.span(1) == before


def test_a_partition_in_use_means_a_reboot_and_no_error(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=120)
    with (
        loop_device(disk.backing, "--partscan") as device,
        open_target(device, raw_bytes=disk.image_bytes) as target,
    ):
        run("addpart", device, "1", "2048", str(40 * 2048))
        node = Path(f"{device}p1")
        fd = os.open(node, os.O_RDONLY)
        try:
            sentences = fit(target, disk.manifest, NO_FIT)
        finally:
            os.close(fd)
        assert len(sentences) == 2
        assert "reboot before using it" in sentences[1]
        assert fit(target, disk.manifest, NO_FIT) == []
        assert (
            not node.exists()
        )  # the kernel's old partitions are gone; this kernel has no parser for the new table


# -- firmware: test machines have none, but efibootmgr accepts a directory instead -----------------------------


@pytest.fixture
def firmware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "efi"
    (directory / "efivars").mkdir(parents=True)
    (directory / "fw_platform_size").write_text("64\n")
    monkeypatch.setattr(efi, "FIRMWARE", directory)
    monkeypatch.setenv("EFIVARFS_PATH", f"{directory}/efivars/")
    make_entries(tmp_path, "Windows", option="--create-only")
    return directory


def make_entries(directory: Path, *labels: str, option: str = "--create") -> None:
    """Create entries of another disk; the last one created is first in the boot order."""
    path = directory / "other"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    run("sfdisk", "-q", path, text=f"label: gpt\nsize=4MiB, type={ESP}\n")
    with loop_device(path) as device:
        for label in labels:
            run("efibootmgr", option, "--disk", device, "--label", label)


def loaded_disk(directory: Path, *, loader: str = "", mbr: bool = False) -> Disk:
    system = "ef" if mbr else ESP
    disk = make_disk(
        directory,
        [Part(34, system, "vfat"), Part(8, "83" if mbr else LINUX)],
        size_mib=50,
        table="dos" if mbr else "gpt",
    )
    image = f"{disk.backing}@@{MIB}"
    for name in ("::/EFI", "::/EFI/BOOT"):
        run("mmd", "-i", image, name)
    name = loader or efi.local_loader_name().lower()
    run("mcopy", "-i", image, "/etc/hostname", f"::/EFI/BOOT/{name}")
    return disk


ENTRY = FitOptions(efi_label="Room 12")


@pytest.mark.usefixtures("firmware")
def test_a_boot_entry_is_made_once_and_not_again(tmp_path: Path) -> None:
    disk = loaded_disk(tmp_path)
    sentences = disk.fit(ENTRY)
    assert "boot entry Room 12" in sentences[1]
    entries = efi.list_entries()
    ours = [entry for entry in entries.entries if entry.label == "Room 12"]
    assert len(ours) == 1
    assert [entry.label for entry in entries.entries] == ["Windows", "Room 12"]
    assert entries.order[0] == ours[0].number
    assert disk.fit(ENTRY) == []
    assert efi.list_entries() == entries


@pytest.mark.usefixtures("firmware")
@pytest.mark.parametrize("mbr", [False, True])
def test_an_entry_of_the_same_label_is_replaced_and_keeps_its_place(tmp_path: Path, mbr: bool) -> None:
    """A room that boots from the network first continues to do so."""
    make_entries(tmp_path, "Room 12", "Room 12", "Network")
    disk = loaded_disk(tmp_path, mbr=mbr)
    assert "replaces 2 with that label" in disk.fit(ENTRY)[-1]
    entries = efi.list_entries()
    labels = {entry.number: entry.label for entry in entries.entries}
    # A file isn't cut when a shorter variable is written over it, as firmware does: numbers without an entry follow.
    assert [labels[number] for number in entries.order if number in labels][:2] == ["Network", "Room 12"]
    assert sorted(labels.values()) == ["Network", "Room 12", "Windows"]
    path = next(entry.path for entry in entries.entries if entry.label == "Room 12")
    assert path.lower().startswith("hd(1,mbr," if mbr else f"hd(1,gpt,{unique_guid(disk)}")
    assert "BOOT" in path


def unique_guid(disk: Disk) -> str:
    return disk.table()["partitions"][0]["uuid"].lower()


@pytest.mark.usefixtures("firmware")
def test_a_loader_that_is_not_there_gets_no_entry(tmp_path: Path) -> None:
    disk = loaded_disk(tmp_path, loader="OTHER.EFI")
    before = efi.list_entries()
    with pytest.raises(FitError, match="isn't on the EFI system partition"):
        disk.fit(ENTRY)
    assert efi.list_entries() == before


@pytest.mark.usefixtures("firmware")
def test_an_image_without_a_system_partition_gets_no_entry(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=50)
    with pytest.raises(ConfigurationError, match=r"no EFI system partition.*nothing was written"):
        disk.fit(ENTRY)


def test_a_machine_booted_by_bios_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efi, "FIRMWARE", tmp_path / "none")
    disk = loaded_disk(tmp_path)
    digest = disk.digest()
    with pytest.raises(ConfigurationError, match=r"booted by BIOS.*nothing was written"):
        disk.fit(ENTRY)
    assert disk.digest() == digest
