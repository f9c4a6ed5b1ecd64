"""The bottleneck that a receiver with a stuck disk or processor reports to people and to the sender; real threads.

Lost if these fail: the operator searches for a network fault while a disk is dying.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from protocol.errors import StorageError
from protocol.image.stored_manifest import StoredManifest
from protocol.model.session_records import CastParameters
from receiver.reception.reporting.status import ReceptionStatus
from receiver.target.image import PermitPatch, TargetImage, no_patch
from tests.shell.small_cast import BLOCK_BYTES, SmallCast, SmallImage
from tests.support.network.lab import LIMIT_S

pytestmark = pytest.mark.trio

STATUS_COUNT = 20
"""Statuses that must agree before the machine continues."""

HELD_S_MAX = 120.0
"""Longest time that a thread is held, in case a test fails."""


class HeldImage(TargetImage):
    """A target that waits in one step of every block until the gate opens."""

    gate: ClassVar[threading.Event]

    def hold(self, step: Callable[..., object]) -> Callable[..., object]:
        def held(*arguments: object) -> object:
            self.gate.wait(HELD_S_MAX)
            return step(*arguments)

        return held

    def take_manifest(
        self,
        data: bytes | memoryview | StoredManifest,
        parameters: CastParameters,
        permit: PermitPatch = no_patch,
    ) -> None:
        super().take_manifest(data, parameters, permit)
        self.hold_step()

    def hold_step(self) -> None:
        raise NotImplementedError


class StuckDisk(HeldImage):
    """A target whose disk takes no block."""

    def hold_step(self) -> None:
        assert self._sink is not None
        self._sink._writer.write = self.hold(self._sink._writer.write)  # type: ignore[method-assign,assignment]


class StuckProcessor(HeldImage):
    """A target whose blocks aren't decompressed."""

    def hold_step(self) -> None:
        assert self._sink is not None
        self._sink._decode_into = self.hold(self._sink._decode_into)  # type: ignore[method-assign,assignment]


class StuckReadBack(HeldImage):
    """A target whose blocks are written but not read back."""

    def hold_step(self) -> None:
        assert self._sink is not None
        self._sink.verify = self.hold(self._sink.verify)  # type: ignore[method-assign,assignment]


class HungDisk(HeldImage):
    """A target whose writes don't return, with a short limit for the watchdog."""

    def hold_step(self) -> None:
        assert self._sink is not None
        writer, watch = self._sink._writer, self._sink.target.hang_watchdog
        writer._write_direct = self.hold(writer._write_direct)  # type: ignore[method-assign,assignment]
        writer._write_cached = self.hold(writer._write_cached)  # type: ignore[method-assign,assignment]
        watch._limit_s = 0.5


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    HeldImage.gate = threading.Event()
    yield HeldImage.gate
    HeldImage.gate.set()


@pytest.mark.parametrize(
    ("image_class", "buffers", "bottleneck"),
    [(StuckDisk, 8, "disk"), (StuckProcessor, 8, "decode"), (StuckReadBack, 64, "disk")],
)
async def test_the_bottleneck_is_named_and_stays_named(
    tmp_path: Path, gate: threading.Event, image_class: type[HeldImage], buffers: int, bottleneck: str
) -> None:
    """Eight buffers run out and symbols are dropped: neither network nor socket may be named for that."""
    cast = SmallCast(SmallImage(), tmp_path)
    cast.observer.interval_s = 0.02
    named: list[str] = []
    reported: set[str] = set()

    def check(status: ReceptionStatus) -> None:
        if status.bottleneck == bottleneck:
            assert cast.sender is not None
            reported.add(next(iter(cast.sender.receivers.values())).bottleneck)
        if named or status.bottleneck == bottleneck:
            named.append(status.bottleneck)
        if len(named) >= STATUS_COUNT and bottleneck in reported:
            gate.set()

    cast.observer.on_progress = check
    cast.start_sender()
    reception = await cast.receive(image_class, within_s=LIMIT_S, assembly_bytes=buffers * BLOCK_BYTES)
    assert cast.path.read_bytes() == cast.image.raw
    assert named[:STATUS_COUNT] == [bottleneck] * STATUS_COUNT
    assert bottleneck in reported
    status = reception.status
    assert (status.pool_drops > 0) == (buffers == 8)
    assert status.bottleneck_seconds[bottleneck] > 0


async def test_a_disk_that_hangs_for_good_ends_the_agent(tmp_path: Path, gate: threading.Event) -> None:
    """The sender gets the report, and neither side waits for a thread that can't be interrupted."""
    cast = SmallCast(SmallImage(), tmp_path)
    cast.start_sender()
    with pytest.raises(StorageError, match=r"target\.img: writing .* hasn't returned for .* hangs"):
        await cast.receive(HungDisk, within_s=LIMIT_S)
    (report,) = cast.completions
    assert (report.success, report.exit_code) == (False, StorageError.exit_code)
    assert "hasn't returned" in report.error
    gate.set()
