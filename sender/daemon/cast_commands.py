"""What operators ask of casts, wherever they run: plan one, start, pause, resume, cancel it."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import structlog

from protocol.constants import RECEIVER_COUNT_MAX
from protocol.errors import DatabaseError
from sender.actors import Actor
from sender.daemon.cast_job import CastJob
from sender.refusals import RequestRefusedError, conflict, invalid, not_found
from sender.store.records.casts import Cast, CastPhase, CastPlan, CastRequest, Command
from sender.store.records.images import ImageState
from sender.store.repositories.audit import new_entry_key

if TYPE_CHECKING:
    from sender.daemon.context import Services

CASTS_WAITING_MAX: Final = 1000
"""Casts that haven't ended: more were made by a script that has gone wild."""
AUDIT_S: Final = 1.0
"""A cast that is to be cancelled waits no longer for its audit entry, which is then written when the database can."""

_log = structlog.get_logger(__name__)


class CastCommands:
    """See the module's docstring. It belongs to the event loop."""

    def __init__(self, services: Services) -> None:
        """Steer the casts of ``services``."""
        self._services = services

    async def create(self, plan: CastPlan, actor: Actor, schedule_id: str | None = None) -> Cast:
        """Plan a cast; it begins when its time has come and a daemon is free.

        Raises:
            RequestRefusedError: there is no such image, room or machine, or nothing to cast to.
            DatabaseError: it can't be recorded; nothing was begun.
        """
        store, supervisor = self._services.store, self._services.supervisor
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
        unfinished_count = len(supervisor.unfinished)
        if unfinished_count >= CASTS_WAITING_MAX:
            raise conflict(f"{unfinished_count} casts haven't ended yet: cancel those that nobody needs")
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
            audit=actor.note(machines=len(targets)),
        )
        _log.info("cast_created", cast=cast_id, image=image.name, room=plan.room_id, by=actor.name)
        supervisor.unfinished[cast_id] = cast
        supervisor.note_change()
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
            RequestRefusedError: there is no such cast, or it can't be done in the phase that it is in.
            DatabaseError: the cast isn't this daemon's, and the database can't be asked.
        """
        store, supervisor = self._services.store, self._services.supervisor
        cast = await self._services.find_cast(cast_id)
        if cast is None:
            raise not_found("cast", cast_id)
        if not _is_needed(cast, command):
            return cast
        detail: dict[str, object] = {"reason": reason} if reason else {}
        live = supervisor.runs.get(cast_id)
        if live is not None:
            await self._audit(actor, command, cast_id, detail)
            if _is_needed(live.cast, command):  # it may have ended meanwhile, or somebody else was faster
                self._obey(live, command, actor.name, reason)
            return live.cast
        note = actor.note(f"cast.{command.value}", **detail)
        if cast.phase is CastPhase.PLANNED and command is Command.CANCEL and not cast.owner:
            words = _cancel_words(actor.name, reason)
            changed = await store.run(
                store.casts.change,
                cast_id,
                lease="",
                phase=CastPhase.CANCELLED,
                reason=words,
                ended_at=datetime.now(UTC),
                audit=note,
            )
            if changed is None:  # a daemon has leased it at this moment: that one is to be asked
                return await self.command(cast_id, command, actor, reason)
            supervisor.unfinished.pop(cast_id, None)
        elif cast.phase is CastPhase.PLANNED and command is Command.START:
            plan = dataclasses.replace(cast.plan, start_at=None)
            changed = await store.run(store.casts.change, cast_id, plan=plan, audit=note)
        else:
            await store.run(
                store.casts.request, CastRequest(cast_id, command, actor.name, reason), audit=note
            )
            changed = cast
        supervisor.note_change()
        return changed or cast

    async def _audit(self, actor: Actor, command: Command, cast_id: str, detail: dict[str, object]) -> None:
        """Who steers a cast of this daemon is written first if it can be, and in any case."""
        store, key = self._services.store, new_entry_key()
        told = (actor.name, f"cast.{command.value}", f"cast {cast_id}", detail, actor.request_id)
        once: dict[str, Any] = {"entry_key": key, "at": store.now()}
        try:
            async with asyncio.timeout(AUDIT_S):
                await store.run(store.audit.add, *told, **once)
        except (DatabaseError, TimeoutError):  # it may have been written: with its key it stands there once
            self._services.recorder.put(("audit", key), "audit.add", *told, **once)

    async def obey_requests(self) -> None:
        """Do what was asked of this daemon's casts through the database, by way of another daemon.

        Raises:
            DatabaseError: it can't be asked.
        """
        store, supervisor = self._services.store, self._services.supervisor
        for request in await store.run(store.casts.requests, str(supervisor.owner)):
            live = supervisor.live_run(request.cast_id)
            if live is None:  # it is leased and about to begin: the next look finds it
                continue
            if _is_needed_or_refused(live.cast, request.command):
                self._obey(live, request.command, request.actor, request.reason)
            await store.run(store.casts.clear_request, request.cast_id, request.command)

    def _obey(self, live: CastJob, command: Command, who: str, reason: str) -> None:
        run, supervisor = live.run, self._services.supervisor
        match command:
            case Command.START:
                live.begun_by_hand = True
                if run is not None:
                    run.start_now()
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
                else:
                    supervisor.stop_waiting(live.cast_id)
        supervisor.changes.tell()


def _cancel_words(who: str, reason: str) -> str:
    return f"cancelled by {who}" + (f": {reason}" if reason else "")


def _is_needed(cast: Cast, command: Command) -> bool:
    """Whether the command changes anything.

    Raises:
        RequestRefusedError: it can't be obeyed in this phase.
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
    except RequestRefusedError:
        return False
