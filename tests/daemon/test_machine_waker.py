"""The waker and its room. Lost if these fail: a machine that didn't wake looks as if it were only off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from sender.actors import Actor
from sender.daemon.boots.booting_machines import BootingMachines
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.live_state import LiveState
from sender.daemon.presence import Presence
from sender.daemon.waking import wake_run
from sender.daemon.waking.broadcast import BroadcastReport
from sender.daemon.waking.machine_waker import MachineWaker
from sender.daemon.waking.wake_run import WavePace
from sender.labels import WAKE_REASONS
from sender.refusals import RequestRefusedError
from sender.store.records.machine_states import MachineState
from sender.store.records.wakes import Wake, WakeState
from sender.store.store import Store
from sender.store.write_behind import Recorder
from tests.store.samples import machine, room
from tests.support.idle_captures import idle_captures

OPERATOR = Actor("anna", "r1")


class Lab:
    """A room with two machines, and a waker whose packets are only noted."""

    def __init__(self, store: Store, directory: Path) -> None:
        self.store = store
        store.rooms.add(room("lab"))
        self.machines = [
            store.machines.add(machine(f"pc{index}", room_id="lab", macs=(f"52:54:00:00:00:0{index}",)))
            for index in (1, 2)
        ]
        self.recorder = Recorder(store, directory)
        self.presence = Presence()
        self.sent: list[str] = []
        self.problem = ""
        self.waker = MachineWaker(
            store, self.recorder, self.presence, WavePace(8, 0.0), broadcast=self.note_packets
        )
        registry = CastRegistry(ended_kept_s=0.0)
        self.live_state = LiveState(
            store,
            registry,
            self.presence,
            BootingMachines(store, registry),
            self.waker,
            idle_captures(store, registry.changes),
        )

    def note_packets(self, macs: Sequence[str]) -> BroadcastReport:
        self.sent += macs
        return BroadcastReport(() if self.problem else ("eth0",), self.problem)

    async def wake(self, *awake: str) -> Wake:
        """Wake the room, let the machines of these names show up, and return the result."""
        ended: asyncio.Future[Wake] = asyncio.get_running_loop().create_future()
        running = asyncio.create_task(self.waker.run())
        started = await self.waker.wake(self.machines, OPERATOR, on_end=ended.set_result)
        while len(set(self.sent)) < len(self.machines):
            await asyncio.sleep(0.01)
        for each in self.machines:
            if each.name in awake:
                self.presence.note_sign(each.machine_id)
        result = await asyncio.wait_for(ended, 60)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        assert await self.waker.find(started.wake_id) == result
        recording = asyncio.create_task(self.recorder.run())
        assert await self.recorder.drain(60)
        recording.cancel()
        return result


@pytest.fixture
def lab(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(wake_run, "AWAKE_WITHIN_S", 2.5)  # later than the last repetition
    return Lab(store, tmp_path)


def test_a_machine_that_did_not_wake_is_shown_and_recorded(lab: Lab) -> None:
    async def scenario() -> None:
        result = await lab.wake("pc1")
        assert {each.name: each.state for each in result.machines} == {
            "pc1": WakeState.WOKE,
            "pc2": WakeState.SILENT,
        }
        tiles = {tile.name: tile for tile in await lab.live_state.machines("lab")}
        assert tiles["pc2"].state is MachineState.OFFLINE
        assert tiles["pc2"].error == WAKE_REASONS[WakeState.SILENT]
        assert tiles["pc1"].error == ""
        again = await lab.waker.wake(lab.machines, OPERATOR)
        assert again.ended_at is None
        tiles = {tile.name: tile for tile in await lab.live_state.machines("lab")}
        assert (tiles["pc2"].state, tiles["pc2"].error) == (MachineState.WAKING, "")

    asyncio.run(scenario())
    entries, _ = lab.store.audit.list()
    ends = [entry for entry in entries if entry.action == "wake.end"]
    assert [(entry.actor, entry.detail["awake"], entry.detail["asleep"]) for entry in ends] == [
        ("anna", 1, ["pc2"])
    ]
    assert lab.sent.count("52:54:00:00:00:02") == wake_run.REPEATS
    assert lab.sent.count("52:54:00:00:00:01") < wake_run.REPEATS, "no more packets once it is awake"


def test_packets_that_cannot_be_sent_are_a_problem_of_the_wake(lab: Lab) -> None:
    lab.problem = "no network interface is up with an IPv4 address"
    result = asyncio.run(lab.wake())
    assert (result.problem, result.interfaces) == (lab.problem, ())
    assert {each.state for each in result.machines} == {WakeState.SILENT}


def test_a_wake_without_machines_is_refused(lab: Lab) -> None:
    with pytest.raises(RequestRefusedError, match="no machines to wake"):
        asyncio.run(lab.waker.wake([], OPERATOR))
