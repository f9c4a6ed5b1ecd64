"""The daemon's casts: created, leased, run, steered, ended, and taken over when their daemon is gone.

::

    create ──► database (planned) ──► leased by a daemon ──► LiveRun: gathering ► casting ► tail ──► ended
                    ▲                        │ beats every 2 s
                    └── a daemon that died ◄─┘ its casts are leased anew, and go on with what is still lacking

The database is asked every :data:`~sender.store.leases.LEASE_BEAT_S`, and a cast that runs never waits for it:
what it has to remember goes through the recorder.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import structlog

from protocol.check_in import CheckIn, CheckInAnswer
from protocol.constants import RECEIVER_COUNT_MAX
from protocol.errors import DatabaseError, DiskcastError
from protocol.wire.messages import STATE_CASTING
from sender.daemon.casting import LiveRun
from sender.daemon.leases import BeatWatch, Owner
from sender.daemon.rate_share import share_rate, wish_bytes_per_s
from sender.daemon.requests import Actor, RequestRefused, conflict, invalid, not_found
from sender.daemon.run_cast import conduct
from sender.daemon.signals import Changes
from sender.store.audit import AuditNote
from sender.store.leases import LEASE_BEAT_S
from sender.store.records import (
    Cast,
    CastPhase,
    CastPlan,
    Command,
    ImageState,
    Problem,
)

if TYPE_CHECKING:
    from sender.daemon.services import Services

_RATE_INTERVAL_S: Final = 0.5
_SEEN_SAVE_INTERVAL_S: Final = 10.0
_STOP_S: Final = 5.0
"""What casts get to leave their rooms when the daemon ends."""
_STUCK_S: Final = 30.0
"""A transmitter that should send and hasn't for this long won't any more."""
_ENDING_S: Final = 60.0
"""A cast's lease is kept for this long after its end, or until the database knows of the end."""
_ENDED_RUNS_MAX: Final = 100
"""Ended runs whose metrics are still shown."""
CASTS_WAITING_MAX: Final = 1000
"""Casts that haven't ended: more were made by a script that has gone wild."""

_log = structlog.get_logger(__name__)


