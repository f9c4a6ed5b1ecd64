"""One run of a leased cast: its image, its place, its session, and the verdict in the end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from protocol.errors import (
    AddressInUseError,
    ConfigurationError,
    DatabaseUnavailableError,
    ImageChangedError,
    InterfaceError,
)
from protocol.model.cast_policy import CastPolicy, SlowPolicy
from protocol.model.session_records import CastId
from protocol.shared.units import format_duration
from sender.blocking_calls import start_blocking_call
from sender.cast.cast_run import CastRun
from sender.cast.cast_settings import CastSettings
from sender.cast.network.interfaces import find_interface, list_interfaces
from sender.cast.open_cast import open_cast
from sender.daemon.cast_job import CastJob, Earlier
from sender.daemon.machine_matching import Recognition
from sender.daemon.multicast_groups import choose_group
from sender.imaging.image_file import ImageFile
from sender.store.records.casts import Cast, CastMachine, CastPhase, StartMode
from sender.store.records.images import ImageState
from sender.store.records.machine_states import (
    CONNECTED_STATES,
    FINAL_STATES,
    NOT_JOINED_STATES,
    MachineState,
)

if TYPE_CHECKING:
    from sender.daemon.context import Services

_NAMED_MAX: Final = 10
"""Machines that a reason names; history names all."""
_RETRY_S: Final = 2.0
_Result = TypeVar("_Result")
_log = structlog.get_logger(__name__)


async def execute_cast(
    services: Services, cast: Cast, runs: dict[str, CastJob], *, on_change: Callable[[], None]
) -> None:
    """Run a cast that this daemon has leased, until it ends or is left to others.

    Args:
        services: the daemon.
        cast: the record, as leased.
        runs: where the run is shown from the first moment on; the caller takes it out again.
        on_change: called when it begins to gather.

    Raises:
        DiskcastError: it can't be run; nobody has been told yet.
    """
    store = services.store
    rows = await _retry_until_available(lambda: store.run(store.casts.machines, cast.cast_id))
    points = await _retry_until_available(lambda: store.run(store.casts.timeline, cast.cast_id))
    events = await _retry_until_available(lambda: store.run(store.casts.events, cast.cast_id))
    room = None
    if cast.plan.room_id is not None:
        room_id = cast.plan.room_id
        room = await _retry_until_available(lambda: store.run(store.rooms.get, room_id))
    live = CastJob(
        cast,
        services.recorder,
        owner=str(services.supervisor.owner),
        earlier=Earlier(rows, points, events),
    )
    runs[cast.cast_id] = live
    targets = await _retry_until_available(lambda: _target_names(services, cast))
    live.targets = targets.keys()
    went_before = cast.casting_at is not None
    unfinished = [row for row in rows if row.state in CONNECTED_STATES]
    waited_for = unfinished or [row for row in rows if row.state is MachineState.LOST]
    if cast.run_count > 1:
        live.tell("taken_over", f"goes on with daemon {services.config.server.name}, run {cast.run_count}")
    if went_before and not waited_for and rows:
        _end(live, targets, reason="")
        return
    known = services.library.get(cast.plan.image_id)
    if known is not None and known.state in (ImageState.REMOTE, ImageState.FETCHING):
        live.tell("image_awaited", f"the image is fetched from {known.location} first")
        on_change()
    async with await services.library.open(cast.plan.image_id, cast.cast_id) as opened:
        image = await start_blocking_call(lambda: ImageFile.open(opened.path), "open image")
        with image, contextlib.ExitStack() as stack:
            if image.manifest.image_id.hex() != cast.plan.image_id:
                raise ImageChangedError(
                    f"{opened.path} holds another image than the one that was chosen: cast it anew, or put the old "
                    "file back"
                )
            interface = (room.interface if room is not None else "") or _interface(services)
            still_to_come = cast.required_count - sum(row.state in FINAL_STATES for row in rows)
            policy = _policy(services, cast, still_to_come, len(waited_for) if went_before else None)
            run = await _open_run(services, live, image, opened.path, policy, interface, stack)
            live.run = run
            # What was asked while its image was being fetched, which may have taken long.
            if live.begun_by_hand:
                run.start_now()
            if live.cast.paused:
                run.pause()
            on_change()
            result = await run.run()
    if result.abandoned:
        return
    if live.cancel_reason is not None:
        live.end(CastPhase.CANCELLED, live.cancel_reason)
    else:
        _end(live, targets, reason=result.summary.reason)


async def _retry_until_available(ask: Callable[[], Awaitable[_Result]]) -> _Result:
    """What the database says, waited for while it is away: the cast is ours, and its lease doesn't run out then."""
    while True:
        try:
            return await ask()
        except DatabaseUnavailableError as error:
            _log.warning("database_awaited", error=str(error))
            await asyncio.sleep(_RETRY_S)


