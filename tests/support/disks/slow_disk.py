"""A target on a slow or faulty disk, as a program: ``python -m tests.support.disks.slow_disk STORAGE MOUNTPOINT``.

:func:`slow_disk` starts it, mounts and unmounts. The disk's behaviour is :class:`Behaviour`, set at any time as JSON in
an extended attribute of the mounted directory; reading the attribute returns its counters. A file on it is a target, or
the backing file of a loop device that is one: :func:`loop_over` prevents caching in between.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from receiver.disk import syscalls
from tests.support.disks.devices import loop_device
from tests.support.disks.fuse import FuseServer, unmount
from tests.support.disks.write_log import LogWriter
from tests.support.network.lab import LIMIT_S, LabError, Program, wait_until

ATTRIBUTE = "user.behaviour"
_SECTOR_BYTES = 512


class Operation(enum.StrEnum):
    """The kind of calls that a fault affects."""

    READ = "read"
    WRITE = "write"
    PUNCH = "punch"
    """Punching a hole, or zeroing by command."""
    FLUSH = "flush"


class Action(enum.StrEnum):
    """The effect of a fault."""

    ERROR = "error"
    """The call fails with ``error``."""
    SHORT = "short"
    """Half of the call is done, in whole sectors, and reported so."""
    LOSE = "lose"
    """A write, hole or flush isn't done but reports success; of a write only the part in the range is lost."""
    FLIP = "flip"
    """One bit of a write, at a seeded place, arrives flipped on the medium."""
    MISDIRECT = "misdirect"
    """The part of a write in the range lands ``shift_bytes`` further on, but the call reports success."""
    HANG = "hang"
    """This and all later calls hang until the behaviour is set again."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """A fault of the disk.

    Attributes:
        operation: the affected calls.
        action: the effect.
        error: name of the error code, for :attr:`Action.ERROR`.
        after_bytes: from this many bytes of that operation on (for flushes and holes: bytes written).
        after_count: spares this many of the calls that it would hit otherwise.
        after_write: only when a write has touched its range: for reading back.
        count: so often; None for ever.
        start_bytes: only calls that touch a byte from here on; flushes touch every byte.
        stop_bytes: and before here; None for the end.
        shift_bytes: for :attr:`Action.MISDIRECT`.
        seed: of the places for :attr:`Action.FLIP`.
    """

    operation: Operation
    action: Action
    error: str = "EIO"
    after_bytes: int = 0
    after_count: int = 0
    after_write: bool = False
    count: int | None = None
    start_bytes: int = 0
    stop_bytes: int | None = None
    shift_bytes: int = 0
    seed: int = 0

    def touches(self, offset_bytes: int, length_bytes: int) -> bool:
        """Return whether ``[offset, offset + length)`` overlaps the range of the fault."""
        stop_bytes = offset_bytes + length_bytes if self.stop_bytes is None else self.stop_bytes
        return offset_bytes < stop_bytes and offset_bytes + length_bytes > self.start_bytes

    def part(self, offset_bytes: int, length_bytes: int) -> tuple[int, int]:
        """Return the affected part of a range, relative to its start."""
        stop = length_bytes if self.stop_bytes is None else min(length_bytes, self.stop_bytes - offset_bytes)
        return max(0, self.start_bytes - offset_bytes), stop

    def flipped(self, data: memoryview, offset_bytes: int, rng: random.Random) -> bytearray:
        """Return a copy of ``data`` with one bit flipped in the range of the fault."""
        copy = bytearray(data)
        copy[rng.randrange(*self.part(offset_bytes, len(copy)))] ^= 1 << rng.randrange(8)
        return copy


@dataclasses.dataclass(frozen=True, slots=True)
class Behaviour:
    """The behaviour of the disk. Reads and writes share its one arm and wait for each other.

    Attributes:
        write_bytes_per_s: write rate; None for no limit.
        read_bytes_per_s: read rate; None for no limit.
        faults: faults; the first that affects a call applies.
        log_path: file where all that reaches the medium is logged (:mod:`tests.support.disks.write_log`), for
            disks with one file; a new log begins whenever a path is set.
    """

    write_bytes_per_s: float | None = None
    read_bytes_per_s: float | None = None
    faults: tuple[Fault, ...] = ()
    log_path: str | None = None

    def to_json(self) -> bytes:
        """Return the value for the extended attribute."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Behaviour:
        """Parse a value of the extended attribute; ``ValueError``, ``TypeError`` or ``KeyError`` if it is invalid."""
        fields = json.loads(text)
        faults = tuple(
            Fault(**{**fault, "operation": Operation(fault["operation"]), "action": Action(fault["action"])})
            for fault in fields.pop("faults", ())
        )
        return cls(**fields, faults=faults)


