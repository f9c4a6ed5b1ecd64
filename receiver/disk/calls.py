"""Linux calls on files and block devices that Python's ``os`` doesn't have; each raises ``OSError`` as ``os`` does."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from typing import Final

# linux/fs.h and linux/falloc.h
_BLKROGET: Final = 0x125E
_BLKSSZGET: Final = 0x1268
_BLKZEROOUT: Final = 0x127F
_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2
_SYNC_FILE_RANGE_WRITE: Final = 2

_libc = ctypes.CDLL(None, use_errno=True)
# musl has only the 64-bit one and calls it by the plain name.
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def _raise_errno() -> None:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))


def punch_hole(fd: int, offset_bytes: int, length_bytes: int) -> None:
    """Make a range of a file a hole; its size stays (fallocate(2)).

    Raises:
        OSError: EOPNOTSUPP where the filesystem has no holes.
    """
    if _fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset_bytes, length_bytes) != 0:
        _raise_errno()


def start_writeback(fd: int, offset_bytes: int, length_bytes: int) -> None:
    """Start writing a range's dirty pages without waiting for them (sync_file_range(2)).

    It promises nothing about durability; it only makes the next flush short.
    """
    if _sync_file_range(fd, offset_bytes, length_bytes, _SYNC_FILE_RANGE_WRITE) != 0:
        _raise_errno()


def zero_out(fd: int, offset_bytes: int, length_bytes: int) -> None:
    """Zero a range of a block device, by its own command where it has one; both ends on sector boundaries.

    The kernel drops the range from the page cache and waits for the device.
    """
    fcntl.ioctl(fd, _BLKZEROOUT, struct.pack("QQ", offset_bytes, length_bytes))


def logical_sector_bytes(fd: int) -> int:
    """Smallest unit that a block device can address."""
    value: int = struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0]
    return value


def is_read_only(fd: int) -> bool:
    """Whether a block device refuses writes; a loop device, for one, is opened for writing all the same."""
    return bool(struct.unpack("i", fcntl.ioctl(fd, _BLKROGET, bytes(4)))[0])


def next_data(fd: int, offset_bytes: int) -> int | None:
    """First byte at or after ``offset_bytes`` that isn't in a hole; None when there is none up to the end.

    A filesystem that can't tell calls everything data.
    """
    try:
        return os.lseek(fd, offset_bytes, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def next_hole(fd: int, offset_bytes: int) -> int:
    """First byte at or after ``offset_bytes`` (which must be inside the file) that is in a hole; the end is one."""
    return os.lseek(fd, offset_bytes, os.SEEK_HOLE)
