"""A source with a few ranges replaced and a larger size: the disk with a seed partition, without writing to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from protocol.packing.source import Source


class OverlaySource(Source):
    """A view of another source, which stays open and unchanged."""

    _base: Source
    _writes: tuple[tuple[int, bytes], ...]
    _base_bytes: int

    @classmethod
    def over(cls, base: Source, disk_bytes: int, writes: tuple[tuple[int, bytes], ...]) -> Self:
        """Return the view of ``base`` after ``writes``, on a disk of at least its size."""
        source = cls.from_descriptor(base.path, base.fd, logical_sector_bytes=base.logical_sector_bytes)
        source._base = base
        source._base_bytes = base.raw_bytes
        source._writes = writes
        source.raw_bytes = disk_bytes
        return source

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield as :meth:`Source.data_ranges` does; the replaced ranges are data."""
        written = ((offset, offset + len(data)) for offset, data in self._writes)
        pending: tuple[int, int] | None = None
        for start, stop in sorted([*self._base.data_ranges(), *written]):
            if pending is None or start > pending[1]:
                if pending is not None:
                    yield pending
                pending = start, stop
            else:
                pending = pending[0], max(pending[1], stop)
        if pending is not None:
            yield pending

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` as :meth:`Source.read_into` does; zeros behind the end of the other source."""
        below = max(0, min(len(into), self._base_bytes - offset))
        if below:
            self._base.read_into(offset, into[:below])
        into[below:] = bytes(len(into) - below)
        apply_writes(self._writes, offset, into)

    def expect(self, offset: int, count: int) -> None:
        """Let the kernel read ahead."""
        self._base.expect(offset, count)

    def forget(self, offset: int, count: int) -> None:
        """Release the page cache of a range."""
        self._base.forget(offset, count)

    def check_unchanged(self) -> None:
        """Raise :class:`SourceError` if the other source changed."""
        self._base.check_unchanged()


def apply_writes(writes: tuple[tuple[int, bytes], ...], offset: int, into: memoryview) -> None:
    """Replace the parts of ``into``, bytes of the disk from ``offset``, that ``writes`` change."""
    for place, data in writes:
        start, stop = max(place, offset), min(place + len(data), offset + len(into))
        if start < stop:
            into[start - offset : stop - offset] = data[start - place : stop - place]