@dataclasses.dataclass(frozen=True, slots=True)
class SlowDisk:
    """A mounted slow disk.

    Attributes:
        directory: directory for targets.
        storage: directory with their content, at full speed.
    """

    directory: Path
    storage: Path

    def set_behaviour(self, behaviour: Behaviour) -> None:
        """Set a new behaviour: fault counters start again, and hanging calls continue."""
        os.setxattr(self.directory, ATTRIBUTE, behaviour.to_json())

    def counts(self) -> dict[str, int]:
        """Return counters: bytes by operation (``read``, …), calls (``read_count``, …), faults that affected a call
        (``struck``), and calls that hang now (``hanging``).
        """
        counted: dict[str, int] = json.loads(os.getxattr(self.directory, ATTRIBUTE))
        return counted

    def wait_hanging(self, program: Program) -> None:
        """Wait until a call of ``program`` hangs.

        Raises:
            LabError: the program exited instead.
        """

        def hangs() -> bool:
            if program.exit_code is not None:
                raise LabError(f"it exited before a call hung: {program.describe()}")
            return self.counts()["hanging"] > 0

        wait_until("a call hangs", hangs, describe=program.describe)


@contextlib.contextmanager
def slow_disk(folder: Path, behaviour: Behaviour) -> Iterator[SlowDisk]:
    """Mount a slow disk with its storage and mount point in ``folder``; unmount it at the end, even if it is in use.

    Raises:
        LabError: it can't be mounted.
    """
    disk = SlowDisk(folder / "mounted", folder / "storage")
    disk.directory.mkdir()
    disk.storage.mkdir()
    argv: list[str | Path] = [
        sys.executable,
        "-m",
        "tests.support.disks.slow_disk",
        disk.storage,
        disk.directory,
    ]
    with Program(argv) as program:
        try:
            program.wait_event("mounted", LIMIT_S)
            disk.set_behaviour(behaviour)
            yield disk
        finally:
            unmount(disk.directory)


@contextlib.contextmanager
def loop_over(backing: Path) -> Iterator[Path]:
    """Provide a loop device over a file of the disk, past the page cache, so that its faults are a device's."""
    with loop_device(backing, "--direct-io=on") as device:
        yield device


