"""Machines that load the live system: casts wait for them, and rooms show them as booting."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sender.actors import Actor
from sender.daemon.boots.boot_decisions import BootDecisions
from sender.daemon.boots.booting_machines import BootingMachines
from sender.daemon.jobs.awaited_casts import AwaitedCasts
from sender.daemon.jobs.cast_job import CastJob
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.jobs.ended_machines import EndedMachines
from sender.daemon.jobs.owner import Owner
from sender.daemon.live_state import LiveState
from sender.daemon.presence import Presence
from sender.daemon.waking.machine_waker import MachineWaker
from sender.daemon.waking.wake_run import WavePace
from sender.store.records.boots import BootReport, UnknownMachines
from sender.store.records.casts import CastPhase, StartMode
from sender.store.records.machine_states import MachineState
from sender.store.store import Store
from sender.store.write_behind import Recorder
from tests.store.samples import add_cast, line, machine, room
from tests.support.idle_captures import idle_captures

SERVICE = Actor("boot server", "r1")
MACS = ("52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:03")


class RecordedRun:
    """A session that records the number of machines that it waits for."""

    def __init__(self) -> None:
        self.expected_count = 0
        self.late_count = 0

    def expect_late(self, count: int) -> None:
        self.late_count = count

    def expect_more(self, count: int) -> None:
        self.expected_count = count


class Room:
    """A room that registers unknown machines, and a gathering cast to it."""

    def __init__(self, store: Store, directory: Path, **plan: Any) -> None:
        store.rooms.add(room("lab", unknown_machines="auto"))
        self.store = store
        self.registry = CastRegistry(ended_kept_s=0.0)
        self.booting = BootingMachines(store, self.registry)
        self.presence = Presence()
        recorder = Recorder(store, directory)
        waker = MachineWaker(store, recorder, self.presence, WavePace(8, 5.0))
        captures = idle_captures(store, self.registry.changes)
        self.live_state = LiveState(store, self.registry, self.presence, self.booting, waker, captures)
        awaited = AwaitedCasts(self.registry, EndedMachines(store, self.registry))
        self.decisions = BootDecisions(store, awaited, self.booting, captures, UnknownMachines.OFF)
        record = dataclasses.replace(
            add_cast(store, **({"room_id": "lab"} | plan)), phase=CastPhase.GATHERING
        )
        self.job = CastJob(record, recorder, owner=Owner("here", "d1", "r1"))
        self.run = RecordedRun()
        self.job.run = self.run  # type: ignore[assignment]
        self.registry.jobs[record.cast_id] = self.job
        self.registry.unfinished[record.cast_id] = record

    async def boot(self, mac: str) -> str:
        answer = await self.decisions.decide(BootReport(mac, room_id="lab"), SERVICE, None)
        return answer.boot_token

    async def watch(self) -> None:
        """Let the watch read the database once."""
        watching = asyncio.create_task(self.booting.run())
        await asyncio.wait_for(self._read(), 10)
        watching.cancel()

    async def _read(self) -> None:
        expected = {found.mac for found in self.store.boots.booting()}
        while {found.mac for found in self.booting._machines} != expected:
            await asyncio.sleep(0)
        await asyncio.sleep(0)


def test_a_cast_to_a_room_waits_for_every_machine_that_boots(store: Store, tmp_path: Path) -> None:
    """Otherwise the first of thirty new machines starts the cast, and the others come too late for its multicast."""
    lab = Room(store, tmp_path)

    async def play() -> None:
        for mac in MACS:
            assert await lab.boot(mac)
        await lab.watch()

    asyncio.run(play())
    assert lab.run.expected_count == 3
    assert lab.booting.count == 3
    lab.job.targets = {"m1": "pc01"}
    lab.job.put_machine(line(name="pc09", machine_id="m9", state="assigned"))
    assert lab.booting._expected(lab.job) == 4, "it has checked in, and is about to join"
    lab.job.put_machine(line(name="pc01", machine_id="m1", state="assigned"))
    assert lab.booting._expected(lab.job) == 4, "the cast waits for it anyway"


def test_a_machine_that_has_joined_isnt_awaited_again(store: Store, tmp_path: Path) -> None:
    """A boot loader that asks twice, or somebody who boots in its name, must not hold up the room."""
    lab = Room(store, tmp_path)
    known = store.machines.add(machine("pc01", macs=(MACS[0],), room_id="lab"))
    lab.job.targets = {known.machine_id: "pc01"}
    lab.job.put_machine(line(name="pc01", machine_id=known.machine_id, state="joined"))

    async def play() -> None:
        await lab.boot(MACS[0])
        await lab.watch()

    asyncio.run(play())
    assert lab.run.expected_count == 0
    assert lab.booting._expected(lab.job) == 0
    lab.job.put_machine(line(name="pc01", machine_id=known.machine_id, state="lost"))
    assert lab.booting._expected(lab.job) == 1


def test_a_cast_that_is_nearly_over_waits_for_a_machine_that_loads_the_live_system_for_it(
    store: Store, tmp_path: Path
) -> None:
    lab = Room(store, tmp_path)
    lab.job.records.change(phase=CastPhase.CASTING)
    known = store.machines.add(machine("pc01", macs=(MACS[0],), room_id="lab"))

    async def play() -> None:
        await lab.boot(MACS[0])
        await lab.watch()

    asyncio.run(play())
    assert (lab.run.expected_count, lab.run.late_count) == (0, 1)
    lab.job.put_machine(line(name="pc01", machine_id=known.machine_id, state="complete"))
    assert lab.booting._loading_count(lab.job) == 0, "it doesn't join again"


@pytest.mark.parametrize(
    "plan", [{"wait_for": 2}, {"start": StartMode.MANUAL}, {"room_id": None, "machine_ids": ("m1",)}]
)
def test_an_operators_own_number_and_other_casts_are_left_alone(
    store: Store, tmp_path: Path, plan: dict[str, Any]
) -> None:
    lab = Room(store, tmp_path, **plan)

    async def play() -> None:
        await lab.boot(MACS[0])
        await lab.watch()

    asyncio.run(play())
    assert lab.run.expected_count == 0


def test_a_machine_that_loads_the_live_system_is_shown_as_booting(store: Store, tmp_path: Path) -> None:
    lab = Room(store, tmp_path)
    known = store.machines.add(machine("pc01", macs=(MACS[0],), room_id="lab"))
    store.machines.add(machine("pc02", macs=(MACS[1],), room_id="lab"))

    async def play() -> dict[str, MachineState]:
        await lab.boot(MACS[0])
        await lab.watch()
        assert lab.booting.includes(known.machine_id)
        lab.job.run = None
        return {live.name: live.state for live in await lab.live_state.machines("lab")}

    assert asyncio.run(play()) == {"pc01": MachineState.BOOTING, "pc02": MachineState.OFFLINE}
