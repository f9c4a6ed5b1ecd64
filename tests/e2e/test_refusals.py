"""The real program refuses targets that mustn't be written, with reason and fix, and doesn't change a byte."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.disk.disk_layout import layout_metadata
from protocol.disk.partition_table import DiskLayout, Partition, TableKind
from protocol.errors import (
    AmbiguousTargetError,
    DiskcastError,
    DoctorFoundProblemsError,
    TargetError,
    TargetIncompatibleError,
    TargetInUseError,
    TargetIsImageError,
    TargetIsSystemDiskError,
    TargetReadOnlyError,
    TargetTooSmallError,
)
from receiver.disk.inventory.block_devices import BlockDevice
from receiver.disk.inventory.read_devices import read_inventory
from receiver.disk.read_back import open_read_back
from receiver.target.eligibility import ImageNeeds, judge
from receiver.target.open_target import open_target
from receiver.target.selection import choose_target
from tests.support.disks.devices import loop_device, mounted
from tests.support.disks.disk_images import BLOCK_BYTES, make_image
from tests.support.network.lab import LIMIT_S, Program, diskcast_agent, run
from tests.support.network.ports import free_port_range

pytestmark = pytest.mark.needs_root

MIB = 1 << 20

# linux/loop.h
_LOOP_CTL_ADD = 0x4C80
_LOOP_CTL_REMOVE = 0x4C81
_LOOP_NUMBER = 4711 + os.getpid() % 30_000
"""Prefix of this test process, like the size below."""

SPARE_BYTES = MIB + (13 + os.getpid() % 499) * 4096
"""A size that no other loop device on this machine has, not even of another test run: rules select by it."""

LAYOUT = DiskLayout(TableKind.GPT, 512, (Partition(1, MIB, MIB, "0FC63DAF-8483-4772-8E79-3D69D8477DE4"),))
MADE = make_image("drzd" * 16, metadata={"layout": layout_metadata(LAYOUT), "logical_sector_bytes": 512})
"""A disk with a partition table of 512-byte sectors; the table itself doesn't matter."""
PARTITION_MADE = make_image("drzd" * 16)
DISK_BYTES = len(MADE.raw) + SPARE_BYTES


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return MADE.write(tmp_path / "disk.dci")


@pytest.fixture
def partition_image(tmp_path: Path) -> Path:
    return PARTITION_MADE.write(tmp_path / "partition.dci")


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    """Create a disk that is large enough and full of valuable data."""
    path = tmp_path / "precious"
    path.write_bytes(b"\xa5" * DISK_BYTES)
    return path


def _refuses(
    image: Path,
    target: str | Path,
    error_class: type[DiskcastError],
    *words: str,
    options: tuple[str, ...] = (),
) -> str:
    """Run a restore that must fail with this error, and return its message."""
    argv = diskcast_agent("restore", image, "--target", target, *options, "--json")
    with Program(argv) as program:
        assert program.wait(LIMIT_S) == error_class.exit_code, program.describe()
        assert program.result["error_class"] == error_class.__name__
        message = str(program.result["error"])
    for word in (*words, "nothing was written"):
        assert word in message
    return message


