"""Supervision of a confined tool's accesses to one file: a range exists before the tool reads or writes it.

A tool that edits a filesystem wants a file or a device, and reads a few blocks of it. With a watch the file starts as a
hole; the kernel stops the tool at each access (seccomp user notification, Linux 5.5), the watch provides the range, and
the tool continues. That works without privilege, a mount or a device node, also where a service has none of them. It
fills in content and protects nothing: the sandbox does, and a tool that bypassed the watch would read zeros.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from protocol.program.system_call_filter import WatchedCall, watched_numbers

# linux/seccomp.h
_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")
_RESPONSE: Final = struct.Struct("=QqiI")
_CONTINUE: Final = 1
_OFFSET_MAX: Final = 1 << 62
_SEEK_DATA: Final = 3
_AT_POSITION: Final = frozenset({WatchedCall.READ, WatchedCall.WRITE})
_AT_OFFSET: Final = frozenset({WatchedCall.PREAD64, WatchedCall.PWRITE64})

Provide = Callable[[int, int], None]
"""Makes ``[offset, offset + length)`` exist in the file; a range may reach beyond its end, or be there already."""


@dataclasses.dataclass(frozen=True, slots=True)
class WatchedFile:
    """A file whose content is provided while a tool accesses it.

    Attributes:
        fd: the file, open for reading and writing.
        provide: called in a thread, one call at a time; its error ends the tool's access and is raised by the watch.
    """

    fd: int
    provide: Provide


class FileWatch:
    """The watch of one run of a tool; leave the context after the tool's end."""

    def __init__(self, files: tuple[WatchedFile, ...]) -> None:
        self._files = {_identity(os.fstat(file.fd)): file.provide for file in files}
        self._calls = {number: call for call, number in watched_numbers().items()}
        self._ours, theirs = socket.socketpair()
        self._theirs = theirs
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._serve, name="file-watch", daemon=True)

    @property
    def fd(self) -> int:
        """The descriptor that the tool's launcher inherits, over which it passes its listener."""
        return self._theirs.fileno()

    def raise_error(self) -> None:
        """Raise the error for which an access of the tool failed, if there was one: the tool's own is a consequence."""
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._theirs.close()  # ends a thread whose tool never started
        self._thread.join()
        self._ours.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            _, fds, _, _ = socket.recv_fds(self._ours, 1, 1)
            for listener_fd in fds:
                try:
                    self._answer_all(listener_fd)
                finally:
                    os.close(listener_fd)

    def _answer_all(self, listener_fd: int) -> None:
        poll = select.poll()
        poll.register(listener_fd, select.POLLIN)
        poll.register(self._ours, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if not ready.get(listener_fd, 0) & select.POLLIN:
                return  # the tool exited, or was given up
            notification = bytearray(_NOTIFICATION.size)  # the kernel wants zeros
            try:
                fcntl.ioctl(listener_fd, _RECEIVE, notification)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):  # the tool was killed meanwhile
                    continue
                raise
            identity, process_id, _, number, _, _, *arguments = _NOTIFICATION.unpack(notification)
            code = self._handle(process_id, self._calls.get(number), arguments)
            response = _RESPONSE.pack(identity, 0, -code, 0 if code else _CONTINUE)
            try:
                fcntl.ioctl(listener_fd, _SEND, response)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise

    def _handle(self, process_id: int, call: WatchedCall | None, arguments: list[int]) -> int:
        """Return the error number that a call gets; 0 lets it continue."""
        place = 4 if call is WatchedCall.MMAP else 0
        descriptor = arguments[place] & 0xFFFFFFFF
        try:
            provide = self._files.get(_identity(Path(f"/proc/{process_id}/fd/{descriptor}").stat()))
            if provide is None:
                return 0
            if call in _AT_OFFSET:
                offset = arguments[3]
            elif call in _AT_POSITION:
                offset = _position(process_id, descriptor)
            elif call is WatchedCall.LSEEK and arguments[2] < _SEEK_DATA:
                return 0
            else:
                return errno.EOPNOTSUPP  # tools have plain reads and writes to fall back on
        except OSError:  # no such descriptor: the kernel has the right error
            return 0
        try:
            provide(min(offset, _OFFSET_MAX), min(arguments[2], _OFFSET_MAX))
        except Exception as error:  # noqa: BLE001  raised in the caller's thread
            self._error = self._error or error
            return errno.EIO
        return 0


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _position(process_id: int, descriptor: int) -> int:
    for line in Path(f"/proc/{process_id}/fdinfo/{descriptor}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "pos":
            return int(value)
    raise OSError(errno.EBADF, "no position")
