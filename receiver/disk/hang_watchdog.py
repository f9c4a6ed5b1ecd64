"""Which calls to the disk are running, since when, and when that is too long: a disk can hang for ever.

A thread inside a system call can't be interrupted, so whoever watches has to end the program around it. A call that is
merely slow mustn't end anything: kernels repeat what a disk doesn't answer, for minutes.
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
may take two minutes: 180 s and more, after which a disk may be well again or the kernel says EIO. Beyond that nobody
waits for it but us."""

TICK_S: Final = 1.0
"""How often :meth:`StallWatch.tick` should be called."""

_TICK_MAX_S: Final = 5.0
"""More time than this between two ticks didn't pass for the disk: the program or its virtual machine was stopped."""


@dataclasses.dataclass(frozen=True, slots=True)
class RunningCall:
    """A call that hasn't returned.

    Attributes:
        action: what it does, as in "writing"; for people.
        offset_bytes: where on the target; None for a flush, which is about all of it.
        length_bytes: how much; 0 where that says nothing.
        seconds: for how long it has been watched.
    """

    action: str
    offset_bytes: int | None
    length_bytes: int
    seconds: float

    def __str__(self) -> str:
        what = f"{self.action} {format_bytes(self.length_bytes)}" if self.length_bytes else self.action
        return what if self.offset_bytes is None else f"{what} at byte {self.offset_bytes}"


class StallWatch:
    """A register of running calls. Thread-safe; half a microsecond a call.

    Time passes for it only by :meth:`tick`, in steps of a bounded length: after the program was stopped, or its machine
    was, no call is taken for one that hangs.
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
        """Enter a call for the time of a ``with`` block; any number at once, also nested.

        Args:
            action: what it does, as in "writing".
            offset_bytes: where on the target.
            length_bytes: how much.
        """
        return _Call(self, action, offset_bytes, length_bytes)

    def tick(self) -> None:
        """Let time pass; to be called every :data:`TICK_S` from one place."""
        now = self._clock()
        with self._lock:
            self._watched_s += min(now - self._ticked_at, _TICK_MAX_S)
            self._ticked_at = now

    def longest(self) -> RunningCall | None:
        """The oldest call that is running."""
        with self._lock:
            call = next(iter(self._calls.values()), None)  # entered in order
            if call is None:
                return None
            return RunningCall(
                call.action, call.offset_bytes, call.length_bytes, self._watched_s - call.since_s
            )

    def longest_s(self) -> float:
        """For how long the oldest call has been running, to a tick; 0 if none is."""
        call = self.longest()
        return 0.0 if call is None else call.seconds

    @property
    def stalled(self) -> bool:
        """Whether a call takes longer than the limit."""
        return self.longest_s() >= self._limit_s

    def check(self) -> None:
        """Return while no call takes longer than the limit.

        Raises:
            StorageError: one does; it will keep its thread, and may keep the process from ending, until the kernel
                gives it up.
        """
        call = self.longest()
        if call is None or call.seconds < self._limit_s:
            return
        raise StorageError(
            f"{self._path}: {call} hasn't returned for {format_duration(call.seconds)}: the disk, its cable or its "
            "controller hangs. Look at dmesg, switch the machine off and on, and run the same command again; the "
            "target is incomplete"
        )


class _Call:
    """See :meth:`StallWatch.call`; entered once."""

    __slots__ = ("_watch", "action", "length_bytes", "offset_bytes", "since_s")

    def __init__(self, watch: StallWatch, action: str, offset_bytes: int | None, length_bytes: int) -> None:
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
