"""A directory served through /dev/fuse by a program between a target and its storage.

The kernel's own protocol (linux/fuse.h), no library: one flat directory of regular files. Requests that touch data
(READ, WRITE, FSYNC, and what makes holes or another size) go one after the other through a :class:`DataPath`, in a
thread of their own, as through a disk; everything else is answered at once. Needs root.

Files may be cached: what was written is in the page cache as well as on the storage, and a plain read is answered from
there, as with a real disk. Opened with O_DIRECT, reads and writes come here.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import os
import queue
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Protocol


class Opcode(enum.IntEnum):
    """Requests that are served; others get ENOSYS, which the kernel remembers."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    UNLINK = 10
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    CREATE = 35
    INTERRUPT = 36
    BATCH_FORGET = 42
    FALLOCATE = 43
    LSEEK = 46


_NO_ANSWER: Final = frozenset({Opcode.FORGET, Opcode.INTERRUPT, Opcode.BATCH_FORGET})
_DATA: Final = frozenset({Opcode.READ, Opcode.WRITE, Opcode.FSYNC, Opcode.FALLOCATE, Opcode.SETATTR})

_IN_HEADER: Final = struct.Struct("<IIQQ16x")
_OUT_HEADER: Final = struct.Struct("<IiQ")
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHHI28x")
_ATTRIBUTES: Final = struct.Struct("<6Q10I")
_ATTRIBUTES_OUT: Final = struct.Struct("<QII")
_ENTRY_OUT: Final = struct.Struct("<QQQQII")
_OPEN_OUT: Final = struct.Struct("<QII")
_SETATTR_IN: Final = struct.Struct("<IIQQ")
_IO_IN: Final = struct.Struct("<QQI20x")
_FALLOCATE_IN: Final = struct.Struct("<QQQII")
_STATFS_OUT: Final = struct.Struct("<5QIIII24x")
_DIRENT: Final = struct.Struct("<QQII")
_WORD: Final = struct.Struct("<Q")
_PAIR: Final = struct.Struct("<II")

_MAJOR, _MINOR = 7, 31
_FLAGS: Final = 1 << 0 | 1 << 5 | 1 << 22  # ASYNC_READ, BIG_WRITES, MAX_PAGES
_WRITE_BYTES_MAX: Final = 1 << 20
_PAGE_BYTES: Final = 4096
_REQUEST_BYTES_MAX: Final = _WRITE_BYTES_MAX + (64 << 10)
_CHANGE_SIZE: Final = 1 << 3
_CREATE_MODE: Final = 0o644
_VALID_S: Final = 1
_ROOT_ID: Final = 1
_MS_NOSUID, _MS_NODEV = 2, 4
_MNT_DETACH: Final = 2
_HOLE_MODES: Final = frozenset({0x03, 0x11})
"""Modes of fallocate(2) that make zeros: PUNCH_HOLE and ZERO_RANGE, both with KEEP_SIZE."""
_OPEN_FLAGS_DROPPED: Final = os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_DIRECT | os.O_APPEND
"""Flags that the kernel has handled itself; our own reads and writes needn't be aligned."""

_libc = ctypes.CDLL(None, use_errno=True)


class DataPath(Protocol):
    """The layer in front of the storage: it may wait, raise ``OSError``, or do less than requested."""

    def read(self, fd: int, offset_bytes: int, length: int) -> bytes:
        """Return the content of the range."""

    def write(self, fd: int, offset_bytes: int, data: memoryview) -> int:
        """Write and return the bytes written."""

    def punch(self, fd: int, offset_bytes: int, length_bytes: int) -> None:
        """Turn the range into a hole; the file size stays."""

    def truncate(self, path: Path, size_bytes: int) -> None:
        """Set the size of the storage's file ``path``."""

    def flush(self, fd: int) -> None:
        """Flush all writes to the storage."""

    def configure(self, text: bytes) -> None:
        """Take a new value of the directory's extended attribute; ``OSError`` refuses it."""

    def describe(self) -> bytes:
        """Return the value of the extended attribute."""


class _Request(NamedTuple):
    opcode: int
    unique: int
    node_id: int
    body: memoryview


