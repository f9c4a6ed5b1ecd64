"""A target on a disk that is slow or faulty, as a program of its own: ``python -m tests.slow_disk STORAGE MOUNTPOINT``.

:func:`slow_disk` starts it, mounts and unmounts. The disk's behaviour is :class:`Behaviour`, set at any time as JSON in
an extended attribute of the mounted directory; the same attribute read says what the disk has done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.fuse import FuseServer, unmount
from tests.lab import Program

ATTRIBUTE = "user.behaviour"
_START_LIMIT_S = 20.0


class Operation(enum.StrEnum):
    """What a fault befalls."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"


class Action(enum.StrEnum):
    """What a fault does."""

    ERROR = "error"
    """The call fails with ``error``."""
    SHORT = "short"
    """Half of it is done, and the call says so."""
    LOSE = "lose"
    """A write that isn't done, though the call says it is."""
    HANG = "hang"
    """Nothing happens, to this and all later calls, until the behaviour is set anew."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        operation: with which calls.
        action: what happens.
        error: name of the error code, for :attr:`Action.ERROR`.
        after_bytes: from this many bytes of that operation on (for flushes: bytes written).
        count: so often; None for ever.
    """

    operation: Operation
    action: Action
    error: str = "EIO"
    after_bytes: int = 0
    count: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Behaviour:
    """How the disk behaves. Reads and writes share its one arm: they wait for each other.

    Attributes:
        write_bytes_per_s: None for as fast as it goes.
        read_bytes_per_s: the same for reading.
        faults: what goes wrong.
    """

    write_bytes_per_s: float | None = None
    read_bytes_per_s: float | None = None
    faults: tuple[Fault, ...] = ()

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
        """Bytes by operation that were done so far, and ``hanging``: calls that hang now."""
        counted: dict[str, int] = json.loads(os.getxattr(self.directory, ATTRIBUTE))
        return counted


@contextlib.contextmanager
def slow_disk(folder: Path, behaviour: Behaviour) -> Iterator[SlowDisk]:
    """A slow disk whose storage and mount point are made in ``folder``; unmounted at the end, whoever still uses it.

    Raises:
        LabError: it can't be mounted.
    """
    disk = SlowDisk(folder / "mounted", folder / "storage")
    disk.directory.mkdir()
    disk.storage.mkdir()
    argv: list[str | Path] = [sys.executable, "-m", "tests.slow_disk", disk.storage, disk.directory]
    with Program(argv) as program:
        try:
            program.wait_event("mounted", _START_LIMIT_S)
            disk.set_behaviour(behaviour)
            yield disk
        finally:
            unmount(disk.directory)


class _Arm:
    """The disk's data path: rates and faults before files."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._behaviour = Behaviour()
        self._fault_counts: list[int] = []
        self._done_bytes = dict.fromkeys(Operation, 0)
        self._free_at = time.monotonic()
        self._hanging = 0

    def read(self, fd: int, offset_bytes: int, length: int) -> bytes:
        if self._strike(Operation.READ) is Action.SHORT:
            length //= 2
        data = os.pread(fd, length, offset_bytes)
        self._pass(Operation.READ, len(data), self._behaviour.read_bytes_per_s)
        return data

    def write(self, fd: int, offset_bytes: int, data: memoryview) -> int:
        action = self._strike(Operation.WRITE)
        if action is Action.SHORT:
            data = data[: len(data) // 2]
        if action is not Action.LOSE:
            os.pwrite(fd, data, offset_bytes)
        self._pass(Operation.WRITE, len(data), self._behaviour.write_bytes_per_s)
        return len(data)

    def flush(self, fd: int) -> None:
        self._strike(Operation.FLUSH)
        os.fdatasync(fd)

    def configure(self, text: bytes) -> None:
        try:
            behaviour = Behaviour.from_json(text)
        except (ValueError, TypeError, KeyError) as error:
            raise OSError(errno.EINVAL, str(error)) from error
        with self._changed:
            self._behaviour = behaviour
            self._fault_counts = [0] * len(behaviour.faults)
            self._free_at = time.monotonic()
            self._changed.notify_all()

    def describe(self) -> bytes:
        with self._changed:
            return json.dumps({**self._done_bytes, "hanging": self._hanging}).encode()

    def _strike(self, operation: Operation) -> Action | None:
        """The fault that befalls this call, if one does; an error is raised, a hang waited out."""
        counted = Operation.WRITE if operation is Operation.FLUSH else operation
        with self._changed:
            for index, fault in enumerate(self._behaviour.faults):
                used_up = fault.count is not None and self._fault_counts[index] >= fault.count
                if (
                    fault.operation is not operation
                    or used_up
                    or self._done_bytes[counted] < fault.after_bytes
                ):
                    continue
                self._fault_counts[index] += 1
                if fault.action is Action.ERROR:
                    code = getattr(errno, fault.error)
                    raise OSError(code, os.strerror(code))
                if fault.action is Action.HANG:
                    self._hanging += 1
                    self._wait_for_change(None)
                    self._hanging -= 1
                return fault.action
        return None

    def _pass(self, operation: Operation, byte_count: int, bytes_per_s: float | None) -> None:
        """Take the arm's time for so many bytes."""
        with self._changed:
            self._done_bytes[operation] += byte_count
            if bytes_per_s is None:
                return
            self._free_at = max(self._free_at, time.monotonic()) + byte_count / bytes_per_s
            self._wait_for_change(self._free_at - time.monotonic())

    def _wait_for_change(self, timeout_s: float | None) -> None:
        before = self._behaviour
        self._changed.wait_for(lambda: self._behaviour is not before, timeout_s)


def main(storage: Path, mountpoint: Path) -> None:
    """Serve until unmounted."""
    server = FuseServer(storage, mountpoint, _Arm(), ATTRIBUTE)
    print(json.dumps({"event": "mounted"}), flush=True)
    server.serve()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