@contextlib.contextmanager
def _partition(device: Path, *, start_bytes: int, size_bytes: int) -> Iterator[Path]:
    """Add a partition to the kernel's list, independent of the disk's table."""
    run("addpart", device, "1", str(start_bytes // 512), str(size_bytes // 512))
    try:
        yield Path(f"{device}p1")
    finally:
        run("delpart", device, "1")


@contextlib.contextmanager
def _claimed(device: Path) -> Iterator[int]:
    """Run a program that has the device open exclusively, and yield its process id."""
    code = (
        "import os, sys\n"
        f"os.open({str(device)!r}, os.O_RDWR | os.O_EXCL)\n"
        "print('claimed', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "claimed\n"
            yield holder.pid
        finally:
            holder.stdin.close()
            holder.wait(LIMIT_S)


def _device(path: Path) -> BlockDevice:
    device = read_inventory().devices.get(path.stat().st_rdev)
    assert device is not None
    return device


# -- held --------------------------------------------------------------------------------------------------------


def test_a_mounted_disk(tmp_path: Path, image: Path, backing: Path) -> None:
    run("mkfs.ext4", "-q", backing)
    point = tmp_path / "my data"
    with loop_device(backing) as device, mounted(device, point, "-o", "ro,noload"):
        before = _digest(backing)
        message = _refuses(
            image, device, TargetInUseError, f"{device} is in use: mounted at {point}", "umount '"
        )
        assert "The disks of this machine:" in message
        assert _digest(backing) == before


def test_a_disk_of_which_one_partition_is_mounted(tmp_path: Path, image: Path, backing: Path) -> None:
    with (
        loop_device(backing, "--partscan") as device,
        _partition(device, start_bytes=MIB, size_bytes=2 * MIB) as partition,
    ):
        run("mkfs.ext4", "-q", partition)
        with mounted(partition, tmp_path / "mounted", "-o", "ro,noload"):
            before = _digest(backing)
            words = f"{partition} is mounted at {tmp_path / 'mounted'}"
            _refuses(image, device, TargetInUseError, f"{device} is in use: {words}")
            _refuses(image, partition, TargetInUseError, "in use: mounted at")
            assert _digest(backing) == before


def test_a_disk_in_a_pool_of_two(tmp_path: Path, image: Path) -> None:
    """btrfs reports neither disk's device number, and names only one of them."""
    with contextlib.ExitStack() as stack:
        devices = []
        for name in ("one", "two"):
            with (tmp_path / name).open("wb") as file:
                file.truncate(128 * MIB)
            devices.append(stack.enter_context(loop_device(tmp_path / name)))
        run("mkfs.btrfs", "-q", "-d", "raid1", "-m", "raid1", *devices)
        run("btrfs", "device", "scan", *devices)
        point = stack.enter_context(mounted(devices[0], tmp_path / "mounted", "-o", "ro"))
        before = [_digest(tmp_path / name) for name in ("one", "two")]
        for device in devices:
            _refuses(image, device, TargetInUseError, f"{device} is in use: mounted at {point}")
        assert [_digest(tmp_path / name) for name in ("one", "two")] == before


def test_a_disk_that_is_swapped_to(image: Path, backing: Path) -> None:
    run("mkswap", backing)
    with loop_device(backing) as device:
        run("swapon", device)
        try:
            # After the first page the kernel may write: it is swap.
            before = backing.read_bytes()[:4096]
            _refuses(image, device, TargetInUseError, "in use: used as swap", f"swapoff {device}")
            assert backing.read_bytes()[:4096] == before
        finally:
            run("swapoff", device)


def test_a_disk_that_another_program_opened_exclusively(image: Path, backing: Path) -> None:
    before = _digest(backing)
    with loop_device(backing) as device, _claimed(device) as process_id:
        _refuses(image, device, TargetInUseError, f"open in process {process_id}", "release it first")
    assert _digest(backing) == before


def test_a_disk_that_is_mounted_where_this_program_cannot_see_it(
    tmp_path: Path, image: Path, backing: Path
) -> None:
    """The mount is in another namespace, such as a container's or a service's: only the kernel knows it."""
    run("mkfs.ext4", "-q", backing)
    (tmp_path / "hidden").mkdir()
    with loop_device(backing) as device:
        script = f"mount -o ro,noload {device} {tmp_path}/hidden && echo mounted && cat"
        with subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            try:
                assert holder.stdout.readline() == "mounted\n"
                before = _digest(backing)
                _refuses(
                    image, device, TargetInUseError, f"mounted at {tmp_path}/hidden in the mount namespace"
                )
                assert _digest(backing) == before
            finally:
                holder.stdin.close()
                holder.wait(LIMIT_S)


def test_a_disk_below_a_loop_device(tmp_path: Path, image: Path, backing: Path) -> None:
    """The kernel lets any program claim the device below a loop device."""
    before = _digest(backing)
    with loop_device(backing) as device, loop_device(device) as upper:
        _refuses(image, device, TargetInUseError, f"the loop device {upper}", f"losetup --detach {upper}")
    assert _digest(backing) == before


def test_a_file_below_a_mounted_loop_device(tmp_path: Path, image: Path, backing: Path) -> None:
    run("mkfs.ext4", "-q", backing)
    with loop_device(backing) as device, mounted(device, tmp_path / "mounted", "-o", "ro,noload"):
        before = _digest(backing)
        _refuses(image, backing, TargetInUseError, f"{device} is mounted at {tmp_path / 'mounted'}")
        assert _digest(backing) == before


# -- unfit -------------------------------------------------------------------------------------------------------


def test_a_write_protected_disk(image: Path, backing: Path) -> None:
    before = _digest(backing)
    with loop_device(backing, "--read-only") as device:
        _refuses(image, device, TargetReadOnlyError, "is read-only", "blockdev --setrw")
    with loop_device(backing) as device:
        run("blockdev", "--setro", device)
        try:
            _refuses(image, device, TargetReadOnlyError, "is read-only", "blockdev --setrw")
        finally:  # the device would keep it for its next file
            run("blockdev", "--setrw", device)
    assert _digest(backing) == before


def test_a_disk_that_is_a_sector_too_small(image: Path, backing: Path) -> None:
    os.truncate(backing, len(MADE.raw) - 512)
    before = _digest(backing)
    with loop_device(backing) as device:
        _refuses(image, device, TargetTooSmallError, str(len(MADE.raw)), str(len(MADE.raw) - 512), "larger")
    assert _digest(backing) == before


def test_large_sectors_for_a_table_of_small_ones(image: Path, backing: Path) -> None:
    before = _digest(backing)
    with loop_device(backing, "--sector-size", "4096") as device:
        _refuses(image, device, TargetIncompatibleError, "sectors of 4096", "GPT counts in sectors of 512")
    assert _digest(backing) == before


def test_a_whole_disk_inside_a_partition(image: Path, backing: Path) -> None:
    before = _digest(backing)
    with (
        loop_device(backing, "--partscan") as device,
        _partition(device, start_bytes=4096, size_bytes=len(MADE.raw) + 4096) as partition,
    ):
        _refuses(image, partition, TargetIncompatibleError, "is a partition", "name the whole disk")
        assert _digest(backing) == before


def test_an_image_that_ends_inside_a_sector(tmp_path: Path, backing: Path) -> None:
    image = make_image("drd", tail_bytes=1000).write(tmp_path / "odd.dci")
    before = _digest(backing)
    with loop_device(backing) as device:
        _refuses(image, device, TargetIncompatibleError, "whole number", "truncate")
    assert _digest(backing) == before


# -- the image itself, and the running system --------------------------------------------------------------------


def test_the_image_file_itself(image: Path) -> None:
    before = _digest(image)
    _refuses(image, image, TargetIsImageError, "itself", "choose another target")
    with loop_device(image) as device:
        _refuses(image, device, TargetIsImageError, f"loop device over the image file {image}")
    assert _digest(image) == before


def test_the_disk_that_holds_the_image(tmp_path: Path) -> None:
    backing = tmp_path / "disk"
    backing.write_bytes(bytes(32 * MIB))
    run("mkfs.ext4", "-q", backing)
    with loop_device(backing) as device, mounted(device, tmp_path / "mounted"):
        image = MADE.write(tmp_path / "mounted" / "disk.dci")
        run("sync", "--file-system", image)
        with_image = _digest(image)
        _refuses(image, device, TargetIsImageError, f"{device} holds the image file {image}")
        assert _digest(image) == with_image


def test_the_disk_that_this_machine_runs_from() -> None:
    """This test only judges the disk and never opens it."""
    inventory = read_inventory()
    device = inventory.devices.get(Path("/").stat().st_dev)
    if device is None:
        pytest.skip("the root filesystem lies on no block device of its own")
    for number in {device.number, device.disk_number}:
        refusal = judge(inventory.devices[number], inventory, ImageNeeds())
        assert refusal is not None
        assert refusal.error_class is TargetIsSystemDiskError
        assert "live system" in refusal.fix


def test_a_directory_and_a_character_device(tmp_path: Path, image: Path) -> None:
    _refuses(image, tmp_path, TargetError, "is a directory")
    _refuses(image, Path("/dev/zero"), TargetError, "is a character device", "The disks of this machine:")
    _refuses(image, Path("/dev/sdzz9"), TargetError, "there is no device /dev/sdzz9")


# -- choosing ----------------------------------------------------------------------------------------------------


def test_a_rule_that_two_disks_fit(tmp_path: Path, image: Path, backing: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(backing.read_bytes())
    before = _digest(backing)
    rule = f"auto:transport=loop,min={DISK_BYTES},max={DISK_BYTES}"
    with loop_device(backing) as first, loop_device(other) as second:
        message = _refuses(image, rule, AmbiguousTargetError, "fits 2 disks", str(first), str(second))
        assert f"{first}, " in message
        assert message.count(": usable") >= 2
    assert _digest(backing) == _digest(other) == before


def test_a_rule_that_no_disk_fits_and_names_that_no_disk_has(image: Path) -> None:
    _refuses(image, "auto:transport=loop,min=100T", TargetError, "no disk fits", "The disks of this machine:")
    _refuses(image, "serial=NOBODY-HAS-THIS", TargetError, "no disk has serial=NOBODY-HAS-THIS")


def test_the_only_disk_that_fits_is_written(tmp_path: Path, image: Path, backing: Path) -> None:
    """One of three disks is in use, and one is too large for the rule."""
    held, large = tmp_path / "held", tmp_path / "large"
    held.write_bytes(backing.read_bytes())
    run("mkfs.ext4", "-q", held)
    large.write_bytes(bytes(DISK_BYTES + MIB))
    before = _digest(held)
    with (
        loop_device(held) as held_device,
        loop_device(large),
        loop_device(backing),
        mounted(held_device, tmp_path / "mounted", "-o", "ro,noload"),
    ):
        rule = f"auto:transport=loop,min={DISK_BYTES},max={DISK_BYTES}"
        with Program(diskcast_agent("restore", image, "--target", rule, "--json")) as program:
            assert program.wait(LIMIT_S) == 0, program.describe()
    assert backing.read_bytes()[: len(MADE.raw)] == MADE.raw
    assert _digest(large) == hashlib.sha256(bytes(DISK_BYTES + MIB)).hexdigest()
    assert _digest(held) == before


def test_a_partitions_image_goes_into_that_partition_alone(partition_image: Path, backing: Path) -> None:
    before = backing.read_bytes()
    size_bytes = len(PARTITION_MADE.raw) + 4096
    with (
        loop_device(backing, "--partscan") as device,
        _partition(device, start_bytes=8192, size_bytes=size_bytes),
    ):
        _refuses(
            partition_image,
            device,
            TargetError,
            "has no partition 7 (existing ones: 1)",
            options=("--partition", "7"),
        )
        assert backing.read_bytes() == before
        argv = diskcast_agent("restore", partition_image, "--target", device, "--partition", "1", "--json")
        with Program(argv) as program:
            assert program.wait(LIMIT_S) == 0, program.describe()
    after = backing.read_bytes()
    assert after[8192 : 8192 + len(PARTITION_MADE.raw)] == PARTITION_MADE.raw
    assert after[:8192] == before[:8192]
    assert after[8192 + size_bytes :] == before[8192 + size_bytes :]


# -- the same disk from the choice to the end --------------------------------------------------------------------


def test_a_disk_that_was_exchanged_after_it_was_chosen(tmp_path: Path, backing: Path) -> None:
    """Another disk has the same size, name and number: only the kernel's disk sequence number differs."""
    other = tmp_path / "other"
    other.write_bytes(backing.read_bytes())
    before = _digest(other)
    with _reserved_loop_device() as device:
        run("losetup", device, backing)
        rule = f"auto:transport=loop,min={DISK_BYTES},max={DISK_BYTES}"
        choice = choose_target(rule, partition=None, raw_bytes=len(MADE.raw))
        assert choice.path == device
        run("losetup", "--detach", device)
        run("losetup", device, other)
        with pytest.raises(TargetError, match="was replaced"):
            open_target(choice.path, raw_bytes=len(MADE.raw), expected=choice.identity)
        open_target(choice.path, raw_bytes=len(MADE.raw)).close()
        run("losetup", "--detach", device)
    assert _digest(other) == before


@contextlib.contextmanager
def _reserved_loop_device() -> Iterator[Path]:
    """Return a loop device with a high number, which ``losetup --find`` doesn't give to another program at once."""
    device = Path(f"/dev/loop{_LOOP_NUMBER}")
    with Path("/dev/loop-control").open("rb") as control:
        fcntl.ioctl(control, _LOOP_CTL_ADD, _LOOP_NUMBER)
        try:
            yield device
        finally:
            subprocess.run(["losetup", "--detach", device], capture_output=True, check=False)
            fcntl.ioctl(control, _LOOP_CTL_REMOVE, _LOOP_NUMBER)


def test_read_back_uses_the_written_device_even_if_its_name_leads_elsewhere(
    tmp_path: Path, backing: Path
) -> None:
    other, link = tmp_path / "other", tmp_path / "link"
    other.write_bytes(b"other" * 4096)
    with loop_device(backing) as first, loop_device(other) as second:
        link.symlink_to(first)
        with open_target(link, raw_bytes=BLOCK_BYTES) as target:
            link.unlink()
            link.symlink_to(second)
            with open_read_back(link, held_fd=target.fd) as read_back:
                assert os.path.samestat(os.fstat(read_back.fd), first.stat())
                assert read_back.is_device


# -- diskcast-agent disks ----------------------------------------------------------------------------------------


def _disks(*options: str | Path) -> dict[str, dict[str, object]]:
    with Program(diskcast_agent("disks", "--json", *options)) as program:
        assert program.wait(LIMIT_S) == 0, program.describe()
        listed = {event["path"]: event for event in program.events[:-1]}
        assert program.result["disks"] == len(listed)
        assert set(program.result["usable"]) == {
            path for path, event in listed.items() if event["verdict"] == "usable"
        }
    return listed


def test_the_list_of_disks_agrees_with_restore(tmp_path: Path, image: Path, backing: Path) -> None:
    run("mkfs.ext4", "-q", backing)
    before = _digest(backing)
    with loop_device(backing) as device:
        free = _disks("--for", image)[str(device)]
        assert (free["verdict"], free["holds"], free["size_bytes"]) == ("usable", "ext4", DISK_BYTES)
        small = _disks("--size", "1T")[str(device)]
        assert (small["verdict"], small["error_class"]) == ("refused", "TargetTooSmallError")
        with mounted(device, tmp_path / "mounted", "-o", "ro,noload"):
            held = _disks()[str(device)]
            assert held["mount_points"] == [str(tmp_path / "mounted")]
            assert held["exit_code"] == TargetInUseError.exit_code
            message = _refuses(image, device, TargetInUseError)
            assert message.startswith(f"{held['reason']}: {held['fix']}")
    with loop_device(backing, "--sector-size", "4096") as device:
        assert _disks("--for", image)[str(device)]["error_class"] == "TargetIncompatibleError"
    assert _digest(backing) == before


def test_the_doctor_agrees_with_restore_about_a_target(tmp_path: Path, image: Path, backing: Path) -> None:
    run("mkfs.ext4", "-q", backing)
    with loop_device(backing) as device, mounted(device, tmp_path / "mounted", "-o", "ro,noload"):
        where = ("--interface", "lo", "--port", str(free_port_range(1)[0]))
        argv = diskcast_agent("doctor", *where, "--target", device, "--json")
        with Program(argv) as program:
            assert program.wait(LIMIT_S) == DoctorFoundProblemsError.exit_code, program.describe()
            finding = next(event for event in program.events if event.get("check") == f"target {device}")
        assert finding["detail"].splitlines()[0] == _refuses(image, device, TargetInUseError).splitlines()[0]


def test_the_list_of_disks_for_people_fits_a_narrow_terminal(backing: Path) -> None:
    with loop_device(backing) as device:
        done = subprocess.run(
            diskcast_agent("disks"), capture_output=True, text=True, check=True, timeout=LIMIT_S
        )
    assert str(device) in done.stdout
    assert "usable" in done.stdout
    assert "nothing known" in done.stdout
