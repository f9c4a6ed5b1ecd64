"""Disks that fail, lie or hang, under a restore and under a real cast.

Lost if these fail: a receiver that says "verified" of wrong bytes, or that can't say what is wrong with its disk. Every
run ends right, compared with the image byte for byte, or with its typed error; a target that didn't become complete
doesn't look bootable.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import ReceiversIncompleteError, StorageError, VerificationError
from protocol.image.incomplete_marker import parse_marker_untrusted
from tests.support.disks.bootable_disk import looks_bootable, make_bootable_disk
from tests.support.disks.power_cuts import BLOCK_BYTES, SmallImage, make_small_image
from tests.support.disks.slow_disk import Action, Behaviour, Fault, Operation, SlowDisk, loop_over, slow_disk
from tests.support.network.lab import LIMIT_S, Program, diskcast_agent
from tests.support.network.loopback_cast import LoopbackCast, assert_memory_kept

pytestmark = pytest.mark.needs_root

VICTIM = 42
"""A block in the middle of the image's data, written once in a run without faults."""
RIGHT_ALREADY = 44
"""A block that the target holds before the run."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
    """The required end of a run."""

    exit_code: int = 0
    says: tuple[str, ...] = ()


RIGHT = Ending()
FAILED = Ending(StorageError.exit_code, ("incomplete",))
WRONG_TWICE = Ending(
    VerificationError.exit_code, (f"block {VICTIM}", str(VICTIM * BLOCK_BYTES), "incomplete")
)


def on_victim(operation: Operation, action: Action, **fields: int | str) -> Fault:
    """Return a fault of one block."""
    where = {"start_bytes": VICTIM * BLOCK_BYTES, "stop_bytes": (VICTIM + 1) * BLOCK_BYTES}
    return Fault(operation, action, **{**where, **fields})  # type: ignore[arg-type]


on_boot_sector = functools.partial(Fault, Operation.WRITE, start_bytes=446, stop_bytes=510, after_count=2)
"""The write of the partition table: the third write there, after two of the marker."""

CASES = {
    "no space": (
        Fault(Operation.WRITE, Action.ERROR, error="ENOSPC", after_bytes=1 << 20),
        Ending(StorageError.exit_code, ("No space left", "make room")),
    ),
    "write error": (
        Fault(Operation.WRITE, Action.ERROR, after_bytes=1 << 20),
        Ending(StorageError.exit_code, ("Input/output error", "kernel log")),
    ),
    "write error, once": (on_victim(Operation.WRITE, Action.ERROR, count=1), FAILED),
    "unreadable": (
        on_victim(Operation.READ, Action.ERROR),
        Ending(StorageError.exit_code, ("Input/output error", "SMART")),
    ),
    "read-back error": (
        on_victim(Operation.READ, Action.ERROR, after_write=True),
        Ending(StorageError.exit_code, ("Input/output error", "SMART")),
    ),
    "flush error, once": (Fault(Operation.FLUSH, Action.ERROR, count=1), FAILED),
    "bit flipped, once": (on_victim(Operation.WRITE, Action.FLIP, count=1, seed=1), RIGHT),
    "bit flipped, always": (on_victim(Operation.WRITE, Action.FLIP, seed=2), WRONG_TWICE),
    "bit flipped on the way back, once": (
        on_victim(Operation.READ, Action.FLIP, after_write=True, count=1, seed=3),
        RIGHT,
    ),
    "bit flipped on the way back, always": (on_victim(Operation.READ, Action.FLIP, seed=4), WRONG_TWICE),
    "write lost, once": (on_victim(Operation.WRITE, Action.LOSE, count=1), RIGHT),
    "write lost, always": (on_victim(Operation.WRITE, Action.LOSE), WRONG_TWICE),
    "short write, once": (on_victim(Operation.WRITE, Action.SHORT, count=1), RIGHT),
    "write misdirected, once": (
        on_victim(
            Operation.WRITE, Action.MISDIRECT, count=1, shift_bytes=(RIGHT_ALREADY - VICTIM) * BLOCK_BYTES
        ),
        Ending(
            VerificationError.exit_code,
            (f"block {RIGHT_ALREADY}", "was verified, but has changed", "incomplete"),
        ),
    ),
    "write misdirected, always": (
        on_victim(Operation.WRITE, Action.MISDIRECT, shift_bytes=(RIGHT_ALREADY - VICTIM) * BLOCK_BYTES),
        WRONG_TWICE,
    ),
    "boot sector flipped, once": (on_boot_sector(Action.FLIP, count=1, seed=5), RIGHT),
    "boot sector flipped, always": (
        on_boot_sector(Action.FLIP, seed=6),
        Ending(VerificationError.exit_code, ("block 0 (byte 0)", "incomplete")),
    ),
    "boot sector lost, once": (on_boot_sector(Action.LOSE, count=1), RIGHT),
    "boot sector refused, once": (on_boot_sector(Action.ERROR, count=1), FAILED),
    "boot sector misdirected, once": (
        on_boot_sector(Action.MISDIRECT, count=1, shift_bytes=RIGHT_ALREADY * BLOCK_BYTES),
        Ending(
            VerificationError.exit_code,
            (f"block {RIGHT_ALREADY}", "was verified, but has changed", "incomplete"),
        ),
    ),
}

HANGS = {
    Operation.READ: on_victim(Operation.READ, Action.HANG, count=1),
    Operation.WRITE: on_victim(Operation.WRITE, Action.HANG, count=1),
    Operation.FLUSH: Fault(Operation.FLUSH, Action.HANG, after_bytes=1 << 20, count=1),
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> SmallImage:
    return make_small_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def base(image: SmallImage, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return another system's disk with one block that matches the image."""
    other = bytearray(make_bootable_disk(tmp_path_factory.mktemp("other") / "disk.raw", seed=2))
    same = slice(RIGHT_ALREADY * BLOCK_BYTES, (RIGHT_ALREADY + 1) * BLOCK_BYTES)
    other[same] = image.raw[same]
    return bytes(other)


