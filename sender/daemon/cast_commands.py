"""Commands of operators on casts, wherever they run: plan one, start, pause, resume, cancel it."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from protocol.constants import RECEIVER_COUNT_MAX
from protocol.errors import DatabaseError
from sender.actors import Actor
from sender.daemon.jobs.cast_job import CastJob
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.jobs.owner import Owner
from sender.daemon.patching.patch_maker import PatchMaker
from sender.library.library import Library
from sender.refusals import RequestRefusedError, conflict, invalid, not_found
from sender.store.records.boots import UnknownMachines
from sender.store.records.casts import Cast, CastPhase, CastPlan, CastRequest, Command
from sender.store.records.images import ImageState
from sender.store.records.machines import Room
from sender.store.repositories.audit import Audit, new_entry_key
from sender.store.store import Store
from sender.store.write_behind import Recorder

CASTS_WAITING_MAX: Final = 1000
"""Casts that haven't ended: more come from a faulty script."""
AUDIT_S: Final = 1.0
"""Longest wait of a command for its audit entry, which is otherwise written when the database is available."""

_log = structlog.get_logger(__name__)


class CastCommands:
    """The executor of commands on casts. Not thread-safe: use it on the event loop."""

    def __init__(
        self,
        store: Store,
        library: Library,
        recorder: Recorder,
        registry: CastRegistry,
        patches: PatchMaker,
        owner: Owner,
    ) -> None:
        self._store = store
        self._library = library
        self._recorder = recorder
        self._registry = registry
        self._patches = patches
        self._owner = str(owner)

    async def create(self, plan: CastPlan, actor: Actor, schedule_id: str | None = None) -> Cast:
        """Plan a cast; it starts when it is due and a daemon has capacity.

        Raises:
            RequestRefusedError: the image, room or a machine is unknown, the cast would have no machines, or the image
                doesn't allow the machine patches that they need.
            DatabaseError: the cast can't be recorded; nothing was started.
        """
        store = self._store
        image = self._library.get(plan.image_id)
        if image is None or image.state is ImageState.GONE:
            raise invalid(f"there is no image {plan.image_id!r}: see 'diskcast images list'")
        if image.state is ImageState.DAMAGED:
            raise conflict(f"image {image.name!r} can't be cast: {image.problem}")
        room: Room | None = None
        if plan.room_id is not None:
            room = await store.run(store.rooms.get, plan.room_id)
            if room is None:
                raise invalid(f"there is no room {plan.room_id!r}")
        targets = await self._targets(plan)
        if room is not None and not targets and plan.wait_for is None and not _registers(room):
            raise invalid(
                f"room {plan.room_id!r} has no machines: import them, let them register by booting "
                "(--unknown-machines), or set --wait-for"
            )
        await self._patches.check(plan, targets)
        required_count = plan.wait_for or len(targets) or 1
        if required_count > RECEIVER_COUNT_MAX:
            raise invalid(
                f"a cast has at most {RECEIVER_COUNT_MAX} machines, this one would have {required_count}"
            )
        unfinished_count = len(self._registry.unfinished)
        if unfinished_count >= CASTS_WAITING_MAX:
            raise conflict(f"{unfinished_count} casts haven't ended yet: cancel some of them first")
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
            image_signer=image.signer,
            image_version=image.version,
            audit=actor.note(machines=len(targets)),
        )
        _log.info("cast_created", cast=cast_id, image=image.name, room=plan.room_id, by=actor.name)
        self._registry.add_planned(cast)
        return cast

    async def _targets(self, plan: CastPlan) -> tuple[str, ...]:
        store = self._store
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
        """Start, pause, resume or cancel a cast, wherever it runs. A command without effect is accepted.

        A cast of this daemon carries it out at once, even while the database is unavailable; another daemon's cast
        within two seconds.

        Raises:
            RequestRefusedError: the cast is unknown, or its phase doesn't allow the command.
            DatabaseError: the cast isn't this daemon's, and the database is unavailable.
        """
        store, registry = self._store, self._registry
        known = registry.job(cast_id)
        cast = known.cast if known is not None else await store.run(store.casts.get, cast_id)
        if cast is None:
            raise not_found("cast", cast_id)
        if not _has_effect(cast, command):
            return cast
        detail: dict[str, object] = {"reason": reason} if reason else {}
        job = registry.jobs.get(cast_id)
        if job is not None:
            await self._audit(actor, command, cast_id, detail)
            if _has_effect(job.cast, command):  # another command or the end may have come first
                self._carry_out(job, command, actor.name, reason)
            return job.cast
        note = actor.note(f"cast.{command.value}", **detail)
        if cast.phase is CastPhase.PLANNED and command is Command.CANCEL and not cast.owner:
            changed = await store.run(
                store.casts.change,
                cast_id,
                lease="",
                phase=CastPhase.CANCELLED,
                reason=_cancel_reason(actor.name, reason),
                ended_at=datetime.now(UTC),
                audit=note,
            )
            if changed is None:  # a daemon has just leased the cast, and must carry this out
                return await self.command(cast_id, command, actor, reason)
            registry.remove_planned(cast_id)
        elif cast.phase is CastPhase.PLANNED and command is Command.START:
            plan = dataclasses.replace(cast.plan, start_at=None)
            changed = await store.run(store.casts.change, cast_id, plan=plan, audit=note)
        else:
            await store.run(
                store.casts.request, CastRequest(cast_id, command, actor.name, reason), audit=note
            )
            changed = cast
        registry.request_poll()
        return changed or cast

    async def _audit(self, actor: Actor, command: Command, cast_id: str, detail: dict[str, object]) -> None:
        """Write the audit entry, if possible before the command is carried out."""
        store, key = self._store, new_entry_key()
        entry = (actor.name, f"cast.{command.value}", f"cast {cast_id}", detail, actor.request_id)
        once: dict[str, Any] = {"entry_key": key, "at": store.now()}
        try:
            async with asyncio.timeout(AUDIT_S):
                await store.run(store.audit.add, *entry, **once)
        except (DatabaseError, TimeoutError):
            # The entry may have been written already: its key prevents a duplicate.
            self._recorder.put(("audit", key), Audit.add, *entry, **once)

    async def carry_out_requests(self) -> None:
        """Carry out the commands that other daemons left in the database for this daemon's casts.

        Raises:
            DatabaseError: the database is unavailable.
        """
        store = self._store
        for request in await store.run(store.casts.requests, self._owner):
            job = self._registry.job(request.cast_id)
            if job is None:  # it is leased and about to start: the next poll finds it
                continue
            if _has_effect_and_is_allowed(job.cast, request.command):
                self._carry_out(job, request.command, request.actor, request.reason)
            await store.run(store.casts.clear_request, request.cast_id, request.command)

    def _carry_out(self, job: CastJob, command: Command, actor_name: str, reason: str) -> None:
        match command:
            case Command.START:
                job.start_data(actor_name)
            case Command.PAUSE:
                job.pause(actor_name)
            case Command.RESUME:
                job.resume(actor_name)
            case Command.CANCEL:
                job.cancel(_cancel_reason(actor_name, reason))
        self._registry.changes.notify()


