"""Thread time spent in a step, threads that are still in it included."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self


class ThreadTimer:
    """A counter of thread-seconds inside ``with timer:``. Thread-safe; 1 µs a step.

    A hanging step counts while it hangs: a disk that takes a minute for one write shows as slow at once.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._inside_count = 0
        self._busy_s = 0.0
        self._counted_until = 0.0

    def __enter__(self) -> Self:
        with self._lock:
            self._count()
            self._inside_count += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._count()
            self._inside_count -= 1

    def busy_s(self) -> float:
        """Return the thread-seconds so far: two threads that have been inside for one second count as two."""
        with self._lock:
            self._count()
            return self._busy_s

    def _count(self) -> None:
        now = self._clock()
        self._busy_s += self._inside_count * (now - self._counted_until)
        self._counted_until = now
