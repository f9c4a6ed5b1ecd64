"""A loop device over a range of an open disk or file, for tools that need a block device.

While a disk is held with ``O_EXCL``, its partitions' nodes can't be mounted or claimed, as intended. A loop device over
the held descriptor reaches the same bytes without releasing the disk or naming it again. ``losetup`` would open the
disk by name and knows no autoclear, so the ioctl is called here. Over a source that is packed, a loop device confines a
tool to one partition.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# linux/loop.h; LOOP_CONFIGURE is in Linux 5.8 and later.
_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4
_DIRECT_IO: Final = 16
_CONFIG: Final = struct.Struct("=II5Q4I64s64s32s2Q8Q")
"""``struct loop_config`` with the ``struct loop_info64`` inside it."""

_CONTROL: Final = Path("/dev/loop-control")
_ATTEMPTS_MAX: Final = 64
"""Attempts to get a device: another program may take a free one before it is configured."""
_RELEASE_WAIT_S: Final = 10.0
"""Time to wait for udev, which probes every new block device for a moment and so keeps it open."""


class LoopDeviceError(Exception):
    """No loop device is available, or flushing it failed; the message is the reason."""


@contextlib.contextmanager
def loop_device(
    fd: int, start_bytes: int, size_bytes: int, *, sector_bytes: int, name: str, writable: bool = True
) -> Iterator[Path]:
    """Provide a loop device over ``[start, start + size)`` of the file open on ``fd``; flush and remove it afterwards.

    The kernel removes it when its last user closes it, even if this process is killed.

    Args:
        fd: open for reading, and for writing if ``writable``.
        start_bytes: first byte.
        size_bytes: length.
        sector_bytes: logical sector size of the device, that of the disk.
        name: name that ``losetup`` shows as its file.
        writable: False for a source, which is read through the page cache as usual.

    Raises:
        LoopDeviceError: no loop device is available, or flushing it failed.
    """
    flags = _AUTOCLEAR | (_DIRECT_IO if writable else _READ_ONLY)
    config = _CONFIG.pack(
        fd,
        sector_bytes,
        *(0, 0, 0, start_bytes, size_bytes),
        *(0, 0, 0, flags),
        *(name.encode()[:63], b"", b""),
        *[0] * 10,
    )
    path, loop_fd = _attach(config, os.O_RDWR if writable else os.O_RDONLY)
    attached = _attachment(path)
    try:
        yield path
        try:
            os.fsync(loop_fd)
        except OSError as error:
            raise LoopDeviceError(f"flushing {path} failed: {error.strerror}") from error
    finally:
        os.close(loop_fd)
        _wait_for_release(path, attached)


def _attach(config: bytes, access: int) -> tuple[Path, int]:
    try:
        for _ in range(_ATTEMPTS_MAX):
            path = Path(f"/dev/loop{_free_number()}")
            loop_fd = os.open(path, access | os.O_CLOEXEC)
            try:
                fcntl.ioctl(loop_fd, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(loop_fd)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return path, loop_fd
    except OSError as error:
        raise LoopDeviceError(
            f"no loop device can be created over the disk: {error.strerror}; load the loop module (modprobe loop)"
        ) from error
    raise LoopDeviceError("no loop device is free: see losetup --list")


def _free_number() -> int:
    control_fd = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control_fd, _LOOP_CTL_GET_FREE)
    finally:
        os.close(control_fd)


def _attachment(path: Path) -> tuple[str, ...]:
    """Return the attributes of a loop device's file; empty if none is attached."""
    directory = Path("/sys/class/block", path.name, "loop")
    try:
        return tuple((directory / name).read_text() for name in ("backing_file", "offset", "sizelimit"))
    except OSError:  # no such attributes
        return ()


def _wait_for_release(path: Path, attached: tuple[str, ...]) -> None:
    """Wait briefly for a loop device that another program still probes: it keeps the disk claimed."""
    deadline_s = time.monotonic() + _RELEASE_WAIT_S
    while attached and _attachment(path) == attached and time.monotonic() < deadline_s:
        time.sleep(0.02)
