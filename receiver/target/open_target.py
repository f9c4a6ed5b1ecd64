"""Opening what a receiver writes, a file or a block device, and refusing what mustn't be written.

A refusal changes nothing: an existing file keeps its content, a new one isn't left behind, a device isn't touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import stat
from pathlib import Path

from protocol.errors import (
    TargetError,
    TargetInUseError,
    TargetIsImageError,
    TargetReadOnlyError,
)
from protocol.image.manifest import Manifest
from receiver.disk import syscalls
from receiver.disk.inventory.block_devices import (
    SYSTEM_PATHS,
    BlockDevice,
    DeviceIdentity,
    DiskInventory,
    SystemPaths,
    disk_sequence,
    read_inventory,
)
from receiver.disk.inventory.holders import find_others
from receiver.disk.inventory.mounts import device_number
from receiver.disk.read_back import open_read_back
from receiver.disk.target import Target, remove_created_file
from receiver.target.eligibility import (
    NOTHING_WRITTEN,
    ImageNeeds,
    Refusal,
    file_refusal,
    incompatibility,
    judge,
    needs_of,
    refuse_size,
    refuse_uses,
    with_candidates,
)

_DEVICES = Path("/dev")


def open_target(
    path: Path,
    *,
    raw_bytes: int,
    image_path: Path | None = None,
    expected: DeviceIdentity | None = None,
    sources: SystemPaths = SYSTEM_PATHS,
) -> Target:
    """Open ``path`` for an image of ``raw_bytes``; nothing on it is changed until :meth:`Target.prepare`.

    A missing file is created in an existing directory, an existing one is reused in place. A block device is judged by
    what the kernel says of it and then claimed: while anything else holds it or one of its partitions, the kernel
    refuses (open(2), O_EXCL). From then on everything goes by the one descriptor: whatever is plugged in under the
    same name later is another disk.

    Args:
        path: a regular file, a path where one can be made, or a block device.
        raw_bytes: size of the image.
        image_path: the image file where it is on this machine.
        expected: the device that was chosen, when something else than ``path`` chose it.
        sources: where the kernel tells of its devices.

    Raises:
        TargetIsImageError: it is the image itself, or the image lies on it.
        TargetIsSystemDiskError: this machine runs from it.
        TargetInUseError: it is mounted, or held in another way.
        TargetReadOnlyError: it is write-protected.
        TargetTooSmallError: the device is smaller than the image.
        TargetError: it can't be written, was replaced meanwhile, or is neither a file nor a block device.
        StorageError: it can't be read.
    """
    inventory = read_inventory(sources)
    try:
        return _open_judged(path, raw_bytes, image_path, expected, inventory, sources)
    except TargetError as error:
        if path.parent.is_relative_to(sources.dev) or device_number(str(path)) is not None:
            raise with_candidates(error, inventory, raw_bytes) from error
        raise
    except OSError as error:
        refused = TargetReadOnlyError if error.errno == errno.EROFS else TargetError
        raise refused(f"{path} can't be opened for writing: {_reason(error)}") from error


def require_compatible(target: Target, manifest: Manifest) -> None:
    """Refuse a target on which the image of ``manifest`` couldn't work although it has room for it.

    Raises:
        TargetIncompatibleError: the image counts in other sectors than the device has, isn't a whole number of them,
            or is a whole disk's while the target is a partition; nothing was written.
    """
    if target.is_device:
        _refuse(
            incompatibility(
                needs_of(manifest), target.path, target.sector_bytes, is_partition=target.is_partition
            )
        )


def _open_judged(
    path: Path,
    raw_bytes: int,
    image_path: Path | None,
    expected: DeviceIdentity | None,
    inventory: DiskInventory,
    sources: SystemPaths,
) -> Target:
    status = _status(path)
    device: BlockDevice | None = None
    if status is not None:
        _refuse_by_kind(path, status)
        if image_path is not None:
            _refuse_image_itself(path, status, image_path)
        if stat.S_ISBLK(status.st_mode):
            device = _judged(path, status, inventory, ImageNeeds(raw_bytes, path=image_path))
        else:
            _refuse(file_refusal(path, status, inventory))
    with contextlib.ExitStack() as undo:
        fd = _create(path) if status is None else _open_existing(path, status, inventory, sources)
        undo.callback(os.close, fd)
        if status is None:
            undo.callback(remove_created_file, path, fd)
        if device is not None:
            _keep_probes_away(fd)
            _require_identity(path, fd, expected or device.identity, sources)
        read_back = open_read_back(path, held_fd=fd)
        undo.callback(read_back.close)
        if not os.path.samestat(os.fstat(fd), os.fstat(read_back.fd)):
            raise _replaced(path)
        if read_back.is_device and syscalls.is_read_only(fd):
            raise TargetReadOnlyError(
                f"{path} is read-only: see blockdev --getro and its write protection; {NOTHING_WRITTEN}"
            )
        if read_back.is_device:
            _refuse(refuse_size(path, read_back.size_bytes, raw_bytes))
        target = Target(path, fd, read_back, raw_bytes=raw_bytes, created=status is None, device=device)
        undo.pop_all()
    return target


def _refuse(refusal: Refusal | None) -> None:
    if refusal is not None:
        raise refusal.error()


def _judged(
    path: Path, status: os.stat_result, inventory: DiskInventory, needs: ImageNeeds
) -> BlockDevice | None:
    """The device behind ``path`` by the kernel's name; None if the kernel tells nothing of it."""
    device = inventory.devices.get(status.st_rdev)
    if device is not None:
        device = dataclasses.replace(device, path=path)  # as the operator knows it
        _refuse(judge(device, inventory, needs))
    return device


