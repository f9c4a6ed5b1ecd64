"""The rates at which a receiver works off what arrives: it reads its socket, and decodes and writes blocks.

They are measured between reports, not by time stamps of arrival: a full socket holds seconds of a slow machine's work,
and its delivery rate says nothing about the present.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

_WRITTEN_SMOOTHING_S: Final = 4.0
"""Several batches of blocks of a slow machine, which decodes about one a second."""
_TAKEN_SMOOTHING_S: Final = 0.2
"""A few polls of a slow machine: its first reports have to show how fast it reads its socket."""


@dataclasses.dataclass(slots=True)
class _SmoothedRate:
    """A rate whose older samples count less and less; the first ones count as much as their time."""

    _count: float = 0.0
    _seconds: float = 0.0

    @property
    def per_s(self) -> float:
        return self._count / self._seconds if self._seconds else 0.0

    def add(self, count: float, elapsed_s: float, smoothing_s: float) -> None:
        kept = math.exp(-elapsed_s / smoothing_s)
        self._count = self._count * kept + count
        self._seconds = self._seconds * kept + elapsed_s


@dataclasses.dataclass(slots=True)
class WorkRates:
    """The work of one receiver, by its reports."""

    _written: _SmoothedRate = dataclasses.field(default_factory=_SmoothedRate)
    _taken: _SmoothedRate = dataclasses.field(default_factory=_SmoothedRate)

    @property
    def written_bytes_per_s(self) -> float:
        """Return the bytes that it writes per second; 0 before the first report."""
        return self._written.per_s

    @property
    def taken_frames_per_s(self) -> float:
        """Return the datagrams that it reads from its socket per second; 0 before the first report."""
        return self._taken.per_s

    def add(self, *, written_bytes: int, taken_frames: int, elapsed_s: float) -> None:
        """Add the work between two reports, ``elapsed_s`` apart, more than 0."""
        self._written.add(written_bytes, elapsed_s, _WRITTEN_SMOOTHING_S)
        self._taken.add(taken_frames, elapsed_s, _TAKEN_SMOOTHING_S)
