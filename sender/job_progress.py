"""Progress of a long job: its share, rate, ETA and silence, reported by one thread and read by others."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

_RATE_WINDOW_S: Final = 10.0
_SAMPLES_MAX: Final = 64
_STEP_S_MAX: Final = 30.0
"""Longest step of a job that isn't taken for a standstill: 16 MiB of a capture at 5 Mbit/s."""


class JobProgress:
    """The progress of a job's present phase. Thread-safe."""

    def __init__(self, total_bytes: int = 0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES_MAX)
        self._done_bytes = 0
        self._total_bytes = total_bytes
        self._advanced_at = clock()

    def restart(self, total_bytes: int, done_bytes: int = 0) -> None:
        """Start the next phase, or continue after a break: the rate of before is forgotten, and the silence isn't."""
        with self._lock:
            self._samples.clear()
            self._done_bytes, self._total_bytes = done_bytes, total_bytes

    def note(self, done_bytes: int, total_bytes: int | None = None) -> None:
        """Report the bytes done so far, and their total if it has changed; at any frequency."""
        now = self._clock()
        with self._lock:
            if total_bytes is not None:
                self._total_bytes = total_bytes
            if done_bytes != self._done_bytes:
                self._advanced_at = now
            self._done_bytes = done_bytes
            if not self._samples or now - self._samples[-1][0] >= _RATE_WINDOW_S / _SAMPLES_MAX:
                self._samples.append((now, done_bytes))

    @property
    def share(self) -> float:
        """Share of the phase that is done, 0..1."""
        with self._lock:
            return min(1.0, self._done_bytes / self._total_bytes) if self._total_bytes else 0.0

    def rate_bytes_per_s(self) -> float:
        """Return the rate of the last seconds; 0 while nothing happens."""
        now = self._clock()
        with self._lock:
            recent = [sample for sample in self._samples if now - sample[0] <= _RATE_WINDOW_S]
            if len(recent) < 2 and self._samples and now - self._samples[-1][0] <= _STEP_S_MAX:
                recent = list(self._samples)[-2:]  # a slow job that reports in large steps
        if len(recent) < 2:
            return 0.0
        (first_at, first), (_, last) = recent[0], recent[-1]
        return max(0, last - first) / max(now - first_at, 1e-3)

    def eta_s(self) -> float | None:
        """Return the seconds until the end of the phase; None if unknown."""
        rate = self.rate_bytes_per_s()
        with self._lock:
            left_bytes = self._total_bytes - self._done_bytes
        return round(max(0, left_bytes) / rate, 1) if rate > 0 else None

    def silent_s(self) -> float:
        """Return the seconds since the job advanced."""
        with self._lock:
            return max(0.0, self._clock() - self._advanced_at)
