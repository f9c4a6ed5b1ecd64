"""The rates at which a receiver works off what arrives: it reads its socket, and decodes and writes blocks.

They are measured between reports, not by time stamps of arrival: a full socket holds seconds of a slow machine's work,
and its delivery rate says nothing about the present.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

_SMOOTHING_S: Final = 1.0
"""A slow machine decodes about one batch of blocks a second, and reads its socket in polls."""


@dataclasses.dataclass(slots=True)
class _SmoothedRate:
    """A rate whose older samples count less and less; the first ones count as much as their time.

    Work is done in batches. The time since the last one says nothing about the rate until it is long for a batch.
    """

    _count: float = 0.0
    _seconds: float = 0.0
    _waiting_s: float = 0.0

    @property
    def per_s(self) -> float:
        return self._count / max(self._seconds, self._waiting_s) if self._seconds else 0.0

    def add(self, count: float, elapsed_s: float) -> None:
        self._waiting_s += elapsed_s
        if not count:
            return
        kept = math.exp(-self._waiting_s / _SMOOTHING_S)
        self._count = self._count * kept + count
        self._seconds = self._seconds * kept + self._waiting_s
        self._waiting_s = 0.0


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
        self._written.add(written_bytes, elapsed_s)
        self._taken.add(taken_frames, elapsed_s)
