"""A file with a record of all changes by this process, and the contents that a power cut would leave.

Faster than :mod:`tests.support.disks.slow_disk`, which records whole programs: hundreds of runs take seconds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from receiver.disk import syscalls
from tests.support.disks.write_log import TEAR_BYTES, Entry, Kind


class RecordedDisk:
    """A file as a disk.

    Attributes:
        path: the file.
        durable: the durable content before ``log``.
        log: all changes.
        fails_at: index of the change that fails instead.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        self.durable = content
        self.log: list[Entry] = []
        self.fails_at = -1
        if content:
            path.write_bytes(content)

    @contextlib.contextmanager
    def recorded(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Record all changes by this process during the ``with`` block."""
        with monkeypatch.context() as patch:
            self._patch(patch)
            yield

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        pwrite, fdatasync, ftruncate = os.pwrite, os.fdatasync, os.ftruncate

        def write(fd: int, data: memoryview, offset: int) -> int:
            if self._is_own(fd):
                self._log(Kind.WRITE, offset, len(data), bytes(data))
            return pwrite(fd, data, offset)

        def flush(fd: int) -> None:
            if self._is_own(fd):
                self._log(Kind.FLUSH)
                return
            fdatasync(fd)

        def resize(fd: int, length: int) -> None:
            if self._is_own(fd):
                self._log(Kind.TRUNCATE, length)
            ftruncate(fd, length)

        def recorded_punch(punch: Callable[[int, int, int], None]) -> Callable[[int, int, int], None]:
            def punch_recorded(fd: int, offset: int, length: int) -> None:
                if self._is_own(fd):
                    self._log(Kind.PUNCH, offset, length)
                punch(fd, offset, length)

            return punch_recorded

        patch.setattr(os, "pwrite", write)
        patch.setattr(os, "fdatasync", flush)
        patch.setattr(os, "ftruncate", resize)
        for name in ("punch_hole", "zero_file_range"):
            patch.setattr(syscalls, name, recorded_punch(getattr(syscalls, name)))

    def _is_own(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self.path.stat())
        except FileNotFoundError:
            return False

    def _log(self, kind: Kind, offset: int = 0, length: int = 0, data: bytes = b"") -> None:
        if len(self.log) == self.fails_at:
            self.fails_at = -1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.log.append(Entry(kind, offset, length, data))

    def cut_at(self, index: int, rng: random.Random) -> bytes:
        """Return the content after a power cut before entry ``index``: any sectors of the unflushed data."""
        flushes = [at for at in range(index) if self.log[at].kind is Kind.FLUSH]
        flushed = flushes[-1] if flushes else 0
        left = bytearray(self.durable)
        for entry in self.log[:flushed]:
            entry.apply(left)
        share = rng.choice([0.0, 0.5, 0.9, 1.0])
        for entry in self.log[flushed:index]:
            for part in _sectors(entry) if rng.random() < 0.5 else [entry]:
                if rng.random() < share:
                    part.apply(left)
        return bytes(left)


def _sectors(entry: Entry) -> list[Entry]:
    if entry.kind is not Kind.WRITE or len(entry.data) > 64 * 1024:
        return [entry]
    return [
        Entry(Kind.WRITE, entry.offset_bytes + at, len(data), data)
        for at in range(0, len(entry.data), TEAR_BYTES)
        if (data := entry.data[at : at + TEAR_BYTES])
    ]
