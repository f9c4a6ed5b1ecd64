"""Zeroing ranges of a target, without writing zeros where possible, and discarding unused ranges."""

from __future__ import annotations

import errno
import functools
import mmap
import os
import time
from collections.abc import Callable, Iterator
from typing import Final

from protocol.constants import MIB
from receiver.disk import syscalls
from receiver.disk.aligned_buffers import aligned_memory
from receiver.disk.inventory.sysfs import DiscardUnit, discard_unit
from receiver.disk.target import Target

STEP_BYTES_MIN: Final = 4 * MIB
STEP_BYTES_MAX: Final = 256 * MIB
STEP_S: Final = 0.5
"""Size and duration of one call: a device without a command for zeroing has to write zeros, and the call can't be
interrupted. 256 MiB at once would take half a minute on a slow stick."""

_ZEROS_BYTES: Final = 4 * MIB
_NOT_SUPPORTED: Final = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)


class RangeClearer:
    """Zeroing and discarding on one target. Thread-safe."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._zeroing_steps = _StepSizer()
        self._discarding_steps = _StepSizer()
        # In order of preference; unsupported ones are dropped.
        self._zeroing: tuple[Callable[[int, int, int], None], ...]
        if target.is_device:
            self._zeroing = (syscalls.zero_out,)
            self._discarding = syscalls.discard
            self._discard_unit = discard_unit(os.fstat(target.fd).st_rdev)
        else:
            self._zeroing = (syscalls.punch_hole, syscalls.zero_file_range)
            self._discarding = syscalls.punch_hole
            self._discard_unit = DiscardUnit(1)

    def zero(self, start: int, stop: int, write: Callable[[int, memoryview], None]) -> None:
        """Make the target read as zeros between two byte offsets.

        Args:
            start: first byte.
            stop: the byte after the last.
            write: writes bytes at an offset; used where zeros must be written.

        Raises:
            StorageError: final, the target is poisoned.
        """
        self._target.check()
        unit = self._target.sector_bytes
        whole_start = min(-(-start // unit) * unit, stop)
        whole_stop = max(stop - stop % unit, whole_start)
        _write_zeros(start, whole_start, write)
        for step_start, step_stop in self._zeroing_steps.steps(whole_start, whole_stop):
            self._target.check()
            if not self._zero_step(step_start, step_stop):
                _write_zeros(step_start, step_stop, write)
        _write_zeros(whole_stop, stop, write)

    def _zero_step(self, start: int, stop: int) -> bool:
        """Zero a range without writing zeros; return False if that isn't possible."""
        target = self._target
        if not target.is_device:
            if self._is_hole(start, stop):
                return True
            if stop >= os.fstat(target.fd).st_size:
                # Extended beyond the end, so that the file's last page becomes a hole, too.
                stop += -stop % mmap.PAGESIZE
        for call in self._zeroing:
            try:
                with target.hang_watchdog.call("zeroing", start, stop - start):
                    call(target.fd, start, stop - start)
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    target.fail(error, f"zeroing {stop - start} bytes at byte {start}")
                self._zeroing = tuple(other for other in self._zeroing if other is not call)
            else:
                return True
        return False

    def _is_hole(self, start: int, stop: int) -> bool:
        try:
            data = syscalls.next_data(self._target.fd, start)
        except OSError as error:
            if error.errno in _NOT_SUPPORTED:
                return False
            self._target.fail(error, f"searching for data at byte {start}")
        return data is None or data >= stop

    def discard(self, start: int, stop: int) -> None:
        """Discard the bytes between two offsets, in whole units of the device; a failure is no error.

        Raises:
            StorageError: the target was poisoned before.
        """
        self._target.check()
        unit, offset = self._discard_unit.unit_bytes, self._discard_unit.offset_bytes
        if unit == 0:
            return
        whole_start = start + (offset - start) % unit
        whole_stop = stop - (stop - offset) % unit
        for step_start, step_stop in self._discarding_steps.steps(whole_start, whole_stop, unit):
            try:
                with self._target.hang_watchdog.call("discarding", step_start, step_stop - step_start):
                    self._discarding(self._target.fd, step_start, step_stop - step_start)
            except OSError:
                self._discard_unit = DiscardUnit(0)  # it doesn't discard, despite its description
                return


class _StepSizer:
    """A divider of ranges into steps of about :data:`STEP_S` each, judged by the duration of earlier steps."""

    def __init__(self) -> None:
        self._step_bytes = STEP_BYTES_MIN

    def steps(self, start: int, stop: int, unit_bytes: int = 1) -> Iterator[tuple[int, int]]:
        """Yield half-open ranges of whole units; the caller clears each before it takes the next."""
        while start < stop:
            step_bytes = max(self._step_bytes - self._step_bytes % unit_bytes, unit_bytes)
            step_stop = min(start + step_bytes, stop)
            started_s = time.monotonic()
            yield start, step_stop
            elapsed_s = time.monotonic() - started_s
            if elapsed_s > STEP_S:
                self._step_bytes = max(self._step_bytes // 2, STEP_BYTES_MIN)
            elif elapsed_s < STEP_S / 2 and step_stop - start == step_bytes:
                self._step_bytes = min(self._step_bytes * 2, STEP_BYTES_MAX)
            start = step_stop


def _write_zeros(start: int, stop: int, write: Callable[[int, memoryview], None]) -> None:
    for offset_bytes in range(start, stop, _ZEROS_BYTES):
        write(offset_bytes, _zeros()[: stop - offset_bytes])


@functools.cache
def _zeros() -> memoryview:
    """Return zeros for any writer. The memory is never written to, so the kernel backs it with its one zero page."""
    return aligned_memory(_ZEROS_BYTES)