async def _target_names(services: Services, cast: Cast) -> dict[str, str]:
    """The machines that were asked for: names by id."""
    store = services.store
    if cast.plan.room_id is not None:
        machines = await store.run(store.machines.of_room, cast.plan.room_id)
        wanted = set(cast.plan.machine_ids) or {machine.machine_id for machine in machines}
        return {machine.machine_id: machine.name for machine in machines if machine.machine_id in wanted}
    names = {}
    for machine_id in cast.plan.machine_ids:
        machine = await store.run(store.machines.get, machine_id)
        if machine is not None:
            names[machine_id] = machine.name
    return names


def _interface(services: Services) -> str:
    """The configured one, or the only one that could do.

    Raises:
        ConfigurationError: there are several, and chance must not decide where a disk image goes.
    """
    configured = services.config.network.interface
    if configured is not None:
        return configured
    usable = [item for item in list_interfaces().values() if item.up and _has_own_address(item.addresses)]
    host = ipaddress.ip_address(services.config.server.endpoint[0])
    usable = [item for item in usable if host in item.addresses] or usable
    if not usable:
        return "lo"
    if len(usable) > 1:
        names = ", ".join(item.name for item in usable)
        raise ConfigurationError(
            f"several network interfaces could reach the room ({names}): say which with network.interface, "
            "--interface, or the room's own interface"
        )
    return usable[0].name