class FuseServer:
    """A server of ``storage`` at ``mountpoint`` through ``path``, until it is unmounted.

    Args:
        attribute: extended attribute of the mounted directory by which ``path`` is configured and asked.

    Raises:
        OSError: it can't be mounted.
    """

    def __init__(self, storage: Path, mountpoint: Path, path: DataPath, attribute: str) -> None:
        self._storage = storage
        self._path = path
        self._attribute = attribute
        self._names: dict[int, str] = {}
        self._data_requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._answers: dict[int, Callable[[_Request], bytes]] = {
            Opcode.INIT: self._init,
            Opcode.LOOKUP: lambda request: self._entry(_name(request.body)),
            Opcode.GETATTR: self._get_attributes,
            Opcode.SETATTR: self._set_attributes,
            Opcode.CREATE: self._create,
            Opcode.OPEN: self._open,
            Opcode.RELEASE: self._release,
            Opcode.UNLINK: self._unlink,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.FSYNC: self._flush,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.LSEEK: self._seek,
            Opcode.STATFS: self._filesystem,
            Opcode.OPENDIR: lambda _request: _OPEN_OUT.pack(0, 0, 0),
            Opcode.READDIR: self._list,
            Opcode.RELEASEDIR: lambda _request: b"",
            Opcode.SETXATTR: self._configure,
            Opcode.GETXATTR: self._describe,
        }
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        source, target = b"diskcast-lab", os.fsencode(mountpoint)
        if _libc.mount(source, target, b"fuse", _MS_NOSUID | _MS_NODEV, options.encode()):
            code = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(code, os.strerror(code), str(mountpoint))

    def serve(self) -> None:
        """Answer requests until the directory is unmounted."""
        threading.Thread(target=self._serve_data, name="disk", daemon=True).start()
        buffer = bytearray(_REQUEST_BYTES_MAX)
        while True:
            try:
                length = os.readv(self._fd, [buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    break
                if error.errno in (
                    errno.ENOENT,
                    errno.EINTR,
                ):  # the caller was interrupted before we read its request
                    continue
                raise
            _, opcode, unique, node_id = _IN_HEADER.unpack_from(buffer)
            request = _Request(opcode, unique, node_id, memoryview(buffer)[_IN_HEADER.size : length])
            if opcode in _DATA:
                self._data_requests.put(request)
                buffer = bytearray(_REQUEST_BYTES_MAX)
            else:
                self._serve_one(request)
        self._data_requests.put(None)
        os.close(self._fd)

    def _serve_data(self) -> None:
        while (request := self._data_requests.get()) is not None:
            self._serve_one(request)

    def _serve_one(self, request: _Request) -> None:
        if request.opcode in _NO_ANSWER:
            return
        payload, code = b"", errno.ENOSYS
        if answer := self._answers.get(request.opcode):
            try:
                payload, code = answer(request), 0
            except OSError as error:
                code = error.errno or errno.EIO
        header = _OUT_HEADER.pack(_OUT_HEADER.size + len(payload), -code, request.unique)
        with contextlib.suppress(OSError):  # the caller was interrupted, or the directory unmounted
            os.writev(self._fd, [header, payload])

    # -- files ------------------------------------------------------------------------------------------------------

    def _init(self, _request: _Request) -> bytes:
        pages = _WRITE_BYTES_MAX // _PAGE_BYTES
        return _INIT_OUT.pack(
            _MAJOR, _MINOR, _WRITE_BYTES_MAX, _FLAGS, 16, 12, _WRITE_BYTES_MAX, 1, pages, 0, 0
        )

    def _file(self, node_id: int) -> Path:
        if node_id == _ROOT_ID:
            return self._storage
        return self._storage / self._names[node_id]

    def _entry(self, name: str) -> bytes:
        status = (self._storage / name).stat()
        # The storage's own inode numbers, moved away from the root's.
        node_id = status.st_ino + _ROOT_ID
        self._names[node_id] = name
        return _ENTRY_OUT.pack(node_id, 0, _VALID_S, _VALID_S, 0, 0) + _attributes(status)

    def _get_attributes(self, request: _Request) -> bytes:
        status = self._file(request.node_id).stat()
        return _ATTRIBUTES_OUT.pack(_VALID_S, 0, 0) + _attributes(status)

    def _set_attributes(self, request: _Request) -> bytes:
        changes, _, _, size_bytes = _SETATTR_IN.unpack_from(request.body)
        if changes & _CHANGE_SIZE:
            self._path.truncate(self._file(request.node_id), size_bytes)
        return self._get_attributes(request)

    def _create(self, request: _Request) -> bytes:
        (flags,) = struct.unpack_from("<I", request.body)
        name = _name(request.body[16:])
        exclusive = os.O_CREAT | flags & os.O_EXCL
        handle = os.open(self._storage / name, flags & ~_OPEN_FLAGS_DROPPED | exclusive, _CREATE_MODE)
        return self._entry(name) + _OPEN_OUT.pack(handle, 0, 0)

    def _open(self, request: _Request) -> bytes:
        flags, _ = _PAIR.unpack_from(request.body)
        handle = os.open(self._file(request.node_id), flags & ~_OPEN_FLAGS_DROPPED)
        return _OPEN_OUT.pack(handle, 0, 0)

    def _release(self, request: _Request) -> bytes:
        os.close(_handle(request))
        return b""

    def _unlink(self, request: _Request) -> bytes:
        (self._storage / _name(request.body)).unlink()
        return b""

    def _read(self, request: _Request) -> bytes:
        return self._path.read(*_IO_IN.unpack_from(request.body))

    def _write(self, request: _Request) -> bytes:
        handle, offset_bytes, length = _IO_IN.unpack_from(request.body)
        data = request.body[_IO_IN.size : _IO_IN.size + length]
        return _PAIR.pack(self._path.write(handle, offset_bytes, data), 0)

    def _flush(self, request: _Request) -> bytes:
        self._path.flush(_handle(request))
        return b""

    def _fallocate(self, request: _Request) -> bytes:
        handle, offset_bytes, length, mode, _ = _FALLOCATE_IN.unpack_from(request.body)
        if mode not in _HOLE_MODES:
            raise OSError(errno.EOPNOTSUPP, "only holes are made")
        self._path.punch(handle, offset_bytes, length)
        return b""

    def _seek(self, request: _Request) -> bytes:
        handle, offset_bytes, whence, _ = struct.unpack_from("<QQII", request.body)
        return _WORD.pack(os.lseek(handle, offset_bytes, whence))

    def _filesystem(self, _request: _Request) -> bytes:
        found = os.statvfs(self._storage)
        counts = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
        return _STATFS_OUT.pack(*counts, found.f_bsize, found.f_namemax, found.f_frsize, 0)

    def _list(self, request: _Request) -> bytes:
        _, offset, room = _IO_IN.unpack_from(request.body)
        listing = b""
        for place, entry in enumerate(sorted(os.scandir(self._storage), key=lambda entry: entry.name)):
            name = os.fsencode(entry.name)
            row = _DIRENT.pack(entry.inode() + _ROOT_ID, place + 1, len(name), stat.S_IFREG >> 12) + name
            row += bytes(-len(row) % 8)
            if place >= offset and len(listing) + len(row) <= room:
                listing += row
        return listing

    # -- configuration ----------------------------------------------------------------------------------------------

    def _configure(self, request: _Request) -> bytes:
        length, _ = _PAIR.unpack_from(request.body)
        name, value = bytes(request.body[_PAIR.size :]).split(b"\0", 1)
        if request.node_id != _ROOT_ID or name.decode() != self._attribute:
            raise OSError(errno.EOPNOTSUPP, "no such attribute")
        self._path.configure(value[:length])
        return b""

    def _describe(self, request: _Request) -> bytes:
        room, _ = _PAIR.unpack_from(request.body)
        if request.node_id != _ROOT_ID or _name(request.body[_PAIR.size :]) != self._attribute:
            raise OSError(errno.ENODATA, "no such attribute")
        value = self._path.describe()
        if room == 0:
            return _PAIR.pack(len(value), 0)
        if len(value) > room:
            raise OSError(errno.ERANGE, "more than was asked for")
        return value


def unmount(mountpoint: Path) -> None:
    """Unmount the directory, even if programs use it or its server has died."""
    if _libc.umount2(os.fsencode(mountpoint), _MNT_DETACH):
        code = ctypes.get_errno()
        if code != errno.EINVAL:  # it isn't mounted
            raise OSError(code, os.strerror(code), str(mountpoint))


def _name(body: memoryview) -> str:
    return os.fsdecode(bytes(body).split(b"\0", 1)[0])


def _handle(request: _Request) -> int:
    (handle,) = _WORD.unpack_from(request.body)
    return int(handle)


def _attributes(status: os.stat_result) -> bytes:
    times = [divmod(at_ns, 10**9) for at_ns in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)]
    inode = status.st_ino + _ROOT_ID
    return _ATTRIBUTES.pack(
        inode,
        status.st_size,
        status.st_blocks,
        *(seconds for seconds, _ in times),
        *(nanoseconds for _, nanoseconds in times),
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        0,
        _PAGE_BYTES,
        0,
    )
