"""Kills of the agent, after which the same command runs again while the sender continues.

A failure here means a machine that must be imaged from the start after a crash, or that ends with wrong bytes. The disk
hangs at a chosen call, the agent is killed there, and the disk continues: every run uses the same moments.
``python -m tests.soak.kill`` takes a hundred random ones.
"""

from __future__ import annotations

import itertools
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.image.incomplete_marker import parse_marker_untrusted
from tests.support.disks.bootable_disk import DISK_BYTES, looks_bootable, make_bootable_disk
from tests.support.disks.power_cuts import BLOCK_BYTES, SmallImage, make_small_image
from tests.support.disks.slow_disk import Action, Behaviour, Fault, Operation, SlowDisk, loop_over, slow_disk
from tests.support.network.lab import LIMIT_S
from tests.support.network.loopback_cast import LoopbackCast, assert_memory_kept

pytestmark = pytest.mark.needs_root

EDGE_BYTES = 1 << 20
KILLS = {
    "in the scan": Fault(Operation.READ, Action.HANG, after_count=10),
    "at the first change": Fault(Operation.WRITE, Action.HANG),
    "at the first flush": Fault(Operation.FLUSH, Action.HANG),
    "in the middle of the data": Fault(Operation.WRITE, Action.HANG, start_bytes=2 << 20, stop_bytes=3 << 20),
    "at a later flush": Fault(Operation.FLUSH, Action.HANG, after_count=2),
    "before the table's copy": Fault(Operation.WRITE, Action.HANG, start_bytes=DISK_BYTES - EDGE_BYTES),
    "before the first block": Fault(Operation.WRITE, Action.HANG, start_bytes=4096, stop_bytes=65536),
    "before the boot sector": Fault(Operation.WRITE, Action.HANG, stop_bytes=512, after_count=1),
}
"""The disk call during which the agent is killed."""
REFETCHED_BYTES_MAX = 4 * BLOCK_BYTES
"""Bytes that a run may receive beyond the missing ones: headers and repairs for others, for an image of this size."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> SmallImage:
    return make_small_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def other_disk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_bootable_disk(tmp_path_factory.mktemp("other") / "disk.raw", seed=2)


class Bed:
    """A target that starts with another system's content."""

    def __init__(self, image: SmallImage, disk: SlowDisk, device: Path) -> None:
        self.image = image
        self.device = device
        self._disk = disk

    def content(self) -> bytes:
        return (self._disk.storage / "target").read_bytes()

    def counts(self) -> dict[str, int]:
        return self._disk.counts()

    def run_and_kill(self, cast: LoopbackCast, moment: Fault) -> None:
        """Start the agent and kill it in the call that hangs."""
        self._disk.set_behaviour(Behaviour(faults=(moment,)))
        agent = cast.receive(self.device)
        self._disk.wait_hanging(agent)
        agent.signal(signal.SIGKILL)
        self._disk.set_behaviour(Behaviour())
        agent.wait(LIMIT_S)
        assert_memory_kept([agent])

    def missing_inside(self) -> set[int]:
        """Return the blocks that the target misses, without those that are always written last."""
        edge_blocks = EDGE_BYTES // BLOCK_BYTES
        inside = range(edge_blocks, DISK_BYTES // BLOCK_BYTES - edge_blocks)
        return {block for block in self.image.wrong_blocks(self.content()) if block in inside}

    def missing_bytes(self) -> int:
        """Return the raw bytes of the blocks that the target misses."""
        return len(self.image.wrong_blocks(self.content())) * BLOCK_BYTES

    def finish(self, cast: LoopbackCast) -> None:
        """Run again; the run must succeed and receive little more than the missing blocks."""
        missing_bytes = self.missing_bytes()
        agent = cast.receive(self.device)
        assert agent.wait(LIMIT_S) == 0, agent.describe()
        assert self.image.wrong_blocks(self.content()) == []
        assert agent.result["bytes_received"] <= missing_bytes + REFETCHED_BYTES_MAX
        assert_memory_kept([agent])


@pytest.fixture
def target(image: SmallImage, other_disk: bytes, tmp_path: Path) -> Iterator[Bed]:
    with slow_disk(tmp_path, Behaviour()) as disk:
        (disk.storage / "target").write_bytes(other_disk)
        with loop_over(disk.directory / "target") as device:
            yield Bed(image, disk, device)
            disk.set_behaviour(Behaviour())


@pytest.mark.parametrize("moment", KILLS.values(), ids=KILLS)
def test_an_agent_killed_anywhere_is_finished_by_the_next_one(target: Bed, moment: Fault) -> None:
    with LoopbackCast(target.image.path) as cast:
        target.run_and_kill(cast, moment)
        left = target.content()
        if parse_marker_untrusted(left[:512]) is not None:
            assert not looks_bootable(left)
        target.finish(cast)


def test_an_agent_killed_again_and_again_loses_nothing(target: Bed) -> None:
    """Each run continues where the previous one stopped."""
    rng = random.Random(3)
    with LoopbackCast(target.image.path) as cast:
        missing = [target.missing_inside()]
        for _ in range(3):
            target.run_and_kill(cast, Fault(Operation.WRITE, Action.HANG, after_count=rng.randint(8, 16)))
            missing.append(target.missing_inside())
        assert all(after <= before for before, after in itertools.pairwise(missing))
        assert missing[0] > missing[-1]
        target.finish(cast)