class _Arm:
    """The disk's data path: rates and faults before files."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._behaviour = Behaviour()
        self._log: LogWriter | None = None
        self._armed: list[bool] = []
        self._seen_counts: list[int] = []
        self._fault_counts: list[int] = []
        self._generators: list[random.Random] = []
        self._done_bytes = dict.fromkeys(Operation, 0)
        self._done_counts = dict.fromkeys(Operation, 0)
        self._struck_count = 0
        self._free_at = time.monotonic()
        self._hanging = 0

    def read(self, fd: int, offset_bytes: int, length: int) -> bytes:
        fault = self._strike(Operation.READ, offset_bytes, length)
        if fault and fault.action is Action.SHORT:
            length = _half(length)
        data = os.pread(fd, length, offset_bytes)
        if fault and fault.action is Action.FLIP:
            data = bytes(fault.flipped(memoryview(data), offset_bytes, self._generator(fault)))
        self._pass(Operation.READ, len(data), self._behaviour.read_bytes_per_s)
        return data

    def write(self, fd: int, offset_bytes: int, data: memoryview) -> int:
        fault = self._strike(Operation.WRITE, offset_bytes, len(data))
        action = fault.action if fault else None
        if action is Action.SHORT:
            data = data[: _half(len(data))]
        if fault and action in (Action.LOSE, Action.MISDIRECT):
            start, stop = fault.part(offset_bytes, len(data))
            self._store(fd, offset_bytes, data[:start])
            if action is Action.MISDIRECT:
                self._store(fd, offset_bytes + start + fault.shift_bytes, data[start:stop])
            self._store(fd, offset_bytes + stop, data[stop:])
        elif fault and action is Action.FLIP:
            self._store(fd, offset_bytes, fault.flipped(data, offset_bytes, self._generator(fault)))
        else:
            self._store(fd, offset_bytes, data)
        self._note_written(offset_bytes, len(data))
        self._pass(Operation.WRITE, len(data), self._behaviour.write_bytes_per_s)
        return len(data)

    def _store(self, fd: int, offset_bytes: int, data: memoryview | bytearray) -> None:
        if len(data):
            os.pwrite(fd, data, offset_bytes)
            if self._log:
                self._log.write(offset_bytes, data)

    def _note_written(self, offset_bytes: int, length_bytes: int) -> None:
        """Arm faults that wait for a write of their range."""
        with self._changed:
            for index, fault in enumerate(self._behaviour.faults):
                if fault.touches(offset_bytes, length_bytes):
                    self._armed[index] = True

    def punch(self, fd: int, offset_bytes: int, length_bytes: int) -> None:
        fault = self._strike(Operation.PUNCH, offset_bytes, length_bytes)
        if fault is None or fault.action is not Action.LOSE:
            syscalls.punch_hole(fd, offset_bytes, length_bytes)
            if self._log:
                self._log.punch(offset_bytes, length_bytes)
        self._pass(Operation.PUNCH, length_bytes, None)

    def truncate(self, path: Path, size_bytes: int) -> None:
        os.truncate(path, size_bytes)
        if self._log:
            self._log.truncate(size_bytes)

    def flush(self, fd: int) -> None:
        fault = self._strike(Operation.FLUSH, 0, sys.maxsize)
        if fault is None or fault.action is not Action.LOSE:
            if self._log:
                self._log.flush()
            else:
                os.fdatasync(fd)
        self._pass(Operation.FLUSH, 0, None)

    def configure(self, text: bytes) -> None:
        try:
            behaviour = Behaviour.from_json(text)
        except (ValueError, TypeError, KeyError) as error:
            raise OSError(errno.EINVAL, str(error)) from error
        with self._changed:
            if behaviour.log_path != self._behaviour.log_path:
                if self._log:
                    self._log.close()
                self._log = LogWriter(Path(behaviour.log_path)) if behaviour.log_path else None
            self._behaviour = behaviour
            self._armed = [not fault.after_write for fault in behaviour.faults]
            self._seen_counts = [0] * len(behaviour.faults)
            self._fault_counts = [0] * len(behaviour.faults)
            self._generators = [random.Random(fault.seed) for fault in behaviour.faults]
            self._free_at = time.monotonic()
            self._changed.notify_all()

    def describe(self) -> bytes:
        with self._changed:
            counts = {f"{operation}_count": count for operation, count in self._done_counts.items()}
            own = {"hanging": self._hanging, "struck": self._struck_count}
            return json.dumps({**self._done_bytes, **counts, **own}).encode()

    def _strike(self, operation: Operation, offset_bytes: int, length_bytes: int) -> Fault | None:
        """Return the fault that affects this call, if any; raise its error, or wait for the end of its hang."""
        counted = operation if operation in (Operation.READ, Operation.WRITE) else Operation.WRITE
        with self._changed:
            for index, fault in enumerate(self._behaviour.faults):
                used_up = fault.count is not None and self._fault_counts[index] >= fault.count
                if (
                    fault.operation is not operation
                    or used_up
                    or not self._armed[index]
                    or self._done_bytes[counted] < fault.after_bytes
                    or not fault.touches(offset_bytes, length_bytes)
                ):
                    continue
                self._seen_counts[index] += 1
                if self._seen_counts[index] <= fault.after_count:
                    continue
                self._fault_counts[index] += 1
                self._struck_count += 1
                if fault.action is Action.ERROR:
                    code = getattr(errno, fault.error)
                    raise OSError(code, os.strerror(code))
                if fault.action is Action.HANG:
                    self._hanging += 1
                    self._wait_for_change(None)
                    self._hanging -= 1
                return fault
        return None

    def _generator(self, fault: Fault) -> random.Random:
        """Return the random generator for the fault's next bit."""
        with self._changed:
            faults = self._behaviour.faults
            return self._generators[faults.index(fault)] if fault in faults else random.Random(fault.seed)

    def _pass(self, operation: Operation, byte_count: int, bytes_per_s: float | None) -> None:
        """Wait for the time that the arm needs for these bytes."""
        with self._changed:
            self._done_bytes[operation] += byte_count
            self._done_counts[operation] += 1
            if bytes_per_s is None:
                return
            self._free_at = max(self._free_at, time.monotonic()) + byte_count / bytes_per_s
            self._wait_for_change(self._free_at - time.monotonic())

    def _wait_for_change(self, timeout_s: float | None) -> None:
        before = self._behaviour
        self._changed.wait_for(lambda: self._behaviour is not before, timeout_s)


def _half(length: int) -> int:
    """Return the length of a short call, never 0, so that a caller that continues comes to an end."""
    return max(length // 2 // _SECTOR_BYTES * _SECTOR_BYTES, min(length, _SECTOR_BYTES))


def main(storage: Path, mountpoint: Path) -> None:
    """Serve until unmounted."""
    server = FuseServer(storage, mountpoint, _Arm(), ATTRIBUTE)
    print(json.dumps({"event": "mounted"}), flush=True)
    server.serve()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
