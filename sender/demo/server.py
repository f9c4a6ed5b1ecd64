"""``diskcast demo --server``: an image, a room and its machines for a daemon that runs on this machine.

The daemon's part is its own: nothing is cast until somebody says so to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import os
import shlex
import shutil
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from protocol.errors import ConfigurationError, ServerRefusedError, StorageError
from protocol.shared.units import format_duration
from sender.demo.programs import Program, Programs
from sender.demo.run import INTERFACE, DemoPlan, Say, make_packed
from sender.store.records.images import Image, ImageState
from sender.store.records.machines import Room

if TYPE_CHECKING:
    from sender.console.client import Client

IMAGE_NAME: Final = "demo"
LIBRARY_LIMIT_S: Final = 30.0
"""The daemon looks into its folders every two seconds, and reads the whole of what is new."""
LIBRARY_POLL_S: Final = 0.3
READY_LIMIT_S: Final = 30.0
"""For the agents to start, all at once on a small machine, and to check in."""
TOKEN_NAME: Final = "diskcast demo"  # noqa: S105 - a name


@dataclasses.dataclass(frozen=True, slots=True)
class RoomPlan:
    """What the user asked for.

    Attributes:
        demo: size, number of agents, directory.
        client: of the daemon.
        images: the daemon's folder of images.
        room: id of the room.
    """

    demo: DemoPlan
    client: Client
    images: Path
    room: str


class _Machine:
    """One agent and what is known of it."""

    def __init__(self, name: str, plan: RoomPlan, directory: Path) -> None:
        self.name = name
        self.serial = f"{plan.room}-{name}"
        self.target = directory / f"{name}.img"
        self.ready = asyncio.Event()
        self.done: set[str] = set()


async def run_room(plan: RoomPlan, directory: Path, say: Say) -> None:
    """Bring the daemon an image, a room and its machines, and run those until cancelled.

    Args:
        plan: what the user asked for.
        directory: an empty one, for the disk and the agents' targets.
        say: told what goes on, a line at a time.

    Raises:
        DiskcastError: the daemon doesn't answer or refuses, its folder can't be written, or an agent ended.
    """
    client = plan.client
    _require_here(client.server)
    server = await asyncio.to_thread(client.get, "/server", dict[str, Any])
    say(f"The daemon {server['name']} answers at {client.server}")
    await _bring_image(plan, directory, say)
    machines = [
        _Machine(f"agent-{number}", plan, directory) for number in range(1, plan.demo.agent_count + 1)
    ]
    await asyncio.to_thread(_bring_room, plan, machines)
    say(f"Room {plan.room!r} has {len(machines)} machines")
    with _enrolment(client, needed=server["auth"] != "open") as environment:
        try:
            async with Programs(directory, attach=False) as programs, asyncio.TaskGroup() as tasks:
                for machine in machines:
                    tasks.create_task(_run_agent(plan, machine, machines, programs, environment, say))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(READY_LIMIT_S):
                        for machine in machines:
                            await machine.ready.wait()
                online_count = sum(machine.ready.is_set() for machine in machines)
                say(f"{online_count} of {len(machines)} agents have checked in and wait for a cast")
                _say_next(plan, say)
        except BaseExceptionGroup as group:  # one agent that ends is enough
            raise group.exceptions[0] from group


def _say_next(plan: RoomPlan, say: Say) -> None:
    command = ["diskcast", "casts", "create", IMAGE_NAME, "--room", plan.room]
    if plan.client.server != "http://127.0.0.1:7400":
        command += ["--server", plan.client.server]
    say("Now, in another terminal, start a cast:")
    say(f"  {shlex.join(command)}")
    say(f"and watch it at {plan.client.server}/ (with --rate 100M there is more time for that)")
    say("Ctrl-C here ends the agents")


def _require_here(server: str) -> None:
    """The agents' network is the loopback interface.

    Raises:
        ConfigurationError: the daemon is elsewhere.
    """
    host = urllib.parse.urlsplit(server).hostname or ""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host != "localhost":
        raise ConfigurationError(
            f"--server {server} isn't on this machine, whose loopback interface is the demo's network: "
            "write for example --server http://127.0.0.1:7400"
        )


# -- what the daemon is brought ---------------------------------------------------------------------------------


async def _bring_image(plan: RoomPlan, directory: Path, say: Say) -> None:
    path = plan.images / f"{IMAGE_NAME}.dci"
    if not plan.images.is_dir():
        raise ConfigurationError(
            f"there is no folder {plan.images}: name one of the daemon's folders of images with --images DIR"
        )
    if path.exists():
        say(f"{path} is there already")
    else:
        _, packed, _ = await make_packed(plan.demo, directory, say)
        await asyncio.to_thread(_put, packed, path)
        say(f"Put into the daemon's folder: {path}")
    await _wait_for_image(plan)


def _put(packed: Path, path: Path) -> None:
    """Copy the image into the folder; the daemon sees it whole or not at all.

    Raises:
        StorageError: the folder can't be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(packed, part)
        part.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path.parent} can't be written: {error.strerror}; name another of the daemon's folders with --images DIR"
        ) from error
    finally:
        part.unlink(missing_ok=True)


