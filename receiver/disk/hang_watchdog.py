"""A watchdog for disk calls that never return.

A thread inside a system call can't be interrupted, so the program must exit without it. A slow call is no reason to:
kernels retry unanswered requests for minutes.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final

from protocol.errors import StorageError
from protocol.shared.units import format_bytes, format_duration

DISK_CALL_LIMIT_S: Final = 300.0
"""Linux gives a SCSI command 30 s and repeats it five times, an NVMe command 30 s and then resets its controller, which
may take two minutes: after 180 s or more a disk may work again, or the kernel returns EIO. After 300 s neither will
happen."""

TICK_S: Final = 1.0
"""Interval at which to call :meth:`HangWatchdog.tick`."""

_TICK_MAX_S: Final = 5.0
"""Time that one tick counts at most: after a longer pause the program or its virtual machine was stopped."""


@dataclasses.dataclass(frozen=True, slots=True)
class RunningCall:
    """A call that hasn't returned.

    Attributes:
        action: its name for people, such as "writing".
        offset_bytes: offset on the target; None for a flush of the whole target.
        length_bytes: length; 0 if it doesn't apply.
        seconds: time for which the call has been watched.
    """

    action: str
    offset_bytes: int | None
    length_bytes: int
    seconds: float

    def __str__(self) -> str:
        text = f"{self.action} {format_bytes(self.length_bytes)}" if self.length_bytes else self.action
        return text if self.offset_bytes is None else f"{text} at byte {self.offset_bytes}"


class HangWatchdog:
    """A register of running calls. Thread-safe; half a microsecond a call.

    Its time passes only in :meth:`tick`, in steps of bounded length: after the program or its machine was stopped, no
    call counts as hanging.
    """

    def __init__(
        self,
        path: Path,
        *,
        limit_s: float = DISK_CALL_LIMIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch calls to the target ``path``, each of which may take ``limit_s``."""
        self._path = path
        self._limit_s = limit_s
        self._clock = clock
        self._lock = threading.Lock()
        self._calls: dict[int, _Call] = {}
        self._watched_s = 0.0
        self._ticked_at = clock()

    def call(self, action: str, offset_bytes: int | None = None, length_bytes: int = 0) -> _Call:
        """Register a call for the ``with`` block; any number at once, also nested.

        Args:
            action: its name for people, such as "writing".
            offset_bytes: offset on the target.
            length_bytes: length.
        """
        return _Call(self, action, offset_bytes, length_bytes)

    def tick(self) -> None:
        """Let time pass; call this every :data:`TICK_S` from one place."""
        now = self._clock()
        with self._lock:
            self._watched_s += min(now - self._ticked_at, _TICK_MAX_S)
            self._ticked_at = now

    def longest(self) -> RunningCall | None:
        """Return the oldest running call."""
        with self._lock:
            call = next(iter(self._calls.values()), None)  # in order of registration
            if call is None:
                return None
            return RunningCall(
                call.action, call.offset_bytes, call.length_bytes, self._watched_s - call.since_s
            )

    def longest_s(self) -> float:
        """Return the age of the oldest running call, to a tick; 0 if none is running."""
        call = self.longest()
        return 0.0 if call is None else call.seconds

    @property
    def stalled(self) -> bool:
        """Return whether a call has exceeded the limit."""
        return self.longest_s() >= self._limit_s

    def check(self) -> None:
        """Raise if a call has exceeded the limit.

        Raises:
            StorageError: a call hangs; it keeps its thread, and may keep the process from exiting, until the kernel
                aborts it.
        """
        call = self.longest()
        if call is None or call.seconds < self._limit_s:
            return
        raise StorageError(
            f"{self._path}: {call} hasn't returned for {format_duration(call.seconds)}: the disk, its cable or its "
            "controller hangs. Check dmesg, power-cycle the machine, and run the same command again; the target is "
            "incomplete"
        )


class _Call:
    """The context manager of :meth:`HangWatchdog.call`; entered once."""

    __slots__ = ("_watch", "action", "length_bytes", "offset_bytes", "since_s")

    def __init__(self, watch: HangWatchdog, action: str, offset_bytes: int | None, length_bytes: int) -> None:
        self._watch = watch
        self.action = action
        self.offset_bytes = offset_bytes
        self.length_bytes = length_bytes
        self.since_s = 0.0

    def __enter__(self) -> None:
        watch = self._watch
        with watch._lock:
            self.since_s = watch._watched_s
            watch._calls[id(self)] = self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        watch = self._watch
        with watch._lock:
            del watch._calls[id(self)]