class Bed:
    """A faulty disk with a target on it."""

    def __init__(self, image: SmallImage, base: bytes, disk: SlowDisk, target: Path) -> None:
        self.image = image
        self.base = base
        self.disk = disk
        self.target = target

    def content(self) -> bytes:
        """Return the content of the disk itself."""
        return (self.disk.storage / "target").read_bytes()

    def restore(self) -> Program:
        return Program(diskcast_agent("restore", self.image.path, "--target", self.target, "--json"))

    def assert_ended(self, agent: Program, ending: Ending) -> None:
        """Check the agent's exit code and message, and that its statement about the target is true."""
        assert agent.wait(LIMIT_S) == ending.exit_code, agent.describe()
        result, content = agent.result, self.content()
        assert result["ok"] is (ending.exit_code == 0)
        if result["ok"]:
            assert self.image.wrong_blocks(content) == []
        else:
            assert all(text in result["error"] for text in ending.says), result["error"]
            if content != self.base:
                assert not looks_bootable(content)
                assert parse_marker_untrusted(content[:512]) is not None
        assert_memory_kept([agent])


@contextlib.contextmanager
def bed(image: SmallImage, base: bytes, folder: Path, *, is_device: bool) -> Iterator[Bed]:
    with slow_disk(folder, Behaviour()) as disk, contextlib.ExitStack() as stack:
        (disk.storage / "target").write_bytes(base)
        target = disk.directory / "target"
        if is_device:
            target = stack.enter_context(loop_over(target))
        yield Bed(image, base, disk, target)
        disk.set_behaviour(Behaviour())


@pytest.fixture
def file_bed(image: SmallImage, base: bytes, tmp_path: Path) -> Iterator[Bed]:
    with bed(image, base, tmp_path, is_device=False) as made:
        yield made


@pytest.fixture
def device_bed(image: SmallImage, base: bytes, tmp_path: Path) -> Iterator[Bed]:
    with bed(image, base, tmp_path, is_device=True) as made:
        yield made


# -- a restore --------------------------------------------------------------------------------------------------


def restore_with(bed: Bed, fault: Fault, ending: Ending) -> None:
    bed.disk.set_behaviour(Behaviour(faults=(fault,)))
    with bed.restore() as agent:
        bed.assert_ended(agent, ending)
    assert bed.disk.counts()["struck"] > 0


@pytest.mark.parametrize("case", CASES)
def test_restore_to_a_faulty_device(device_bed: Bed, case: str) -> None:
    restore_with(device_bed, *CASES[case])


@pytest.mark.parametrize(
    "case", ["no space", "read-back error", "bit flipped, once", "bit flipped, always", "write lost, once"]
)
def test_restore_to_a_faulty_file(file_bed: Bed, case: str) -> None:
    """Between a file and its disk is the page cache, whose success doesn't count."""
    restore_with(file_bed, *CASES[case])


