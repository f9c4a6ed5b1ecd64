"""One disk fails, returns wrong data or hangs, and the other machines of the room complete.

If these failed, one bad disk would keep a room of thirty from being imaged. ``python -m tests.bench.faulty_neighbour``
measures the slowdown of the other machines.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from protocol.constants import MIB
from protocol.errors import ReceiversIncompleteError, StorageError, VerificationError
from tests.bench.measurement import first_difference
from tests.support.disks.slow_disk import Action, Behaviour, Fault, Operation, SlowDisk, slow_disk
from tests.support.network.lab import LIMIT_S, Network, Program, diskcast, receive, send
from tests.support.network.loopback_cast import assert_memory_kept

pytestmark = pytest.mark.needs_root

CAST_ID = "00c0ffee"
RATE = "96M"
"""12 MB/s: the image takes a second and a half."""
IMAGE_BYTES = 16 * MIB
HEALTHY = range(3)
FAULTY = 3
fault_inside = functools.partial(Fault, start_bytes=9 * MIB, stop_bytes=10 * MIB)
"""In the middle of the cast, and not among the blocks that are committed last."""

FAILING = {
    "no space": (Fault(Operation.WRITE, Action.ERROR, error="ENOSPC", after_bytes=4 * MIB), StorageError),
    "write error": (Fault(Operation.WRITE, Action.ERROR, after_bytes=4 * MIB), StorageError),
    "read-back error": (fault_inside(Operation.READ, Action.ERROR), StorageError),
    "flush error": (Fault(Operation.FLUSH, Action.ERROR, after_bytes=4 * MIB), StorageError),
    "bits flipped": (fault_inside(Operation.WRITE, Action.FLIP, seed=1), VerificationError),
    "writes lost": (fault_inside(Operation.WRITE, Action.LOSE), VerificationError),
    "writes misdirected": (
        fault_inside(Operation.WRITE, Action.MISDIRECT, shift_bytes=3 * MIB),
        VerificationError,
    ),
}
PASSING = {
    "short writes": Fault(Operation.WRITE, Action.SHORT),
    "bits flipped, once": fault_inside(Operation.WRITE, Action.FLIP, count=1, seed=2),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk of random bytes, and its image."""
    source = tmp_path_factory.mktemp("neighbour") / "disk.raw"
    source.write_bytes(np.random.default_rng(17).bytes(IMAGE_BYTES))
    with Program(diskcast("pack", source, "-o", source.with_suffix(".dci"), "--json")) as program:
        assert program.wait(LIMIT_S) == 0, program.describe()
    return source


class Room:
    """Yield three healthy machines and one with a faulty disk, in the middle of a cast."""

    def __init__(self, network: Network, disk: SlowDisk, source: Path, folder: Path) -> None:
        self.disk = disk
        self._source = source
        self._targets = [folder / str(index) for index in HEALTHY] + [disk.directory / "target"]
        self.agents = [
            receive(network, index, target, "--cast", CAST_ID, "--name", f"r{index}")
            for index, target in enumerate(self._targets)
        ]
        image = source.with_suffix(".dci")
        self.sender = send(network, image, "--cast-id", CAST_ID, "--wait-for", "4", "--rate", RATE)

    @property
    def faulty(self) -> Program:
        return self.agents[FAULTY]

    def assert_others_complete(self) -> None:
        """Check that the healthy machines succeeded with correct targets."""
        for index in HEALTHY:
            self._assert_complete(self.agents[index], self._targets[index])

    def assert_all_complete(self) -> None:
        """Check that the faulty machine succeeded too."""
        self.assert_others_complete()
        self._assert_complete(self.faulty, self.disk.storage / "target")
        assert self.sender.wait(LIMIT_S) == 0, self.sender.describe()

    def _assert_complete(self, agent: Program, target: Path) -> None:
        assert agent.wait(LIMIT_S) == 0, agent.describe()
        assert first_difference(self._source, target) is None
        assert_memory_kept([agent])


@pytest.fixture
def room(request: pytest.FixtureRequest, source: Path, tmp_path: Path) -> Iterator[Room]:
    fault: Fault = request.param
    with slow_disk(tmp_path, Behaviour(faults=(fault,))) as disk, Network(4) as network:
        yield Room(network, disk, source, tmp_path)
        disk.set_behaviour(Behaviour())


@pytest.mark.parametrize(
    ("room", "error"), [pytest.param(*case, id=name) for name, case in FAILING.items()], indirect=["room"]
)
def test_one_disk_fails_and_the_others_complete(room: Room, error: type[StorageError]) -> None:
    room.assert_others_complete()
    assert room.faulty.wait(LIMIT_S) == error.exit_code, room.faulty.describe()
    assert room.sender.wait(LIMIT_S) == ReceiversIncompleteError.exit_code, room.sender.describe()
    states = {one["name"]: one["state"] for one in room.sender.result["receivers"]}
    assert [states[f"r{index}"] for index in HEALTHY] == ["complete"] * len(HEALTHY)
    assert states[f"r{FAULTY}"] != "complete"
    assert_memory_kept([room.faulty])


@pytest.mark.parametrize(
    "room", [pytest.param(fault, id=name) for name, fault in PASSING.items()], indirect=True
)
def test_one_disk_errs_and_all_complete(room: Room) -> None:
    room.assert_all_complete()


@pytest.mark.parametrize(
    "room", [Fault(Operation.WRITE, Action.HANG, after_bytes=4 * MIB)], ids=["hang"], indirect=True
)
def test_one_disk_hangs_and_completes_after_the_others(room: Room) -> None:
    """The disk recovers long after the others have ended: the blocks that it missed are sent again."""
    room.disk.wait_hanging(room.faulty)
    room.assert_others_complete()
    assert room.disk.counts()["hanging"]
    assert room.faulty.exit_code is None
    room.disk.set_behaviour(Behaviour())
    room.assert_all_complete()
