"""Linux calls on files and block devices that Python's ``os`` doesn't provide; all raise ``OSError`` as it does."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from typing import Final

# linux/fs.h and linux/falloc.h
_BLKROSET: Final = 0x125D
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
# musl has only the 64-bit call, under the plain name.
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
# Missing in glibc before 2.28 and in musl before 1.2.
_statx = getattr(_libc, "statx", None)
if _statx is not None:
    _statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)


def _raise_errno() -> None:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))


def punch_hole(fd: int, offset_bytes: int, length_bytes: int) -> None:
    """Turn a range of a file into a hole; the file size stays (fallocate(2)).

    Raises:
        OSError: EOPNOTSUPP if the filesystem has no holes.
    """
    if _fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset_bytes, length_bytes) != 0:
        _raise_errno()


def start_writeback(fd: int, offset_bytes: int, length_bytes: int) -> None:
    """Start writing the dirty pages of a range without waiting for them (sync_file_range(2)).

    This promises nothing about durability; it only shortens the next flush.
    """
    if _sync_file_range(fd, offset_bytes, length_bytes, _SYNC_FILE_RANGE_WRITE) != 0:
        _raise_errno()


def wait_for_writeback(fd: int, offset_bytes: int, length_bytes: int) -> None:
    """Wait for the writeback of a range that :func:`start_writeback` started (sync_file_range(2)).

    This promises nothing about durability; it only bounds the dirty memory.

    Raises:
        OSError: writing failed. The kernel reports that once: the next flush may "succeed".
    """
    if _sync_file_range(fd, offset_bytes, length_bytes, _SYNC_FILE_RANGE_WAIT_BEFORE) != 0:
        _raise_errno()


def zero_file_range(fd: int, offset_bytes: int, length_bytes: int) -> None:
    """Make a range of a file read as zeros, allocated but not written; the file size stays (fallocate(2)).

    Raises:
        OSError: EOPNOTSUPP if the filesystem doesn't support it.
    """
    if _fallocate(fd, _FALLOC_FL_ZERO_RANGE | _FALLOC_FL_KEEP_SIZE, offset_bytes, length_bytes) != 0:
        _raise_errno()


def discard(fd: int, offset_bytes: int, length_bytes: int) -> None:
    """Discard a range of a block device; both ends on sector boundaries.

    Reads of the range are undefined afterwards.

    Raises:
        OSError: EOPNOTSUPP if the device doesn't discard.
    """
    fcntl.ioctl(fd, _BLKDISCARD, struct.pack("QQ", offset_bytes, length_bytes))


def direct_alignment_bytes(fd: int) -> int | None:
    """Return the alignment that direct transfers need (statx(2), Linux 6.1 and later).

    Returns:
        The larger of the memory and offset alignments; 0 if direct transfers aren't supported, None if unknown.
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
    """Zero a range of a block device, by the device's own command if it has one; both ends on sector boundaries.

    The kernel drops the range from the page cache and waits for the device.
    """
    fcntl.ioctl(fd, _BLKZEROOUT, struct.pack("QQ", offset_bytes, length_bytes))


def logical_sector_bytes(fd: int) -> int:
    """Return the smallest unit that a block device can address."""
    value: int = struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0]
    return value


def is_read_only(fd: int) -> bool:
    """Return whether a block device refuses writes; a read-only loop device still opens for writing."""
    return bool(struct.unpack("i", fcntl.ioctl(fd, _BLKROGET, bytes(4)))[0])


def set_read_only(fd: int, *, read_only: bool) -> None:
    """Set or clear the read-only flag of a block device, and so of its partitions; needs CAP_SYS_ADMIN.

    A program that has the device open for writing isn't stopped.
    """
    fcntl.ioctl(fd, _BLKROSET, struct.pack("i", read_only))


def next_data(fd: int, offset_bytes: int) -> int | None:
    """Return the first byte at or after ``offset_bytes`` that isn't in a hole; None if only holes follow.

    A filesystem that doesn't know its holes reports only data.
    """
    try:
        return os.lseek(fd, offset_bytes, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def next_hole(fd: int, offset_bytes: int) -> int:
    """Return the first byte at or after ``offset_bytes``, which is inside the file, that is in a hole.

    The end of the file counts as a hole.
    """
    return os.lseek(fd, offset_bytes, os.SEEK_HOLE)
