"""The disk that a capture reads: chosen, claimed for this program alone, and read-only while it is read."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from protocol.control.capture_messages import SOURCE_AUTO
from protocol.errors import SourceError, SourceInUseError
from protocol.packing.source_use import find_source_use
from receiver.disk.inventory.block_devices import SYSTEM_PATHS, SystemPaths
from receiver.disk.inventory.read_devices import read_inventory
from receiver.disk.syscalls import is_read_only, set_read_only
from receiver.target.selection import is_path, parse_rule

STATE_FILE: Final = Path("/run/diskcast-read-only-disk")
"""Names the disk whose read-only flag this program has set: one that is killed can't clear it."""

_IN_USE_FIX: Final = (
    "unmount its filesystems, and stop LVM, RAID and swap on it; or boot the live system over the network, and capture "
    "there"
)


@dataclasses.dataclass(frozen=True, slots=True)
class ChosenDisk:
    """A disk to capture."""

    path: Path
    model: str
    serial: str


def choose_source(source: str, target: str, system_paths: SystemPaths = SYSTEM_PATHS) -> ChosenDisk:
    """Return the disk that a capture names.

    Args:
        source: a path, or :data:`SOURCE_AUTO`.
        target: the agent's own target: ``auto`` means it if it is a path, and its rule chooses otherwise.
        system_paths: directories that describe the devices.

    Raises:
        SourceError: it isn't a disk, or ``auto`` fits none or several.
    """
    inventory = read_inventory(system_paths)
    if source == SOURCE_AUTO and not is_path(target):
        rule = parse_rule(target if target.startswith("auto") else "auto")
        disks = [disk for disk in inventory.disks() if rule.admits(disk)]
        if len(disks) != 1:
            found = ", ".join(str(disk.path) for disk in disks) or "none"
            raise SourceError(
                f"the disk to capture isn't clear (disks of this machine: {found}): name one with --source"
            )
        path = disks[0].path
    else:
        path = Path(target if source == SOURCE_AUTO else source)
    try:
        status = path.stat()
    except OSError as error:
        raise SourceError(
            f"{path}: can't open the source: {error.strerror}; name a disk with --source"
        ) from error
    if not stat.S_ISBLK(status.st_mode) and str(path) != target:
        # The daemon's operator names disks; a file of this machine's system is none of an image's business.
        raise SourceError(f"{path} isn't a disk: name a block device with --source")
    device = inventory.devices.get(status.st_rdev) if stat.S_ISBLK(status.st_mode) else None
    if device is None:
        return ChosenDisk(path, "", "")
    return ChosenDisk(path, device.model, next(iter(device.identity.serials), ""))


@contextlib.contextmanager
def claimed(path: Path, state_file: Path = STATE_FILE) -> Iterator[None]:
    """Claim a disk: no other program can mount or write it until the block is left.

    A file, which only tests and demonstrations capture, is only checked.

    Raises:
        SourceInUseError: it is mounted, or another program uses it.
        SourceError: it can't be opened, or its read-only flag can't be set.
    """
    status = path.stat()
    use = find_source_use(path, status)
    if use.may_change:
        where = (
            f"mounted writable at {', '.join(use.writable)}" if use.writable else "in use by another program"
        )
        raise SourceInUseError(f"{path} is {where}, so its content changes while it is read; {_IN_USE_FIX}")
    if not stat.S_ISBLK(status.st_mode):
        yield
        return
    try:
        # O_EXCL on a block device: the kernel refuses every mount, and every other exclusive user.
        fd = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise SourceInUseError(f"{path} is in use: {_IN_USE_FIX}") from error
        raise SourceError(f"{path}: can't open the source: {error.strerror}") from error
    try:
        with _read_only(fd, path, state_file):
            yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _read_only(fd: int, path: Path, state_file: Path) -> Iterator[None]:
    """Set the read-only flag of an open disk, and restore it afterwards."""
    if is_read_only(fd) and not _is_noted(fd, state_file):
        yield  # the operator's own flag, or the hardware's
        return
    try:
        state_file.write_text(_identity(fd))
        set_read_only(fd, read_only=True)
    except OSError as error:
        raise SourceError(
            f"{path}: can't make the disk read-only: {error.strerror}; run the agent as root"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the disk was removed
            set_read_only(fd, read_only=False)
        state_file.unlink(missing_ok=True)


def release_read_only(state_file: Path = STATE_FILE) -> None:
    """Clear the read-only flag of a disk that an agent set before it was killed; do nothing without one."""
    try:
        path = state_file.read_text().split(maxsplit=2)[2].rstrip("\n")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, IndexError):
        return
    try:
        if _is_noted(fd, state_file):
            set_read_only(fd, read_only=False)
            state_file.unlink(missing_ok=True)
    except OSError:
        pass  # it stays read-only, and the next write says so
    finally:
        os.close(fd)


def _is_noted(fd: int, state_file: Path) -> bool:
    try:
        return state_file.read_text() == _identity(fd)
    except OSError:
        return False


def _identity(fd: int) -> str:
    """Return number, sequence number and path of a disk; another one of this name has another sequence number."""
    number = os.fstat(fd).st_rdev
    sequence = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/diskseq")
    try:
        text = sequence.read_text().strip()
    except OSError:  # before Linux 5.15
        text = "-"
    return f"{number} {text} {Path(f'/proc/self/fd/{fd}').readlink()}\n"
