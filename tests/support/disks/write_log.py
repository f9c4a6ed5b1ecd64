"""A log of all writes to a disk, and the disks that a power cut in between would have left.

A disk may keep writes in a cache of its own until it is flushed: a cut leaves everything up to the last flush, and any
part of the later writes. Linux's dm-log-writes and the ALICE study of crash consistency (Pillai et al.,
OSDI 2014) check filesystems in the same way.
"""

from __future__ import annotations

import dataclasses
import enum
import random
import struct
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

_HEADER: Final = struct.Struct("<BQQ")
TEAR_BYTES: Final = 512
"""Unit that a disk writes as a whole: a larger write may be cut between any two of these."""


class Kind(enum.IntEnum):
    """The kind of a log entry."""

    WRITE = 1
    PUNCH = 2
    TRUNCATE = 3
    """``offset_bytes`` is the file's new size."""
    FLUSH = 4


class LogWriter:
    """A writer of a log file; every entry is in the file when the call returns."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)

    def write(self, offset_bytes: int, data: memoryview | bytearray) -> None:
        self._append(Kind.WRITE, offset_bytes, len(data), data)

    def punch(self, offset_bytes: int, length_bytes: int) -> None:
        self._append(Kind.PUNCH, offset_bytes, length_bytes)

    def truncate(self, size_bytes: int) -> None:
        self._append(Kind.TRUNCATE, size_bytes, 0)

    def flush(self) -> None:
        self._append(Kind.FLUSH, 0, 0)

    def close(self) -> None:
        self._file.close()

    def _append(
        self, kind: Kind, offset: int, length: int, data: memoryview | bytearray | bytes = b""
    ) -> None:
        self._file.write(_HEADER.pack(kind, offset, length) + data)


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One change of the disk."""

    kind: Kind
    offset_bytes: int
    length_bytes: int
    data: bytes

    def apply(self, disk: bytearray, data_bytes: int | None = None) -> None:
        """Apply the change to ``disk``; of a write optionally only the first ``data_bytes``."""
        start, stop = self.offset_bytes, self.offset_bytes + self.length_bytes
        match self.kind:
            case Kind.WRITE:
                data = self.data if data_bytes is None else self.data[:data_bytes]
                disk.extend(bytes(max(0, start - len(disk))))
                disk[start : start + len(data)] = data
            case Kind.PUNCH:
                stop = min(stop, len(disk))
                disk[start:stop] = bytes(max(0, stop - start))
            case Kind.TRUNCATE:
                del disk[start:]
                disk.extend(bytes(start - len(disk)))
            case Kind.FLUSH:
                pass


def read_log(path: Path) -> list[Entry]:
    """Return all entries, without one that is cut off by the end of the file."""
    text, entries, at = path.read_bytes(), [], 0
    while at + _HEADER.size <= len(text):
        kind, offset_bytes, length_bytes = _HEADER.unpack_from(text, at)
        at += _HEADER.size
        data_bytes = length_bytes if kind == Kind.WRITE else 0
        if at + data_bytes > len(text):
            break
        entries.append(Entry(Kind(kind), offset_bytes, length_bytes, text[at : at + data_bytes]))
        at += data_bytes
    return entries


@dataclasses.dataclass(frozen=True, slots=True)
class PowerCut:
    """A power cut, and the part of the disk's cache that survived it.

    Attributes:
        flush_index: everything up to this flush is on the medium; 0 is before the first flush.
        kept: positions, after that flush, of entries that reached the medium.
        torn_bytes: bytes of the last of them, if it is a torn write.
    """

    flush_index: int
    kept: tuple[int, ...]
    torn_bytes: int | None = None

    def __str__(self) -> str:
        torn = "" if self.torn_bytes is None else f", {self.torn_bytes} bytes of the last one"
        return f"after flush {self.flush_index}, kept {list(self.kept)}{torn}"


class PowerCuts:
    """The disks that power cuts would have left.

    Args:
        base: the disk's content before the first entry; empty for a missing file.
        entries: the log.
    """

    def __init__(self, base: bytes, entries: Sequence[Entry]) -> None:
        self._base = base
        self._epochs: list[list[Entry]] = [[]]
        for entry in entries:
            if entry.kind is Kind.FLUSH:
                self._epochs.append([])
            else:
                self._epochs[-1].append(entry)

    @property
    def flush_count(self) -> int:
        """Return the number of flushes."""
        return len(self._epochs) - 1

    @property
    def entry_count(self) -> int:
        """Return the number of entries other than flushes."""
        return sum(map(len, self._epochs))

    @property
    def unflushed_count(self) -> int:
        """Return the number of entries after the last flush."""
        return len(self._epochs[-1])

    def at_flushes(self) -> list[PowerCut]:
        """Return a cut after each flush and one before the first entry; empty flushes are skipped."""
        return [PowerCut(0, ())] + [
            PowerCut(index, ()) for index in range(1, self.flush_count + 1) if self._epochs[index - 1]
        ]

    def suffixes_dropped(self) -> list[PowerCut]:
        """Return a cut for every non-empty prefix of the entries after each flush."""
        return [
            PowerCut(index, tuple(range(count)))
            for index, epoch in enumerate(self._epochs)
            for count in range(1, len(epoch) + 1)
        ]

    def torn(self, rng: random.Random, count_per_epoch: int) -> list[PowerCut]:
        """Return cuts for prefixes whose last write is torn between two sectors."""
        cuts = []
        for index, epoch in enumerate(self._epochs):
            tearable = [at for at, entry in enumerate(epoch) if len(entry.data) > TEAR_BYTES]
            for at in _sample(rng, tearable, count_per_epoch):
                torn_bytes = rng.randrange(1, -(-len(epoch[at].data) // TEAR_BYTES)) * TEAR_BYTES
                cuts.append(PowerCut(index, tuple(range(at + 1)), torn_bytes))
        return cuts

    def reordered(self, rng: random.Random, count_per_epoch: int) -> list[PowerCut]:
        """Return cuts with random parts of the entries after a flush: a cache writes in any order."""
        cuts = []
        for index, epoch in enumerate(self._epochs):
            if len(epoch) < 2:
                continue  # a prefix, too
            for _ in range(count_per_epoch):
                kept = tuple(at for at in range(len(epoch)) if rng.random() < 0.5)
                cuts.append(PowerCut(index, kept))
        return cuts

    def disks(self, cuts: Collection[PowerCut]) -> Iterator[tuple[PowerCut, bytes]]:
        """Yield each cut with the disk that it leaves, in the order of flushes."""
        disk, done = bytearray(self._base), 0
        for cut in sorted(cuts, key=lambda cut: cut.flush_index):
            for epoch in self._epochs[done : cut.flush_index]:
                for entry in epoch:
                    entry.apply(disk)
            done = max(done, cut.flush_index)
            left = bytearray(disk)
            for at in cut.kept:
                torn_bytes = cut.torn_bytes if at == cut.kept[-1] else None
                self._epochs[cut.flush_index][at].apply(left, torn_bytes)
            yield cut, bytes(left)


def _sample(rng: random.Random, population: Sequence[int], count: int) -> list[int]:
    return sorted(rng.sample(population, min(count, len(population))))