def _has_own_address(addresses: Collection[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> bool:
    return any(not address.is_loopback and not address.is_link_local for address in addresses)


def _policy(services: Services, cast: Cast, still_to_come: int, waited_for_count: int | None) -> CastPolicy:
    """How the session is to run it.

    Args:
        services: the daemon.
        cast: the record, as leased.
        still_to_come: machines that are required and haven't ended, well or not, in an earlier run that was gathering.
        waited_for_count: machines that were in the middle when an earlier run ended; None if none had begun.
    """
    plan, casts = cast.plan, services.config.casts
    common = CastPolicy(
        receiver_timeout_s=casts.receiver_timeout_s,
        rate_bytes_per_s=plan.rate_bytes_per_s,
        rate_max_bytes_per_s=plan.rate_max_bytes_per_s,
        share=plan.share,
        slow_policy=SlowPolicy(plan.slow),
        slow_below=plan.slow_below,
        slow_for_s=plan.slow_for_s,
    )
    if waited_for_count is not None:
        return dataclasses.replace(common, wait_for=max(1, waited_for_count), max_wait_s=casts.resume_wait_s)
    return dataclasses.replace(
        common,
        wait_for=max(1, still_to_come),
        max_wait_s=plan.max_wait_s,
        by_hand=plan.start is StartMode.MANUAL,
    )


async def _open_run(
    services: Services,
    live: CastJob,
    image: ImageFile,
    path: Path,
    policy: CastPolicy,
    interface: str,
    stack: contextlib.ExitStack,
) -> CastRun:
    """The cast's sockets: its own group and the first free control port, preferably those of its last run.

    Raises:
        AddressInUseError: no port is free.
        ConfigurationError: the interface can't be used.
    """
    cast, network = live.cast, services.config.network
    others = [other for key, other in services.supervisor.unfinished.items() if key != cast.cast_id]
    taken = {other.group for other in others if other.group and other.phase.live}
    group = cast.group if cast.group and cast.group not in taken else ""
    group = group or choose_group(network.group_base, cast.cast_id, taken)
    try:
        address = find_interface(interface).address_for(ipaddress.ip_address(group))
    except InterfaceError as error:
        raise ConfigurationError(f"the cast can't begin: {error}") from error
    recognition = Recognition(services.store, live)
    ports = list(network.control_port_range)
    last_port = int(cast.control_url.rpartition(":")[2] or 0) if cast.control_url else 0
    if last_port in ports:
        ports.remove(last_port)
        ports.insert(0, last_port)
    for port in ports:
        host = f"[{address}]" if address.version == 6 else str(address)
        options = CastSettings(
            image=path,
            interface=interface,
            policy=policy,
            group=group,
            port=network.data_port,
            control=f"{host}:{port}",
            ttl=network.ttl,
            cast_id=CastId(int(cast.cast_id, 16)),
        )
        try:
            return stack.enter_context(open_cast(options, image, live, recognition.recognise))
        except AddressInUseError:
            continue
    raise AddressInUseError(
        f"every port of network.control_ports ({network.control_ports}) is taken at {address}: wait for a cast to end, "
        "or set more ports aside"
    )


def _end(live: CastJob, targets: dict[str, str], *, reason: str) -> None:
    """Say who never came, and what all of it amounts to."""
    here = {row.machine_id for row in live.machines.values() if row.state is not MachineState.ASSIGNED}
    told = {
        row.machine_id: row.name
        for row in live.machines.values()
        if row.machine_id and row.state is MachineState.ASSIGNED
    }
    for machine_id, name in (targets | told).items():
        if machine_id not in here:
            live.put_machine(absent_machine(live.cast.cast_id, machine_id, name))
    for row in list(live.machines.values()):
        if row.state in CONNECTED_STATES:
            live.put_machine(
                dataclasses.replace(
                    row,
                    state=MachineState.LOST,
                    error=row.error or "it didn't come back after the sender was started again",
                    ended_at=datetime.now(UTC),
                )
            )
    live.end(*verdict(live, reason))


def verdict(live: CastJob, reason: str) -> tuple[CastPhase, str]:
    """Whether everybody who was asked for, and everybody who joined, verified every byte; and if not, who didn't."""
    cast = live.cast
    joined = [row for row in live.machines.values() if row.state not in NOT_JOINED_STATES]
    wrong = [row for row in joined if row.state is not MachineState.COMPLETE]
    absent = [row for row in live.machines.values() if row.state is MachineState.ABSENT]
    if not joined:
        waited_s = cast.plan.max_wait_s
        after = "" if waited_s is None else f" within {format_duration(waited_s)}"
        return CastPhase.FAILED, (
            f"no machine joined{after}: check that their agents run (diskcast-agent run) and that multicast passes the "
            "switch"
        )
    if wrong:
        named = "; ".join(f"{row.name}: {row.error or row.state}" for row in wrong[:_NAMED_MAX])
        more = f"; and {len(wrong) - _NAMED_MAX} more" if len(wrong) > _NAMED_MAX else ""
        return CastPhase.FAILED, f"{len(wrong)} of {len(joined)} machines aren't complete ({named}{more})"
    if len(joined) < cast.required_count:
        names = ", ".join(row.name for row in absent[:_NAMED_MAX])
        missing = f" (missing: {names})" if names else ""
        return CastPhase.FAILED, (
            f"only {len(joined)} of {cast.required_count} machines joined{missing}; those are complete: cast again for "
            "the others"
        )
    if reason and not live.machines:
        return CastPhase.FAILED, reason
    return CastPhase.DONE, f"every byte verified on {len(joined)} machine{'' if len(joined) == 1 else 's'}"


def absent_machine(cast_id: str, machine_id: str, name: str) -> CastMachine:
    """A machine that was asked for and never came."""
    error = "it never joined: was it switched on, with its agent?"
    return dataclasses.replace(
        _bare_machine(cast_id, machine_id, name, MachineState.ABSENT, error), ended_at=datetime.now(UTC)
    )


def assigned_machine(cast_id: str, machine_id: str, name: str) -> CastMachine:
    """A machine that was told to join."""
    return _bare_machine(cast_id, machine_id, name, MachineState.ASSIGNED, "")


def _bare_machine(cast_id: str, machine_id: str, name: str, state: MachineState, error: str) -> CastMachine:
    return CastMachine(
        cast_id=cast_id,
        machine_id=machine_id,
        name=name,
        address="",
        state=state,
        error=error,
        exit_code=None,
        bottleneck="",
        progress=0.0,
        bytes_verified=0,
        bytes_kept=0,
        blocks_rewritten=0,
        seconds=0.0,
        rate_bytes_per_s=0.0,
        loss=0.0,
        nacks_count=0,
        socket_drops_count=0,
        demoted=False,
        joined_at=None,
        ended_at=None,
    )
