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
_BLKDISCARD: Final = 0x1277
_BLKZEROOUT: Final = 0x127F
_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2
_FALLOC_FL_ZERO_RANGE: Final = 16
_SYNC_FILE_RANGE_WAIT_BEFORE: Final = 1
_SYNC_FILE_RANGE_WRITE: Final = 2
# linux/stat.h; the structure has 256 bytes
_AT_EMPTY_PATH: Final = 0x1000
_STATX_DIOALIGN: Final = 0x2000
_STATX_BYTES: Final = 256
_STATX_DIO_ALIGN_OFFSET: Final = 152

_libc = ctypes.CDLL(None, use_errno=True)
# musl has only the 64-bit one and calls it by the plain name.
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
# Not in glibc before 2.28 nor in musl before 1.2.
_statx = getattr(_libc, "statx", None)
if _statx is not None:
    _statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)


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


def wait_for_writeback(fd: int, offset_bytes: int, length_bytes: int) -> None:
    """Wait until those pages of a range whose writing was started are written (sync_file_range(2)).

    It promises nothing about durability; it only bounds what is dirty.

    Raises:
        OSError: writing them failed. The kernel reports that once: the next flush may "succeed".
    """
    if _sync_file_range(fd, offset_bytes, length_bytes, _SYNC_FILE_RANGE_WAIT_BEFORE) != 0:
        _raise_errno()


def zero_file_range(fd: int, offset_bytes: int, length_bytes: int) -> None:
    """Make a range of a file read as zeros, allocated but not written; its size stays (fallocate(2)).

    Raises:
        OSError: EOPNOTSUPP where the filesystem can't.
    """
    if _fallocate(fd, _FALLOC_FL_ZERO_RANGE | _FALLOC_FL_KEEP_SIZE, offset_bytes, length_bytes) != 0:
        _raise_errno()


def discard(fd: int, offset_bytes: int, length_bytes: int) -> None:
    """Tell a block device that nobody needs what is in a range; both ends on sector boundaries.

    What is read there afterwards is undefined.

    Raises:
        OSError: EOPNOTSUPP where the device doesn't care.
    """
    fcntl.ioctl(fd, _BLKDISCARD, struct.pack("QQ", offset_bytes, length_bytes))


def direct_alignment_bytes(fd: int) -> int | None:
    """Alignment of direct transfers of a file or block device as the kernel tells it (statx(2), Linux 6.1 and later).

    Returns:
        The larger one of memory's and offset's; 0: there are no direct transfers here; None: it isn't told.
    """
    if _statx is None:
        return None
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if _statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, buffer) != 0:
        return None
    (mask,) = struct.unpack_from("=I", buffer)
    memory_bytes, offset_bytes = struct.unpack_from("=II", buffer, _STATX_DIO_ALIGN_OFFSET)
    return max(memory_bytes, offset_bytes) if mask & _STATX_DIOALIGN else None


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