def test_restore_with_short_writes(file_bed: Bed) -> None:
    """Each call does half of its work; on a file, since for a device the kernel continues on its own."""
    restore_with(file_bed, Fault(Operation.WRITE, Action.SHORT), RIGHT)


@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
def test_restore_loses_zeros(image: SmallImage, base: bytes, tmp_path: Path, always: bool) -> None:
    """Punched holes that read back as data: the zeros are written instead, or the run fails."""
    with bed(image, base, tmp_path, is_device=False) as made:
        fault = Fault(Operation.PUNCH, Action.LOSE, count=None if always else 1)
        made.disk.set_behaviour(Behaviour(faults=(fault,)))
        with made.restore() as agent:
            code = agent.wait(LIMIT_S)
            made.assert_ended(
                agent, RIGHT if code == 0 else Ending(VerificationError.exit_code, ("incomplete",))
            )
        assert made.disk.counts()["struck"] > 0


def test_no_failed_flush_is_retried_into_success(image: SmallImage, base: bytes, tmp_path: Path) -> None:
    """Any one flush of a run fails: the kernel reports it only once and has forgotten the pages."""
    with bed(image, base, tmp_path, is_device=True) as made:
        before_count = made.disk.counts()["flush_count"]  # creating the loop device flushes, too
        with made.restore() as agent:
            made.assert_ended(agent, RIGHT)
        flush_count = made.disk.counts()["flush_count"] - before_count
        assert flush_count >= 3
        for index in range(flush_count):
            (made.disk.storage / "target").write_bytes(base)
            fault = Fault(Operation.FLUSH, Action.ERROR, after_count=index, count=1)
            made.disk.set_behaviour(Behaviour(faults=(fault,)))
            with made.restore() as agent:
                assert agent.wait(LIMIT_S) == StorageError.exit_code, (index, agent.describe())
                assert "incomplete" in agent.result["error"]
            made.disk.set_behaviour(Behaviour())
            with made.restore() as agent:
                made.assert_ended(agent, RIGHT)


@pytest.mark.parametrize("operation", HANGS)
def test_restore_waits_for_a_disk_that_hangs(device_bed: Bed, operation: Operation) -> None:
    fault = HANGS[operation]
    device_bed.disk.set_behaviour(Behaviour(faults=(fault,)))
    with device_bed.restore() as agent:
        device_bed.disk.wait_hanging(agent)
        device_bed.disk.set_behaviour(Behaviour())
        device_bed.assert_ended(agent, RIGHT)


# -- a cast -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_cast_to_a_faulty_disk(device_bed: Bed, case: str) -> None:
    fault, ending = CASES[case]
    device_bed.disk.set_behaviour(Behaviour(faults=(fault,)))
    with LoopbackCast(device_bed.image.path) as cast:
        agent = cast.receive(device_bed.target)
        device_bed.assert_ended(agent, ending)
        if device_bed.content() != device_bed.base:  # otherwise the sender waits for a machine that works
            sender_code = ReceiversIncompleteError.exit_code if ending.exit_code else 0
            assert cast.sender.wait(LIMIT_S) == sender_code, cast.sender.describe()
    assert device_bed.disk.counts()["struck"] > 0


def test_cast_with_short_writes(file_bed: Bed) -> None:
    file_bed.disk.set_behaviour(Behaviour(faults=(Fault(Operation.WRITE, Action.SHORT),)))
    with LoopbackCast(file_bed.image.path) as cast:
        file_bed.assert_ended(cast.receive(file_bed.target), RIGHT)
        assert cast.sender.wait(LIMIT_S) == 0, cast.sender.describe()


@pytest.mark.parametrize("operation", HANGS)
def test_cast_waits_for_a_disk_that_hangs(device_bed: Bed, operation: Operation) -> None:
    """The agent stays in contact with the sender, which never gives it up."""
    fault = HANGS[operation]
    device_bed.disk.set_behaviour(Behaviour(faults=(fault,)))
    with LoopbackCast(device_bed.image.path, "--receiver-timeout", "3") as cast:
        agent = cast.receive(device_bed.target)
        device_bed.disk.wait_hanging(agent)
        hung_s = max((event.get("seconds", 0.0) for event in agent.events), default=0.0)
        agent.wait_event("progress", LIMIT_S, lambda event: event["seconds"] > hung_s + 5)
        device_bed.disk.set_behaviour(Behaviour())
        device_bed.assert_ended(agent, RIGHT)
        assert cast.sender.wait(LIMIT_S) == 0, cast.sender.describe()