async def _wait_for_image(plan: RoomPlan) -> None:
    deadline_s = time.monotonic() + LIBRARY_LIMIT_S
    while True:
        images = await asyncio.to_thread(lambda: list(plan.client.listed("/images", Image)))
        mine = [image for image in images if Path(image.location).name == f"{IMAGE_NAME}.dci"]
        if any(image.state is ImageState.AVAILABLE for image in mine):
            return
        damaged = [image.problem for image in mine if image.state is ImageState.DAMAGED]
        if damaged or time.monotonic() > deadline_s:
            why = damaged[0] if damaged else "name one of the daemon's own folders with --images DIR"
            raise ConfigurationError(
                f"the daemon doesn't offer {plan.images / IMAGE_NAME}.dci within {LIBRARY_LIMIT_S:g} s: {why}"
            )
        await asyncio.sleep(LIBRARY_POLL_S)


def _bring_room(plan: RoomPlan, machines: list[_Machine]) -> None:
    """Make the room, or make it ours; blocks."""
    client = plan.client
    try:
        room = client.get(f"/rooms/{plan.room}", Room)
    except ServerRefusedError as error:
        if error.details.get("status") != 404:
            raise
        body = {"room_id": plan.room, "name": "Demo", "interface": INTERFACE}
        room = client.create("/rooms", Room, body)
    if room.interface != INTERFACE:
        client.change(f"/rooms/{plan.room}", Room, {"interface": INTERFACE})
    rows = ["name,serial", *(f"{machine.name},{machine.serial}" for machine in machines)]
    client.create(f"/rooms/{plan.room}/import", dict[str, Any], csv="\n".join(rows).encode())


@contextlib.contextmanager
def _enrolment(client: Client, *, needed: bool) -> Iterator[dict[str, str]]:
    """The agents' environment: a token of their own while they run, where the daemon asks for one."""
    if not needed:
        yield {}
        return
    made = client.create("/tokens", dict[str, Any], {"name": TOKEN_NAME, "role": "enrol"})
    token_id = str(made["token"]["token_id"])
    try:
        yield {"DISKCAST_TOKEN": str(made["secret"])}
    finally:
        with contextlib.suppress(ServerRefusedError):
            client.remove(f"/tokens/{token_id}")


# -- its machines -----------------------------------------------------------------------------------------------


async def _run_agent(
    plan: RoomPlan,
    machine: _Machine,
    machines: list[_Machine],
    programs: Programs,
    environment: dict[str, str],
    say: Say,
) -> None:
    arguments = ["run", "--server", plan.client.server, "--interface", INTERFACE]
    arguments += ["--target", str(machine.target), "--name", machine.name, "--identity", machine.serial]
    program = await programs.start("receiver", arguments, name=machine.name, environment=environment)
    code = await program.wait(lambda event: _hear(event, machine, machines, say))
    raise StorageError(_why_ended(machine, program, code))


def _hear(event: dict[str, object], machine: _Machine, machines: list[_Machine], say: Say) -> None:
    match event:
        case {"event": "waiting"}:
            machine.ready.set()
        case {"event": "moved", "control_url": url}:
            say(f"  {machine.name}: follows its cast to {url}")
        case {"event": "unanswered"}:
            say(f"  {machine.name}: the daemon doesn't answer; it goes on asking")
        case {"event": "cast_result", "ok": True, "cast_id": str(cast_id), "seconds_total": float(seconds)}:
            say(f"  {machine.name}: complete, every byte verified, in {format_duration(seconds)}")
            machine.done.add(cast_id)
            if all(cast_id in other.done for other in machines):
                say(f"All {len(machines)} are complete; the next cast can come")
        case {"event": "cast_result", "ok": False, "error": error}:
            say(f"  {machine.name}: failed: {error}")


def _why_ended(machine: _Machine, program: Program, code: int) -> str:
    return f"{machine.name} ended with exit code {code}. {program.last_words()}".rstrip()