def _require_identity(path: Path, fd: int, wanted: DeviceIdentity, sources: SystemPaths) -> None:
    """Refuse a device that isn't the one that was judged: unplugged meanwhile, and another one in its place."""
    device = read_inventory(sources).devices.get(os.fstat(fd).st_rdev)
    sequence = disk_sequence(fd)
    same_disk = sequence is None or wanted.disk_sequence is None or sequence == wanted.disk_sequence
    if device is None or device.identity != wanted or not same_disk:
        raise _replaced(path)


def _keep_probes_away(fd: int) -> None:
    """Ask udev not to look at the disk until it is closed; it looks then (systemd, "Locking Block Device Access").

    A probe reads through the page cache; where that happens at the very moment of a direct write, the kernel calls what
    is in there stale and the next flush failed (kiocb_invalidate_post_direct_write in mm/filemap.c).
    """
    with contextlib.suppress(OSError):  # somebody is looking right now
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _replaced(path: Path) -> TargetError:
    return TargetError(
        f"{path} was replaced while it was being opened: try again when nobody else uses it; {NOTHING_WRITTEN}"
    )


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _refuse_by_kind(path: Path, status: os.stat_result) -> None:
    mode = status.st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return
    kind = (
        "a directory"
        if stat.S_ISDIR(mode)
        else "a character device"
        if stat.S_ISCHR(mode)
        else "a pipe or socket"
    )
    raise TargetError(f"{path} is {kind}: name a regular file or a block device; {NOTHING_WRITTEN}")


def _refuse_image_itself(path: Path, status: os.stat_result, image_path: Path) -> None:
    image = image_path.stat()
    same_device = (
        stat.S_ISBLK(status.st_mode) and stat.S_ISBLK(image.st_mode) and status.st_rdev == image.st_rdev
    )
    if same_device or os.path.samestat(status, image):
        raise TargetIsImageError(
            f"{path} is the image file {image_path} itself: choose another target; {NOTHING_WRITTEN}"
        )


def _create(path: Path) -> int:
    parent = path.parent
    if not parent.is_dir():
        raise TargetError(
            f"{path} can't be created: there is no directory {parent}; make it first; {NOTHING_WRITTEN}"
        )
    # A mistyped disk name would fill the memory behind /dev with a file of that name.
    inside_devices = parent.resolve().is_relative_to(_DEVICES)
    if inside_devices and parent.stat().st_dev == _DEVICES.stat().st_dev:
        raise TargetError(f"there is no device {path}: name one that there is; {NOTHING_WRITTEN}")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _open_existing(path: Path, status: os.stat_result, inventory: DiskInventory, sources: SystemPaths) -> int:
    claim = os.O_EXCL if stat.S_ISBLK(status.st_mode) else 0
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | claim)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _in_use(path, status, inventory, sources) from error
        raise
    if not os.path.samestat(os.fstat(fd), status):
        os.close(fd)
        raise _replaced(path)
    return fd


def _in_use(
    path: Path, status: os.stat_result, inventory: DiskInventory, sources: SystemPaths
) -> TargetError:
    """The kernel says that something holds the device; sysfs didn't say what."""
    device = inventory.devices.get(status.st_rdev)
    others = find_others(dataclasses.replace(device, path=path), inventory, sources) if device else []
    refusal = refuse_uses(path, others) or Refusal(
        TargetInUseError,
        f"{path} is in use: another program or the kernel has claimed it",
        "see lsblk and fuser, release it, or choose another target",
    )
    return refusal.error()


def _reason(error: OSError) -> str:
    reasons = {
        errno.EACCES: "permission denied, or the device is read-only; run as root or see blockdev --getro",
        errno.EROFS: "the filesystem or the device is read-only",
        errno.ETXTBSY: "it is in use as a program or as swap",
        errno.ENOMEDIUM: "there is no medium in the drive",
    }
    known = reasons.get(error.errno or 0)
    return f"{known}; {NOTHING_WRITTEN}" if known else f"{error.strerror}; {NOTHING_WRITTEN}"
