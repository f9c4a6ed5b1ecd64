"""Reading around the bad sectors of a failing disk: retried sector by sector, mapped, zeroed only on demand."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Iterator
from typing import Final

from protocol.constants import KIB
from protocol.errors import SourceError
from protocol.image.bad_ranges import BadRange, merge_sectors
from protocol.program.positional_reads import PositionalReadError, read_at

TRIES: Final = 3
"""Reads of a bad sector: the disk itself retries for seconds, and what fails three times rarely succeeds later."""

BAD_SECTORS_MAX: Final = 1 << 17
"""Bad sectors that are mapped, 64 MiB of a disk. One with more is dying: each further read costs seconds and may be
the last, and a tool that reads the good parts first rescues more."""

_PIECE_BYTES: Final = 64 * KIB
"""Length of the reads that find the good parts around a bad sector."""


class SectorRecovery:
    """The bad sectors of one open source; safe for many threads.

    Attributes:
        retried_count: sectors that were readable only on a further try.
    """

    def __init__(self, fd: int, *, sector_bytes: int, raw_bytes: int, zero_fill: bool) -> None:
        """Args:
        fd: the source; the caller keeps it open.
        sector_bytes: its logical sectors.
        raw_bytes: its size.
        zero_fill: bad sectors become zeros; otherwise they are an error.
        """
        self._fd = fd
        self._sector_bytes = sector_bytes
        self._raw_bytes = raw_bytes
        self._zero_fill = zero_fill
        self._lock = threading.Lock()
        self._bad: set[int] = set()
        self.retried_count = 0

    @property
    def bad_ranges(self) -> list[BadRange]:
        """The bad ranges that were found so far, ascending."""
        with self._lock:
            return merge_sectors(self._bad, self._sector_bytes, self._raw_bytes)

    def read_into(self, offset: int, into: memoryview) -> int:
        """Fill ``into`` from ``offset`` although a plain read of it failed.

        Returns:
            Bytes read, fewer than requested only at the end of the source.

        Raises:
            SourceError: there are too many bad sectors; with the ranges of bad sectors, unless they are zeroed.
        """
        sector_bytes = self._sector_bytes
        start = offset // sector_bytes * sector_bytes
        stop = min(self._raw_bytes, offset + len(into))
        found: set[int] = set()
        # The page cache reads and fails in whole pages; direct reads are exact.
        with self._direct() as fd, mmap.mmap(-1, _PIECE_BYTES) as piece, memoryview(piece) as buffer:
            for piece_start in range(start, stop, _PIECE_BYTES):
                count = min(_PIECE_BYTES, -(-(stop - piece_start) // sector_bytes) * sector_bytes)
                self._read_piece(fd, piece_start, buffer[:count], found)
                skipped = max(0, offset - piece_start)
                kept = min(stop, piece_start + count) - piece_start - skipped
                place = piece_start + skipped - offset
                into[place : place + kept] = buffer[skipped : skipped + kept]
        if found:
            self._note(found)
        return stop - offset

    def _read_piece(self, fd: int, start: int, into: memoryview, found: set[int]) -> None:
        """Read whole sectors; those that are bad are zeroed and added to ``found``."""
        with contextlib.suppress(PositionalReadError):
            read_at(fd, into, start)
            return
        for place in range(0, len(into), self._sector_bytes):
            sector = into[place : place + self._sector_bytes]
            if not self._read_sector(fd, start + place, sector):
                sector[:] = bytes(len(sector))
                found.add((start + place) // self._sector_bytes)

    def _read_sector(self, fd: int, offset: int, into: memoryview) -> bool:
        for attempt in range(TRIES):
            with contextlib.suppress(PositionalReadError):
                read_at(fd, into, offset)
                if attempt:
                    with self._lock:
                        self.retried_count += 1
                return True
        return False

    def _note(self, found: set[int]) -> None:
        if not self._zero_fill:
            ranges = merge_sectors(found, self._sector_bytes, self._raw_bytes)
            raise SourceError(f"{len(found)} bad sectors, after {TRIES} tries each: {bad_range_text(ranges)}")
        with self._lock:
            self._bad |= found
            count = len(self._bad)
        if count > BAD_SECTORS_MAX:
            raise SourceError(
                f"more than {BAD_SECTORS_MAX} bad sectors: rescue the disk with ddrescue first, and pack the result"
            )

    @contextlib.contextmanager
    def _direct(self) -> Iterator[int]:
        """Open the source again past the page cache, if its filesystem can do that."""
        try:
            fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT, errno.EACCES, errno.EPERM):
                raise
            yield self._fd
            return
        try:
            yield fd
        finally:
            os.close(fd)


def bad_range_text(ranges: list[BadRange], count_max: int = 8) -> str:
    """Return the first ranges for people."""
    shown = ", ".join(f"{bad.length} bytes at offset {bad.offset}" for bad in ranges[:count_max])
    more = len(ranges) - count_max
    return shown + (f", and {more} more ranges" if more > 0 else "")