class Supervisor:
    """See the module's docstring. It belongs to the event loop.

    Attributes:
        owner: what this daemon is called in the database.
        runs: casts that this daemon runs now.
        unfinished: every cast that hasn't ended, of all daemons, as they were at the last look.
        changes: wakes those who wait for a cast to begin or to move.
    """

    def __init__(self, services: Services, owner: Owner) -> None:
        """Prepare; ``services.supervisor`` is set to this by the caller."""
        self._services = services
        self.owner = owner
        self.runs: dict[str, LiveRun] = {}
        self.unfinished: dict[str, Cast] = {}
        self.changes = Changes()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ended: deque[LiveRun] = deque(maxlen=_ENDED_RUNS_MAX)
        self._watch = BeatWatch()
        self._poke = asyncio.Event()
        self._stopping = False

    # -- life -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Lease and run casts until cancelled; casts that run then are left to whoever comes next."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._share_rates())
                group.create_task(self._save_presence())
                while True:
                    await self._look_unless_down()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LEASE_BEAT_S):
                            await self._poke.wait()
                    self._poke.clear()
        finally:
            self._stopping = True

    async def leave(self) -> None:
        """Leave the rooms without a word, so that their casts go on in this daemon's next run or another one's."""
        self._stopping = True
        for live in self.runs.values():
            if live.run is not None:
                live.run.abandon()
            else:
                self._tasks[live.cast_id].cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=_STOP_S)

    async def _look_unless_down(self) -> None:
        try:
            await self._look()
        except DatabaseError as error:
            self._watch.blind()
            _log.warning("database_unreachable", error=str(error))

    async def _look(self) -> None:
        """Beat, obey, take what is due."""
        store, owner = self._services.store, str(self.owner)
        running = list(self.runs)
        # Of casts that have just ended the database may not have heard yet: nobody shall take them for dead.
        ending = [
            live.cast_id for live in self._ended if time.monotonic() - (live.ended_at or 0.0) < _ENDING_S
        ]
        ours = await store.run(store.leases.renew, owner, [*running, *ending])
        for cast_id in set(running) - set(ours):
            self._give_up(cast_id)
        for cast_id, command in await store.run(store.casts.requests, owner):
            await self._obey_request(cast_id, command)
        taken = await self._take()
        before = self.unfinished
        ended_here = {live.cast_id for live in self._ended}
        self.unfinished = {
            cast.cast_id: cast
            for cast in await store.run(store.casts.unfinished)
            if cast.cast_id not in ended_here
        }
        for live in self.runs.values():
            self.unfinished[live.cast_id] = live.cast
        for cast in taken:
            if cast.cast_id not in self._tasks:
                self._start(cast)
        if {key: (cast.phase, cast.control_url) for key, cast in before.items()} != {
            key: (cast.phase, cast.control_url) for key, cast in self.unfinished.items()
        }:
            self.changes.tell()

    async def _take(self) -> list[Cast]:
        """Lease what is due and what nobody runs any more, as far as there is room for it."""
        store, owner = self._services.store, str(self.owner)
        beats = await store.run(store.leases.beats)
        stale = self._watch.look(
            {key: beat for key, beat in beats.items() if beat[0] != owner}, time.monotonic()
        )
        for cast_id, (other, beat) in beats.items():
            if self.owner.was_me(other) or (store.exclusive and other != owner):
                stale.append((cast_id, other, beat))
        ended_here = {live.cast_id for live in self._ended}
        # Leased by an answer that was lost: ours, and not begun yet.
        taken: list[Cast] = []
        for cast_id in [key for key, beat in beats.items() if beat[0] == owner]:
            if cast_id not in self._tasks and cast_id not in ended_here:
                cast = await store.run(store.casts.get, cast_id)
                taken += [cast] if cast is not None else []
        free = self._services.config.network.casts_at_once - len(self.runs)
        for cast_id, other, beat in dict.fromkeys(stale):
            if len(taken) >= free or not await self._may_serve(cast_id):
                continue
            if await store.run(store.leases.take_over, cast_id, other, beat, owner):
                _log.warning("cast_taken_over", cast=cast_id, from_owner=other)
                cast = await store.run(store.casts.get, cast_id)
                taken += [cast] if cast is not None else []
        if free > len(taken):
            sites = self._services.config.server.sites
            taken += await store.run(store.leases.acquire, owner, datetime.now(UTC), sites, free - len(taken))
        return taken

    async def _may_serve(self, cast_id: str) -> bool:
        """Whether the cast's room is at one of this daemon's sites."""
        sites = self._services.config.server.sites
        cast = self.unfinished.get(cast_id)
        store = self._services.store
        if cast is None:
            cast = await store.run(store.casts.get, cast_id)
        if not sites or cast is None or cast.plan.room_id is None:
            return cast is not None
        room = await store.run(store.rooms.get, cast.plan.room_id)
        return room is None or not room.site or room.site in sites

    def _give_up(self, cast_id: str) -> None:
        live = self.runs.get(cast_id)
        if live is None or live.ended_at is not None:
            return
        _log.error("cast_lost_to_another_daemon", cast=cast_id)
        if live.run is not None:
            live.run.abandon()
        elif cast_id in self._tasks:
            self._tasks[cast_id].cancel()

    def _start(self, cast: Cast) -> None:
        task = self._group.create_task(self._run(cast), name=f"cast {cast.cast_id}")
        self._tasks[cast.cast_id] = task
        task.add_done_callback(lambda _task: self._tasks.pop(cast.cast_id, None))

    async def _run(self, cast: Cast) -> None:
        """One cast, from its lease to its end; whatever goes wrong is the cast's, not the daemon's."""
        with structlog.contextvars.bound_contextvars(cast=cast.cast_id):
            try:
                await conduct(self._services, cast, self.runs, on_change=self._note_change)
            except asyncio.CancelledError:
                live = self.runs.get(cast.cast_id)
                if live is None or live.cancel_reason is None:
                    raise
                live.end(CastPhase.CANCELLED, live.cancel_reason)
            except Exception as error:  # noqa: BLE001  a fault in one cast must not end the others
                self._fail(cast, error)
            finally:
                live = self.runs.pop(cast.cast_id, None)
                if live is not None:
                    self._put_away(live)
                self._note_change()
        self._release(cast.cast_id)

    def _fail(self, cast: Cast, error: Exception) -> None:
        live = self.runs.get(cast.cast_id)
        if isinstance(error, DiskcastError):
            reason = str(error)
        else:
            reason = f"an error inside the daemon, please report it: {type(error).__name__}: {error}"
            _log.error("cast_internal_error", exc_info=error)
        if live is None:
            live = self.runs[cast.cast_id] = LiveRun(cast, self._services.recorder, owner=str(self.owner))
        live.tell("cast_failed", reason)
        live.end(CastPhase.FAILED, reason)

    def _put_away(self, live: LiveRun) -> None:
        live.ended_at = time.monotonic()
        if live.cast.phase.ended:
            self.unfinished.pop(live.cast_id, None)
            self._audit_end(live.cast)
            self._ended.append(live)

    async def check_in(self, check_in: CheckIn, address: str) -> CheckInAnswer:
        """Answer an agent; see :class:`sender.daemon.check_in.CheckInDesk`."""
        return await self._services.desk.answer(check_in, address)

    def _release(self, cast_id: str) -> None:
        """Give the lease back, after what was to be remembered."""
        self._services.recorder.put(("lease", cast_id), "leases.release", str(self.owner), cast_id)

    def _note_change(self) -> None:
        self.changes.tell()
        self._poke.set()

    def _audit_end(self, cast: Cast) -> None:
        detail = {
            "image": cast.image_name,
            "room": cast.plan.room_id,
            "reason": cast.reason,
            "complete": cast.complete_count,
            "failed": cast.failed_count,
        }
        action = f"cast.{cast.phase.value}"
        self._services.recorder.put(
            ("audit", cast.cast_id, action),
            "audit.add",
            f"daemon {self.owner.name}",
            action,
            f"cast {cast.cast_id}",
            detail,
        )

    # -- what operators ask -----------------------------------------------------------------------------------

    async def create(self, plan: CastPlan, actor: Actor, schedule_id: str | None = None) -> Cast:
        """Plan a cast; it begins when its time has come and a daemon is free.

        Raises:
            RequestRefused: there is no such image, room or machine, or nothing to cast to.
            DatabaseError: it can't be recorded; nothing was begun.
        """
        store = self._services.store
        image = self._services.library.get(plan.image_id)
        if image is None or image.state is ImageState.GONE:
            raise invalid(f"there is no image {plan.image_id!r}: see 'diskcast images list'")
        if image.state is ImageState.DAMAGED:
            raise conflict(f"image {image.name!r} can't be cast: {image.problem}")
        if plan.room_id is not None and await store.run(store.rooms.get, plan.room_id) is None:
            raise invalid(f"there is no room {plan.room_id!r}")
        targets = await self._targets(plan)
        if plan.room_id is not None and not targets and plan.wait_for is None:
            raise invalid(f"room {plan.room_id!r} has no machines: import them, or say how many to wait for")
        required_count = plan.wait_for or len(targets) or 1
        if required_count > RECEIVER_COUNT_MAX:
            raise invalid(
                f"a cast has at most {RECEIVER_COUNT_MAX} machines, this one would have {required_count}"
            )
        if len(self.unfinished) >= CASTS_WAITING_MAX:
            raise conflict(f"{len(self.unfinished)} casts haven't ended yet: cancel those that nobody needs")
        cast_id = secrets.token_hex(4)
        cast: Cast = await store.run(
            store.casts.add,
            plan,
            cast_id=cast_id,
            image_name=image.name,
            raw_bytes=image.raw_bytes,
            required_count=required_count,
            created_by=actor.name,
            schedule_id=schedule_id,
            audit=AuditNote(actor.name, request_id=actor.request_id, detail={"machines": len(targets)}),
        )
        _log.info("cast_created", cast=cast_id, image=image.name, room=plan.room_id, by=actor.name)
        self.unfinished[cast_id] = cast
        self._note_change()
        return cast

    async def _targets(self, plan: CastPlan) -> tuple[str, ...]:
        store = self._services.store
        in_room = None
        if plan.room_id is not None:
            in_room = {
                machine.machine_id for machine in await store.run(store.machines.of_room, plan.room_id)
            }
        for machine_id in plan.machine_ids:
            if (
                (machine_id not in in_room)
                if in_room is not None
                else (await store.run(store.machines.get, machine_id) is None)
            ):
                where = f" in room {plan.room_id!r}" if in_room is not None else ""
                raise invalid(f"there is no machine {machine_id!r}{where}")
        return plan.machine_ids or tuple(sorted(in_room or ()))

    async def command(self, cast_id: str, command: Command, actor: Actor, reason: str = "") -> Cast:
        """Start, pause, resume or cancel a cast, wherever it runs. Asking for what is already so changes nothing.

        A cast of this daemon obeys at once, even while the database is away; another daemon's within two seconds.

        Raises:
            RequestRefused: there is no such cast, or it can't be done in the phase that it is in.
            DatabaseError: the cast isn't this daemon's, and the database can't be asked.
        """
        store = self._services.store
        live = self.runs.get(cast_id)
        cast = live.cast if live is not None else await store.run(store.casts.get, cast_id)
        if cast is None:
            raise not_found("cast", cast_id)
        if not _is_needed(cast, command):
            return cast
        note = AuditNote(
            actor.name, f"cast.{command.value}", actor.request_id, {"reason": reason} if reason else {}
        )
        if live is not None:
            await self._audit_or_later(note, cast_id)
            self._obey(live, command, actor.name, reason)
            return live.cast
        if cast.phase is CastPhase.PLANNED and command is Command.CANCEL and not cast.owner:
            words = _cancel_words(actor.name, reason)
            changed = await store.run(
                store.casts.change,
                cast_id,
                phase=CastPhase.CANCELLED,
                reason=words,
                ended_at=datetime.now(UTC),
                audit=note,
            )
            self.unfinished.pop(cast_id, None)
        elif cast.phase is CastPhase.PLANNED and command is Command.START:
            plan = dataclasses.replace(cast.plan, start_at=None)
            changed = await store.run(store.casts.change, cast_id, plan=plan, audit=note)
        else:
            await store.run(store.casts.request, cast_id, command, audit=note)
            changed = cast
        self._note_change()
        return changed or cast

    async def _audit_or_later(self, note: AuditNote, cast_id: str) -> None:
        """Who steers a cast of this daemon is written first if it can be, and in any case."""
        store, arguments = self._services.store, (f"cast {cast_id}", dict(note.detail), note.request_id)
        try:
            await store.run(store.audit.add, note.actor, note.action, *arguments)
        except DatabaseError:
            key = ("audit", secrets.token_hex(8))
            self._services.recorder.put(key, "audit.add", note.actor, note.action, *arguments)

    async def _obey_request(self, cast_id: str, command: Command) -> None:
        store = self._services.store
        live = self.runs.get(cast_id)
        if live is not None and _is_needed_or_refused(live.cast, command):
            self._obey(live, command, "the operator", "")
        await store.run(store.casts.clear_request, cast_id, command)

    def _obey(self, live: LiveRun, command: Command, who: str, reason: str) -> None:
        run = live.run
        match command:
            case Command.START:
                if run is not None:
                    run.begin()
                live.tell("begun_by_hand", f"{who} begins the data with those that have joined")
            case Command.PAUSE:
                if run is not None:
                    run.pause()
                live.change(paused=True)
                live.tell("paused", f"paused by {who}")
            case Command.RESUME:
                if run is not None:
                    run.resume()
                live.change(paused=False)
                live.tell("resumed", f"resumed by {who}")
            case Command.CANCEL:
                live.cancel_reason = _cancel_words(who, reason)
                live.tell("cancelled", live.cancel_reason)
                if run is not None:
                    run.cancel(live.cancel_reason)
                elif live.cast_id in self._tasks:
                    self._tasks[live.cast_id].cancel()
        self.changes.tell()

    # -- what others read -------------------------------------------------------------------------------------

    def casting(self) -> list[LiveRun]:
        """Runs with a session: those of now, and ended ones for as long as their metrics are kept."""
        retention_s = self._services.config.metrics.retention_s
        now = time.monotonic()
        while self._ended and now - (self._ended[0].ended_at or 0.0) > max(retention_s, _ENDING_S):
            self._ended.popleft()
        running = {live.cast_id for live in self.runs.values() if live.run is not None}
        ended = [
            live
            for live in self._ended
            if live.cast_id not in running
            and live.run is not None
            and now - (live.ended_at or 0.0) <= retention_s
        ]
        return [*(live for live in self.runs.values() if live.run is not None), *ended]

    def live_run(self, cast_id: str) -> LiveRun | None:
        """A run of now or of lately."""
        live = self.runs.get(cast_id)
        return live or next((ended for ended in reversed(self._ended) if ended.cast_id == cast_id), None)

    def cast_now(self, cast: Cast) -> Cast:
        """The newest that is known of a cast."""
        live = self.runs.get(cast.cast_id)
        return live.cast if live is not None else cast

    def problems(self) -> list[Problem]:
        """Casts that don't get on."""
        found = []
        for live in self.runs.values():
            if live.run is not None and live.run.read_waiting_s > 2.0:
                text = (
                    f"cast {live.cast_id}: a read of image {live.image_name!r} hasn't returned for "
                    f"{live.run.read_waiting_s:.0f} s: check the disk or server that it is on"
                )
                found.append(Problem("cast", text, datetime.now(UTC)))
        return found

    def stuck(self) -> str | None:
        """What should move and doesn't, for the service manager's watchdog; None if all is well."""
        for live in self.runs.values():
            run = live.run
            if run is None or live.cast.paused or run.read_waiting_s > 1.0:
                continue
            with run.shared.look() as (session, now):
                if session.sending_overdue_s(now) > _STUCK_S:
                    return f"cast {live.cast_id}: the transmitter doesn't send"
        return None

    # -- tasks ------------------------------------------------------------------------------------------------

    async def _share_rates(self) -> None:
        """Divide the ceiling between the casts that run."""
        ceiling = self._services.config.network.rate_ceiling_bytes_per_s
        while ceiling is not None:
            sending = []
            for live in self.runs.values():
                if live.run is not None and not live.cast.paused:
                    with live.run.shared.look() as (session, _now):
                        wish = 0.0
                        if session.state == STATE_CASTING:
                            wish = wish_bytes_per_s(
                                session.achieved_bytes_per_s, held_by_ceiling=session.held_by_ceiling
                            )
                    sending.append((live.run, wish))
            shares = share_rate(ceiling, [wish for _run, wish in sending])
            for (run, _wish), share in zip(sending, shares, strict=True):
                run.set_rate_ceiling(share)
            await self.changes.wait(_RATE_INTERVAL_S)

    async def _save_presence(self) -> None:
        store, presence = self._services.store, self._services.presence
        while True:
            await asyncio.sleep(_SEEN_SAVE_INTERVAL_S)
            unsaved = presence.take_unsaved()
            if unsaved:
                with contextlib.suppress(DatabaseError):  # seen again in half a minute
                    await store.run(store.machines.touch, unsaved)


def _cancel_words(who: str, reason: str) -> str:
    return f"cancelled by {who}" + (f": {reason}" if reason else "")


def _is_needed(cast: Cast, command: Command) -> bool:
    """Whether the command changes anything.

    Raises:
        RequestRefused: it can't be obeyed in this phase.
    """
    if cast.phase.ended:
        if command is Command.CANCEL and cast.phase is CastPhase.CANCELLED:
            return False
        raise conflict(f"cast {cast.cast_id} has ended: {cast.phase.value}")
    match command:
        case Command.START:
            if cast.phase is CastPhase.GATHERING and not cast.joined_count:
                raise conflict(f"nobody has joined cast {cast.cast_id} yet: its machines must check in first")
            return cast.phase in (CastPhase.PLANNED, CastPhase.GATHERING)
        case Command.PAUSE:
            if cast.phase is CastPhase.PLANNED:
                raise conflict(f"cast {cast.cast_id} hasn't begun: cancel it, or plan it for later")
            return not cast.paused
        case Command.RESUME:
            return cast.paused
        case Command.CANCEL:
            return True


def _is_needed_or_refused(cast: Cast, command: Command) -> bool:
    try:
        return _is_needed(cast, command)
    except RequestRefused:
        return False
