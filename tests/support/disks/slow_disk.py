"""A target on a slow or faulty disk, as a program: ``python -m tests.support.disks.slow_disk STORAGE MOUNTPOINT``.

:func:`slow_disk` starts it, mounts and unmounts. The disk's behaviour is :class:`Behaviour`, set at any time as JSON in
an extended attribute of the mounted directory; the same attribute read says what the disk has done. A file on it is a
target, or the backing of a loop device that is one: :func:`loop_over` lets nothing of it be cached in between.
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
from tests.support.disks.fuse import FuseServer, unmount
from tests.support.disks.write_log import LogWriter
from tests.support.network.lab import LIMIT_S, LabError, Program, run, wait_until

ATTRIBUTE = "user.behaviour"
_SECTOR_BYTES = 512


class Operation(enum.StrEnum):
    """What a fault befalls."""

    READ = "read"
    WRITE = "write"
    PUNCH = "punch"
    """Making a hole, or zeros by command."""
    FLUSH = "flush"


class Action(enum.StrEnum):
    """What a fault does."""

    ERROR = "error"
    """The call fails with ``error``."""
    SHORT = "short"
    """Half of it is done, in whole sectors, and the call says so."""
    LOSE = "lose"
    """A write, hole or flush that isn't done, though the call says it is; of a write only what is in the range."""
    FLIP = "flip"
    """A write of which one bit, at a seeded place, arrives on the medium as the other."""
    MISDIRECT = "misdirect"
    """A write of which what is in the range lands ``shift_bytes`` further on, though the call says it doesn't."""
    HANG = "hang"
    """Nothing happens, to this and all later calls, until the behaviour is set anew."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        operation: with which calls.
        action: what happens.
        error: name of the error code, for :attr:`Action.ERROR`.
        after_bytes: from this many bytes of that operation on (for flushes and holes: bytes written).
        after_count: not with so many calls that it would befall otherwise.
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
        """Whether ``[offset, offset + length)`` has a byte that the fault is about."""
        stop_bytes = offset_bytes + length_bytes if self.stop_bytes is None else self.stop_bytes
        return offset_bytes < stop_bytes and offset_bytes + length_bytes > self.start_bytes

    def part(self, offset_bytes: int, length_bytes: int) -> tuple[int, int]:
        """Which of so many bytes at an offset the fault is about, counted from the first of them."""
        stop = length_bytes if self.stop_bytes is None else min(length_bytes, self.stop_bytes - offset_bytes)
        return max(0, self.start_bytes - offset_bytes), stop

    def flipped(self, data: memoryview, offset_bytes: int, rng: random.Random) -> bytearray:
        """A copy of what is written at ``offset_bytes`` with one bit flipped where the fault is."""
        copy = bytearray(data)
        copy[rng.randrange(*self.part(offset_bytes, len(copy)))] ^= 1 << rng.randrange(8)
        return copy


@dataclasses.dataclass(frozen=True, slots=True)
class Behaviour:
    """How the disk behaves. Reads and writes share its one arm: they wait for each other.

    Attributes:
        write_bytes_per_s: None for as fast as it goes.
        read_bytes_per_s: the same for reading.
        faults: what goes wrong; the first that befalls a call counts.
        log_path: where all that reaches the medium is logged (:mod:`tests.support.disks.write_log`), for
            disks with one file; a new log begins whenever a path is set.
    """

    write_bytes_per_s: float | None = None
    read_bytes_per_s: float | None = None
    faults: tuple[Fault, ...] = ()
    log_path: str | None = None

    def to_json(self) -> bytes:
        """As the extended attribute takes it."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Behaviour:
        """The reverse; ``ValueError``, ``TypeError`` or ``KeyError`` if it isn't one."""
        fields = json.loads(text)
        faults = tuple(
            Fault(**{**fault, "operation": Operation(fault["operation"]), "action": Action(fault["action"])})
            for fault in fields.pop("faults", ())
        )
        return cls(**fields, faults=faults)


@dataclasses.dataclass(frozen=True, slots=True)
class SlowDisk:
    """A mounted one.

    Attributes:
        directory: where targets are made.
        storage: where their content is found at full speed.
    """

    directory: Path
    storage: Path

    def set_behaviour(self, behaviour: Behaviour) -> None:
        """From now on; faults are counted anew, and what hung goes on."""
        os.setxattr(self.directory, ATTRIBUTE, behaviour.to_json())

    def counts(self) -> dict[str, int]:
        """What was done so far: bytes by operation (``read``, …), calls (``read_count``, …), faults that befell a call
        (``struck``), and ``hanging``: calls that hang now.
        """
        counted: dict[str, int] = json.loads(os.getxattr(self.directory, ATTRIBUTE))
        return counted

    def wait_hanging(self, program: Program) -> None:
        """Wait until a call hangs; ``program`` is what makes it.

        Raises:
            LabError: it ended instead.
        """

        def hangs() -> bool:
            if program.exit_code is not None:
                raise LabError(f"it ended before a call hung: {program.describe()}")
            return self.counts()["hanging"] > 0

        wait_until("a call hangs", hangs, describe=program.describe)


@contextlib.contextmanager
def slow_disk(folder: Path, behaviour: Behaviour) -> Iterator[SlowDisk]:
    """A slow disk whose storage and mount point are made in ``folder``; unmounted at the end, whoever still uses it.

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
    """A loop device over a file of the disk, past the page cache, so that faults are a block device's."""
    device = run("losetup", "--find", "--show", "--direct-io=on", backing).strip()
    try:
        yield Path(device)
    finally:
        run("losetup", "--detach", device)


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
        """Faults that wait for a write of their range are armed."""
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
        """The fault that befalls this call, if one does; an error is raised, a hang waited out."""
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
        """Where the fault's next bit is drawn from."""
        with self._changed:
            faults = self._behaviour.faults
            return self._generators[faults.index(fault)] if fault in faults else random.Random(fault.seed)

    def _pass(self, operation: Operation, byte_count: int, bytes_per_s: float | None) -> None:
        """Take the arm's time for so many bytes."""
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
    """Never nothing, so that who goes on with the rest comes to an end."""
    return max(length // 2 // _SECTOR_BYTES * _SECTOR_BYTES, min(length, _SECTOR_BYTES))


def main(storage: Path, mountpoint: Path) -> None:
    """Serve until unmounted."""
    server = FuseServer(storage, mountpoint, _Arm(), ATTRIBUTE)
    print(json.dumps({"event": "mounted"}), flush=True)
    server.serve()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
