"""The waker: it sends magic packets in waves, watches for signs of life, and records the result."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog

from protocol.constants import RECEIVER_COUNT_MAX
from protocol.errors import DatabaseError
from sender.actors import Actor
from sender.daemon.presence import Presence
from sender.daemon.waking.broadcast import BroadcastReport, broadcast_magic_packets
from sender.daemon.waking.wake_run import WakeRun, WavePace, with_outage
from sender.refusals import conflict, invalid
from sender.store.records.machines import Machine, Room
from sender.store.records.wakes import ASLEEP_STATES, AWAKE_STATES, WAKING_STATES, Wake, WakeState
from sender.store.repositories.audit import Audit, new_entry_key
from sender.store.repositories.wakes import Wakes
from sender.store.store import Store
from sender.store.write_behind import Recorder

TICK_S: Final = 0.25
READ_INTERVAL_S: Final = 2.0
"""Interval of looks into the database for boots, and for check-ins at other daemons."""
SAVE_INTERVAL_S: Final = 5.0
RUNNING_MAX: Final = 64
"""Wakes that run at the same time: more come from a faulty script."""
ENDED_KEPT: Final = 100
SILENT_SHOWN: Final = timedelta(hours=1)
"""Time for which a room shows that a machine didn't wake."""

_log = structlog.get_logger(__name__)

WakeListener = Callable[[Wake], None]


@dataclasses.dataclass(slots=True)
class _Running:
    run: WakeRun
    on_end: WakeListener | None
    read_at: float
    saved_at: float


