"""Opening the target, a file or a block device, and refusing one that mustn't be written.

A refusal changes nothing: an existing file keeps its content, a new file is removed again, a device isn't touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
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
)
from receiver.disk.inventory.holders import find_other_holders
from receiver.disk.inventory.mounts import device_number
from receiver.disk.inventory.read_devices import disk_sequence, read_inventory
from receiver.disk.read_back import open_read_back
from receiver.disk.target import Target, remove_created_file
from receiver.target.eligibility import (
    NOTHING_WRITTEN,
    ImageNeeds,
    Refusal,
    file_refusal,
    image_needs,
    incompatibility,
    judge,
    refuse_size,
    refuse_uses,
    with_candidates,
)

_DEVICES = Path("/dev")
_SMALLEST_BYTES = 1
"""Size of the smallest image: what refuses it refuses every image."""


def open_target(
    path: Path,
    *,
    raw_bytes: int,
    image_path: Path | None = None,
    expected: DeviceIdentity | None = None,
    system_paths: SystemPaths = SYSTEM_PATHS,
) -> Target:
    """Open ``path`` for an image of ``raw_bytes``; nothing on it is changed until :meth:`Target.prepare`.

    A missing file is created in an existing directory, an existing file is reused in place. A block device is judged by
    its description in sysfs and then claimed: the kernel refuses while anything else holds the device or one of its
    partitions (open(2), O_EXCL). From then on all access uses this descriptor, so a disk that is plugged in later under
    the same name can't be mistaken for it.

    Args:
        path: a regular file, a path where one can be created, or a block device.
        raw_bytes: size of the image.
        image_path: the image file, if it is on this machine.
        expected: identity of the chosen device, if a selector other than a path chose it.
        system_paths: directories that describe the devices.

    Raises:
        TargetIsImageError: it is the image itself, or holds the image.
        TargetIsSystemDiskError: this machine runs from it.
        TargetInUseError: it is mounted or otherwise held.
        TargetReadOnlyError: it is write-protected.
        TargetTooSmallError: the device is smaller than the image.
        TargetError: it can't be written, was replaced while opening it, or is neither a file nor a block device.
        StorageError: it can't be read.
    """
    inventory = read_inventory(system_paths)
    with _explained(path, raw_bytes, inventory, system_paths):
        return _open_eligible(path, raw_bytes, image_path, expected, inventory, system_paths)


def refuse_unwritable(path: Path, *, system_paths: SystemPaths = SYSTEM_PATHS) -> None:
    """Refuse a target that no image can be written to, whatever its size; the target isn't opened.

    Raises:
        TargetError, StorageError: as :func:`open_target` raises.
    """
    inventory = read_inventory(system_paths)
    with _explained(path, _SMALLEST_BYTES, inventory, system_paths):
        _judge(path, _status(path), ImageNeeds(_SMALLEST_BYTES), inventory)


@contextlib.contextmanager
def _explained(
    path: Path, raw_bytes: int, inventory: DiskInventory, system_paths: SystemPaths
) -> Iterator[None]:
    """Add the disks that would be possible to the refusal of a device, and a fix to errors of the system."""
    try:
        yield
    except TargetError as error:
        if path.parent.is_relative_to(system_paths.dev) or device_number(str(path)) is not None:
            raise with_candidates(error, inventory, raw_bytes) from error
        raise
    except OSError as error:
        refused = TargetReadOnlyError if error.errno == errno.EROFS else TargetError
        raise refused(f"{path} can't be opened for writing: {_reason(error)}") from error


def _judge(
    path: Path, status: os.stat_result | None, needs: ImageNeeds, inventory: DiskInventory
) -> BlockDevice | None:
    """Return the block device at ``path``, None for a file that exists or can be created; refuse all else."""
    if status is None:
        _refuse_new(path)
        return None
    _refuse_by_kind(path, status)
    if needs.path is not None:
        _refuse_image_itself(path, status, needs.path)
    if stat.S_ISBLK(status.st_mode):
        return _judge_device(path, status, inventory, needs)
    _refuse(file_refusal(path, status, inventory))
    return None


def require_compatible(target: Target, manifest: Manifest) -> None:
    """Refuse a target that is large enough but on which the image of ``manifest`` couldn't work.

    Raises:
        TargetIncompatibleError: the image counts in sectors of another size, isn't a whole number of the device's
            sectors, or is of a whole disk while the target is a partition; nothing was written.
    """
    if target.is_device:
        _refuse(
            incompatibility(
                image_needs(manifest), target.path, target.sector_bytes, is_partition=target.is_partition
            )
        )


def _open_eligible(
    path: Path,
    raw_bytes: int,
    image_path: Path | None,
    expected: DeviceIdentity | None,
    inventory: DiskInventory,
    system_paths: SystemPaths,
) -> Target:
    status = _status(path)
    device = _judge(path, status, ImageNeeds(raw_bytes, path=image_path), inventory)
    with contextlib.ExitStack() as undo:
        fd = _create(path) if status is None else _open_existing(path, status, inventory, system_paths)
        undo.callback(os.close, fd)
        if device is not None:
            _lock_out_udev(fd)
            _require_identity(path, fd, expected or device.identity, system_paths)
        elif stat.S_ISREG(os.fstat(fd).st_mode):
            _lock_file(path, fd)
        if status is None:
            # Only now: until it is locked, another agent may have opened and locked it.
            undo.callback(remove_created_file, path, fd)
        read_back = open_read_back(path, held_fd=fd)
        undo.callback(read_back.close)
        if not os.path.samestat(os.fstat(fd), os.fstat(read_back.fd)):
            raise _replaced(path)
        if read_back.is_device and syscalls.is_read_only(fd):
            raise TargetReadOnlyError(
                f"{path} is read-only: check blockdev --getro and its write protection; {NOTHING_WRITTEN}"
            )
        if read_back.is_device:
            _refuse(refuse_size(path, read_back.size_bytes, raw_bytes))
        target = Target(path, fd, read_back, raw_bytes=raw_bytes, created=status is None, device=device)
        undo.pop_all()
    return target


def _refuse(refusal: Refusal | None) -> None:
    if refusal is not None:
        raise refusal.error()


def _judge_device(
    path: Path, status: os.stat_result, inventory: DiskInventory, needs: ImageNeeds
) -> BlockDevice | None:
    """Return the device at ``path`` if it is eligible; None if the kernel doesn't describe it.

    Raises:
        TargetError: it is refused.
    """
    device = inventory.devices.get(status.st_rdev)
    if device is not None:
        device = dataclasses.replace(device, path=path)  # the name that the operator used
        _refuse(judge(device, inventory, needs))
    return device


def _require_identity(path: Path, fd: int, wanted: DeviceIdentity, system_paths: SystemPaths) -> None:
    """Refuse a device that isn't the judged one: that was unplugged, and another took its name."""
    device = read_inventory(system_paths).devices.get(os.fstat(fd).st_rdev)
    sequence = disk_sequence(fd)
    same_disk = sequence is None or wanted.disk_sequence is None or sequence == wanted.disk_sequence
    if device is None or device.identity != wanted or not same_disk:
        raise _replaced(path)


