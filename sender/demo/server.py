"""Give a daemon on this machine an image, a room and its agents: ``diskcast demo --server``.

The operator starts the casts, through the daemon.
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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from protocol.errors import ConfigurationError, ServerRefusedError, StorageError
from protocol.shared.units import format_duration
from sender.console.dashboard import login_link
from sender.demo.programs import Program, Programs
from sender.demo.run import INTERFACE, DemoPlan, PrintStep, make_packed
from sender.identity.key_options import passphrase_source
from sender.identity.signing_keys import default_key_path, ensure_signing_key, public_key_path
from sender.imaging.image_file import ImageFile
from sender.imaging.image_signature import ImageSignature
from sender.imaging.signature_page import write_signature
from sender.imaging.statement_fields import StatementFields, sign_statement
from sender.store.records.images import Image, ImageState
from sender.store.records.machines import EnrolmentMode, Room

if TYPE_CHECKING:
    from sender.console.client import Client

IMAGE_NAME: Final = "demo"
LIBRARY_LIMIT_S: Final = 30.0
"""The daemon scans its folders every two seconds, and reads new images completely."""
LIBRARY_POLL_S: Final = 0.3
READY_LIMIT_S: Final = 30.0
"""Time for all agents to start, on a small machine, and to check in."""
TOKEN_NAME: Final = "diskcast demo"  # noqa: S105 - a name
TOKEN_LIFETIME: Final = timedelta(days=1)
ENROLMENT: Final = EnrolmentMode.TOKEN.value
"""Nobody has to approve the demo's machines, whatever the daemon requires of real ones."""


@dataclasses.dataclass(frozen=True, slots=True)
class RoomPlan:
    """The options of the demo with a daemon.

    Attributes:
        demo: size, number of agents, directory.
        client: connection to the daemon.
        images: the daemon's image folder.
        room: id of the room.
        pins: pins of the daemon's certificate; none are needed on its loopback address.
    """

    demo: DemoPlan
    client: Client
    images: Path
    room: str
    pins: tuple[str, ...] = ()


class _Machine:
    """One agent and its state."""

    def __init__(self, name: str, plan: RoomPlan, directory: Path) -> None:
        self.name = name
        self.serial = f"{plan.room}-{name}"
        self.target = directory / f"{name}.img"
        self.ready = asyncio.Event()
        self.done: set[str] = set()


async def run_room(plan: RoomPlan, directory: Path, print_step: PrintStep) -> None:
    """Give the daemon an image and a room, and run the agents of its machines until cancelled.

    Args:
        plan: the options of the demo.
        directory: an empty one, for the disk and the agents' targets.
        print_step: gets each step as a line of text.

    Raises:
        DiskcastError: the daemon doesn't answer or refuses, its folder can't be written to, or an agent exited.
    """
    client = plan.client
    _require_here(client.server)
    server = await asyncio.to_thread(client.get, "/server", dict[str, Any])
    print_step(f"Connected to the daemon {server['name']} at {client.server}")
    trusted = await _provide_image(plan, directory, print_step)
    machines = [
        _Machine(f"agent-{number}", plan, directory) for number in range(1, plan.demo.agent_count + 1)
    ]
    await asyncio.to_thread(_provide_room, plan, machines)
    print_step(f"Room {plan.room!r} has {len(machines)} machines")
    with _enrolment(client, plan.room) as environment:
        try:
            async with Programs(directory, attach=False) as programs, asyncio.TaskGroup() as tasks:
                for machine in machines:
                    run = _run_agent(plan, machine, machines, trusted, programs, environment, print_step)
                    tasks.create_task(run)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(READY_LIMIT_S):
                        for machine in machines:
                            await machine.ready.wait()
                online_count = sum(machine.ready.is_set() for machine in machines)
                print_step(
                    f"{online_count} of {len(machines)} agents have checked in and are waiting for a cast"
                )
                _print_next_steps(plan, await asyncio.to_thread(login_link, client), print_step)
        except BaseExceptionGroup as group:  # one agent that exits is enough
            raise group.exceptions[0] from group


def _print_next_steps(plan: RoomPlan, dashboard: str, print_step: PrintStep) -> None:
    command = ["diskcast", "casts", "create", IMAGE_NAME, "--room", plan.room]
    if plan.client.server != "http://127.0.0.1:7400":
        command += ["--server", plan.client.server]
    print_step("Now, in another terminal, start a cast:")
    print_step(f"  {shlex.join(command)}")
    print_step(f"and watch it at {dashboard} (add --rate 100M for a slower cast)")
    print_step("Press Ctrl-C here to stop the agents")


def _require_here(server: str) -> None:
    """Check that the daemon is on this machine: the agents' network is the loopback interface.

    Raises:
        ConfigurationError: it is on another machine.
    """
    host = urllib.parse.urlsplit(server).hostname or ""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host != "localhost":
        raise ConfigurationError(
            f"--server {server} is another machine, and the demo works on the loopback interface of this one: "
            "use --server http://127.0.0.1:7400"
        )


# -- image and room ---------------------------------------------------------------------------------


async def _provide_image(plan: RoomPlan, directory: Path, print_step: PrintStep) -> list[str]:
    """Give the daemon the image, and return the keys that the agents trust."""
    path = plan.images / f"{IMAGE_NAME}.dci"
    if not plan.images.is_dir():
        raise ConfigurationError(
            f"the folder {plan.images} doesn't exist: name one of the daemon's image folders with --images DIR"
        )
    if path.exists():
        print_step(f"Using the existing image {path}")
    else:
        _, packed, _ = await make_packed(plan.demo, directory, print_step)
        await asyncio.to_thread(_put, packed, path)
        print_step(f"Copied to the daemon's image folder: {path}")
    trusted = await asyncio.to_thread(_trusted_keys, path)
    await _wait_for_image(plan)
    return trusted


