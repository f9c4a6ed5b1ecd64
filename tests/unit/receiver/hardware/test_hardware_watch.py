"""The watch over the hardware. If these fail, a dying disk holds up check-ins, or its health is never reported."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Callable

import pytest
import trio

from protocol.model.hardware import DiskHealth, Hardware, HardwareDisk, SmartVerdict
from receiver.hardware import hardware_watch
from receiver.hardware.hardware_watch import HardwareWatch
from tests.support.hardware import sample_disk, sample_hardware

pytestmark = pytest.mark.trio

UNKNOWN = DiskHealth()
FAILING = DiskHealth(SmartVerdict.FAILING, 99, 4)


class Machine:
    """A machine whose disks come and go."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.asked: list[str] = []

    def read(self) -> Hardware:
        disks = [sample_disk(name=name, serial=name, health=UNKNOWN) for name in self.names]
        return sample_hardware(disks=tuple(disks))

    def health(self, disk: HardwareDisk) -> DiskHealth:
        self.asked.append(disk.name)
        return FAILING


@contextlib.asynccontextmanager
async def watching(watch: HardwareWatch) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        yield
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30.0):
        while not condition():
            await trio.sleep(0.001)


def healths(watch: HardwareWatch) -> dict[str, DiskHealth]:
    return {disk.name: disk.health for disk in watch.hardware.disks}


async def test_the_hardware_is_known_at_once_and_the_health_soon() -> None:
    machine = Machine("sda", "sdb")
    watch = HardwareWatch(machine.read, machine.health)
    assert healths(watch) == {"sda": UNKNOWN, "sdb": UNKNOWN}
    async with watching(watch):
        await until(lambda: healths(watch) == {"sda": FAILING, "sdb": FAILING})


async def test_disks_come_and_go_and_each_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question interrupts a disk."""
    monkeypatch.setattr(hardware_watch, "READ_AGAIN_S", 0.001)
    machine = Machine("sda")
    watch = HardwareWatch(machine.read, machine.health)
    async with watching(watch):
        machine.names = ["sda", "sdb"]
        await until(lambda: healths(watch) == {"sda": FAILING, "sdb": FAILING})
        machine.names = ["sdb"]
        await until(lambda: healths(watch) == {"sdb": FAILING})
    assert machine.asked == ["sda", "sdb"]


async def test_health_is_read_again_after_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("READ_AGAIN_S", "HEALTH_AGAIN_S"):
        monkeypatch.setattr(hardware_watch, name, 0.001)
    machine = Machine("sda")
    async with watching(HardwareWatch(machine.read, machine.health)):
        await until(lambda: len(machine.asked) > 1)


async def test_a_disk_that_never_answers_is_left_behind() -> None:
    """The thread that waits for it is abandoned: the agent receives its cast, and can exit."""
    asked, released = threading.Event(), threading.Event()

    def never(_disk: HardwareDisk) -> DiskHealth | None:
        asked.set()
        released.wait()
        return None

    machine = Machine("sda")
    watch = HardwareWatch(machine.read, never)
    try:
        async with watching(watch):
            await trio.to_thread.run_sync(asked.wait)
    finally:
        released.set()
    assert healths(watch) == {"sda": UNKNOWN}