def _lock_out_udev(fd: int) -> None:
    """Keep udev from probing the disk until it is closed (systemd, "Locking Block Device Access").

    A probe reads through the page cache. If it coincides with a direct write, the kernel finds stale pages there and
    fails the next flush (kiocb_invalidate_post_direct_write in mm/filemap.c).
    """
    with contextlib.suppress(OSError):  # a probe is running right now
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_file(path: Path, fd: int) -> None:
    """Claim a file until it is closed, as the kernel claims a device: two agents would mix their images in it.

    Raises:
        TargetInUseError: another program has locked it.
        TargetError: the file that was opened was removed before it was locked.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TargetInUseError(
            f"{path} is locked by another program, probably an agent that writes it: stop that, or choose another "
            f"target; {NOTHING_WRITTEN}"
        ) from error
    except OSError as error:
        # Some network filesystems have no locks; operators who use them as targets keep agents apart themselves.
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    found = _status(path)
    if found is None or not os.path.samestat(found, os.fstat(fd)):
        raise _replaced(path)


def _replaced(path: Path) -> TargetError:
    return TargetError(
        f"{path} was replaced while it was being opened: try again when nothing else uses it; {NOTHING_WRITTEN}"
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


def _refuse_new(path: Path) -> None:
    parent = path.parent
    if not parent.is_dir():
        raise TargetError(
            f"{path} can't be created: there is no directory {parent}; create it first; {NOTHING_WRITTEN}"
        )
    # A mistyped disk name would create a file in /dev, which is kept in memory.
    inside_devices = parent.resolve().is_relative_to(_DEVICES)
    if inside_devices and parent.stat().st_dev == _DEVICES.stat().st_dev:
        raise TargetError(f"there is no device {path}: name an existing one; {NOTHING_WRITTEN}")


def _create(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError as error:
        raise _replaced(path) from error


def _open_existing(
    path: Path, status: os.stat_result, inventory: DiskInventory, system_paths: SystemPaths
) -> int:
    claim = os.O_EXCL if stat.S_ISBLK(status.st_mode) else 0
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | claim)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _in_use(path, status, inventory, system_paths) from error
        raise
    if not os.path.samestat(os.fstat(fd), status):
        os.close(fd)
        raise _replaced(path)
    return fd


def _in_use(
    path: Path, status: os.stat_result, inventory: DiskInventory, system_paths: SystemPaths
) -> TargetError:
    """Return the error for a device that the kernel calls busy although sysfs shows no holder."""
    device = inventory.devices.get(status.st_rdev)
    others = (
        find_other_holders(dataclasses.replace(device, path=path), inventory, system_paths) if device else []
    )
    refusal = refuse_uses(path, others) or Refusal(
        TargetInUseError,
        f"{path} is in use: another program or the kernel has claimed it",
        "find it with lsblk or fuser and release it, or choose another target",
    )
    return refusal.error()


def _reason(error: OSError) -> str:
    reasons = {
        errno.EACCES: "permission denied, or the device is read-only; run as root or check blockdev --getro",
        errno.EROFS: "the filesystem or the device is read-only",
        errno.ETXTBSY: "it is in use as a program or as swap",
        errno.ENOMEDIUM: "there is no medium in the drive",
    }
    known = reasons.get(error.errno or 0)
    return f"{known}; {NOTHING_WRITTEN}" if known else f"{error.strerror}; {NOTHING_WRITTEN}"