def _trusted_keys(path: Path) -> list[str]:
    """Return the key of the demo's image, which is signed first if it isn't yet, and the user's own if there is one."""
    with ImageFile.open(path) as image:
        header, name = image.header, image.manifest.name
    signature = ImageSignature.of(header)
    if signature.signer is None:
        key, _ = ensure_signing_key(None, passphrase_source(None))
        statement = StatementFields().statement(header.image_id, name, datetime.now(UTC))
        signature = ImageSignature.of(write_signature(path, sign_statement(statement, key), key.public))
    assert signature.signer is not None
    own = public_key_path(default_key_path())
    return [signature.signer.text, *([str(own)] if own.exists() else [])]


def _put(packed: Path, path: Path) -> None:
    """Copy the image into the folder atomically.

    Raises:
        StorageError: the folder can't be written to.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(packed, part)
        part.replace(path)
    except OSError as error:
        raise StorageError(
            f"can't write to {path.parent}: {error.strerror}; name another image folder of the daemon with --images DIR"
        ) from error
    finally:
        part.unlink(missing_ok=True)


async def _wait_for_image(plan: RoomPlan) -> None:
    deadline_s = time.monotonic() + LIBRARY_LIMIT_S
    while True:
        images = await asyncio.to_thread(lambda: list(plan.client.listed("/images", Image)))
        matching = [image for image in images if Path(image.location).name == f"{IMAGE_NAME}.dci"]
        if any(image.state is ImageState.AVAILABLE for image in matching):
            return
        damaged = [image.problem for image in matching if image.state is ImageState.DAMAGED]
        if damaged or time.monotonic() > deadline_s:
            why = damaged[0] if damaged else "name one of the daemon's image folders with --images DIR"
            raise ConfigurationError(
                f"the daemon doesn't offer {plan.images / IMAGE_NAME}.dci within {LIBRARY_LIMIT_S:g} s: {why}"
            )
        await asyncio.sleep(LIBRARY_POLL_S)


def _provide_room(plan: RoomPlan, machines: list[_Machine]) -> None:
    """Create the room, or adapt an existing one to the demo; blocks."""
    client = plan.client
    try:
        room = client.get(f"/rooms/{plan.room}", Room)
    except ServerRefusedError as error:
        if error.details.get("status") != 404:
            raise
        body = {"room_id": plan.room, "name": "Demo", "interface": INTERFACE, "enrolment": ENROLMENT}
        room = client.create("/rooms", Room, body)
    if (room.interface, room.enrolment) != (INTERFACE, ENROLMENT):
        client.change(f"/rooms/{plan.room}", Room, {"interface": INTERFACE, "enrolment": ENROLMENT})
    rows = ["name,serial", *(f"{machine.name},{machine.serial}" for machine in machines)]
    client.create(f"/rooms/{plan.room}/import", dict[str, Any], csv="\n".join(rows).encode())


@contextlib.contextmanager
def _enrolment(client: Client, room: str) -> Iterator[dict[str, str]]:
    """Yield the agents' environment, with a temporary token."""
    expires_at = (datetime.now(UTC) + TOKEN_LIFETIME).isoformat()
    body = {"name": TOKEN_NAME, "role": "enrol", "room_id": room, "expires_at": expires_at}
    made = client.create("/tokens", dict[str, Any], body)
    token_id = str(made["token"]["token_id"])
    try:
        yield {"DISKCAST_TOKEN": str(made["secret"])}
    finally:
        with contextlib.suppress(ServerRefusedError):
            client.remove(f"/tokens/{token_id}")


# -- agents -----------------------------------------------------------------------------------------------


async def _run_agent(
    plan: RoomPlan,
    machine: _Machine,
    machines: list[_Machine],
    trusted: list[str],
    programs: Programs,
    environment: dict[str, str],
    print_step: PrintStep,
) -> None:
    arguments = ["run", "--server", plan.client.server, "--interface", INTERFACE]
    arguments += ["--target", str(machine.target), "--name", machine.name, "--identity", machine.serial]
    for key in trusted:
        arguments += ["--trust-key", key]
    for pin in plan.pins:
        arguments += ["--pin", pin]
    program = await programs.start("receiver", arguments, name=machine.name, environment=environment)
    code = await program.wait(lambda event: _on_event(event, machine, machines, print_step))
    raise StorageError(_exit_text(machine, program, code))


def _on_event(
    event: dict[str, object], machine: _Machine, machines: list[_Machine], print_step: PrintStep
) -> None:
    match event:
        case {"event": "waiting"}:
            machine.ready.set()
        case {"event": "moved", "control_url": url}:
            print_step(f"  {machine.name}: following its cast to {url}")
        case {"event": "unanswered"}:
            print_step(f"  {machine.name}: the daemon doesn't answer; retrying")
        case {"event": "cast_result", "ok": True, "cast_id": str(cast_id), "seconds_total": float(seconds)}:
            print_step(f"  {machine.name}: complete, every byte verified, in {format_duration(seconds)}")
            machine.done.add(cast_id)
            if all(cast_id in other.done for other in machines):
                print_step(f"All {len(machines)} are complete; ready for the next cast")
        case {"event": "cast_result", "ok": False, "error": error}:
            print_step(f"  {machine.name}: failed: {error}")


def _exit_text(machine: _Machine, program: Program, code: int) -> str:
    return f"{machine.name} exited with code {code}. {program.last_error_line()}".rstrip()