class MachineWaker:
    """The waker of machines. Not thread-safe: use it on the event loop."""

    def __init__(
        self,
        store: Store,
        recorder: Recorder,
        presence: Presence,
        pace: WavePace,
        *,
        broadcast: Callable[[Sequence[str]], BroadcastReport] = broadcast_magic_packets,
    ) -> None:
        """Args:
        store: has the machines and rooms.
        recorder: writes results.
        presence: signs of life at this daemon.
        pace: of rooms without a pace of their own.
        broadcast: sends packets.
        """
        self._store = store
        self._recorder = recorder
        self._presence = presence
        self._pace = pace
        self._broadcast = broadcast
        self._running: dict[str, _Running] = {}
        self._ended: dict[str, Wake] = {}
        self._given_up: dict[str, datetime] = {}
        self._started = asyncio.Event()

    def pace_of(self, room: Room | None) -> WavePace:
        """Return the pace of a room's waves."""
        if room is None:
            return self._pace
        return WavePace(
            self._pace.size if room.wake_wave_size is None else room.wake_wave_size,
            self._pace.pause_s if room.wake_pause_s is None else room.wake_pause_s,
        )

    async def wake(
        self,
        machines: Sequence[Machine],
        actor: Actor,
        *,
        room: Room | None = None,
        cast_id: str | None = None,
        on_end: WakeListener | None = None,
    ) -> Wake:
        """Start to wake machines, and return the record.

        Args:
            machines: machines of ``room``, or of any room.
            actor: initiator, for the audit.
            room: its pace is used.
            cast_id: cast that wakes them.
            on_end: called with the result.

        Raises:
            RequestRefusedError: there are no machines, or too many of them or of wakes.
            DatabaseError: the wake can't be recorded; nothing was sent.
        """
        if not machines:
            raise invalid("there are no machines to wake: name some, or a room that has machines")
        if len(machines) > RECEIVER_COUNT_MAX:
            raise invalid(f"at most {RECEIVER_COUNT_MAX} machines can be woken at once")
        if len(self._running) >= RUNNING_MAX:
            raise conflict(f"{RUNNING_MAX} wakes run already: wait until one of them has ended")
        pace = self.pace_of(room)
        wake = Wake(
            wake_id=secrets.token_hex(4),
            room_id=None if room is None else room.room_id,
            cast_id=cast_id,
            created_at=datetime.now(UTC),
            created_by=actor.name,
            wave_size=pace.size,
            pause_s=pace.pause_s,
            machines=(),
        )
        run = WakeRun(wake, machines, self._active_ids(machines), time.monotonic())
        await self._store.run(self._store.wakes.put, run.record, audit=actor.note())
        _log.info("wake_started", wake=wake.wake_id, room=wake.room_id, machines=len(machines))
        for machine in machines:
            self._given_up.pop(machine.machine_id, None)
        now = time.monotonic()
        self._running[wake.wake_id] = _Running(run, on_end, read_at=now, saved_at=now)
        self._started.set()
        return run.record

    async def find(self, wake_id: str) -> Wake | None:
        """Return a wake, or None.

        Raises:
            DatabaseError: it doesn't run here, and the database is unavailable.
        """
        running = self._running.get(wake_id)
        wake = self._ended.get(wake_id) if running is None else running.run.record
        if wake is not None:
            return wake
        recorded: Wake | None = await self._store.run(self._store.wakes.get, wake_id)
        return None if recorded is None else with_outage(recorded, datetime.now(UTC))

    def is_waking(self, machine_id: str) -> bool:
        """Return whether a machine is being woken by this daemon."""
        return any(running.run.state_of(machine_id) in WAKING_STATES for running in self._running.values())

    def silent_since(self, machine_id: str) -> datetime | None:
        """Return the time at which a machine's wake failed; None if it didn't, or long ago."""
        given_up_at = self._given_up.get(machine_id)
        if given_up_at is None or datetime.now(UTC) - given_up_at > SILENT_SHOWN:
            return None
        return given_up_at

    async def run(self) -> None:
        """Send packets and watch for signs of life until cancelled."""
        while True:
            if not self._running:
                self._started.clear()
                await self._started.wait()
            for wake_id in list(self._running):
                try:
                    await self._advance(wake_id)
                except Exception as error:  # noqa: BLE001  one broken wake must not end the others
                    _log.error("wake_failed", wake=wake_id, exc_info=error)
                    self._running.pop(wake_id, None)
            await asyncio.sleep(TICK_S)

    async def _advance(self, wake_id: str) -> None:
        running = self._running[wake_id]
        run, now, at = running.run, time.monotonic(), datetime.now(UTC)
        macs = run.take_due(now, at)
        if macs:
            report = self._broadcast(macs)
            run.note_sent(report.interfaces, report.problem)
            if report.problem:
                _log.warning("wake_not_sent", wake=wake_id, error=report.problem)
        called = run.called_ids()
        seen = {key: seen_at for key in called if (seen_at := self._presence.last_sign(key)) is not None}
        if called and now - running.read_at >= READ_INTERVAL_S:
            running.read_at = now
            seen |= await self._seen_elsewhere(called)
        run.note_awake(seen)
        run.expire(datetime.now(UTC))
        if run.ended:
            self._end(wake_id, running)
        elif now - running.saved_at >= SAVE_INTERVAL_S:
            running.saved_at = now
            self._recorder.put(("wake", wake_id), Wakes.put, run.record)

    async def _seen_elsewhere(self, machine_ids: Sequence[str]) -> dict[str, datetime]:
        """Return the last signs of life that any daemon has recorded."""
        machines: list[Machine] = []
        with contextlib.suppress(DatabaseError):  # this daemon's own agents are in memory
            machines = await self._store.run(self._store.machines.get_many, machine_ids)
        times = {
            machine.machine_id: [
                at for at in (machine.last_seen_at, machine.claimed_at, machine.booted_at) if at is not None
            ]
            for machine in machines
        }
        return {machine_id: max(found) for machine_id, found in times.items() if found}

    def _end(self, wake_id: str, running: _Running) -> None:
        record = running.run.record
        del self._running[wake_id]
        self._ended[wake_id] = record
        while len(self._ended) > ENDED_KEPT:
            del self._ended[next(iter(self._ended))]
        for machine in record.machines:
            if machine.state is WakeState.SILENT and record.ended_at is not None:
                self._given_up[machine.machine_id] = record.ended_at
        while len(self._given_up) > 2 * RECEIVER_COUNT_MAX:
            del self._given_up[next(iter(self._given_up))]
        awake, asleep = record.names(AWAKE_STATES), record.names(ASLEEP_STATES)
        self._recorder.put(("wake", wake_id), Wakes.put, record)
        key = new_entry_key()
        detail: dict[str, Any] = {"cast_id": record.cast_id, "awake": len(awake), "asleep": asleep}
        entry = (record.created_by, "wake.end", f"wake {wake_id}", detail)
        self._recorder.put(("audit", key), Audit.add, *entry, entry_key=key, at=datetime.now(UTC))
        _log.info("wake_ended", wake=wake_id, awake=len(awake), asleep=len(asleep))
        if running.on_end is not None:
            running.on_end(record)

    def _active_ids(self, machines: Sequence[Machine]) -> set[str]:
        heard = {machine.machine_id: self._presence.last_heard(machine.machine_id) for machine in machines}
        return {machine_id for machine_id, last in heard.items() if last is not None and last.active}