def _cancel_reason(actor_name: str, reason: str) -> str:
    return f"cancelled by {actor_name}" + (f": {reason}" if reason else "")


def _has_effect(cast: Cast, command: Command) -> bool:
    """Return whether the command changes anything.

    Raises:
        RequestRefusedError: the cast's phase doesn't allow it.
    """
    if cast.phase.ended:
        if command is Command.CANCEL and cast.phase is CastPhase.CANCELLED:
            return False
        raise conflict(f"cast {cast.cast_id} has ended: {cast.phase.value}")
    match command:
        case Command.START:
            if cast.phase is CastPhase.GATHERING and not cast.joined_count:
                raise conflict(f"no machine has joined cast {cast.cast_id}: wait until one has checked in")
            return cast.phase in (CastPhase.PLANNED, CastPhase.GATHERING)
        case Command.PAUSE:
            if cast.phase is CastPhase.PLANNED:
                raise conflict(f"cast {cast.cast_id} hasn't started: cancel it, or plan it for later")
            return not cast.paused
        case Command.RESUME:
            return cast.paused
        case Command.CANCEL:
            return True


def _has_effect_and_is_allowed(cast: Cast, command: Command) -> bool:
    try:
        return _has_effect(cast, command)
    except RequestRefusedError:
        return False


def _registers(room: Room) -> bool:
    """Return whether unknown machines register in a room by booting."""
    return room.unknown_machines in (UnknownMachines.ASK, UnknownMachines.AUTO)
