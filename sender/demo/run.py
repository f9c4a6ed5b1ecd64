"""Run a whole cast on this machine: the programs of a real room, as separate processes over loopback multicast.

Needs no root, writes only to one directory of its own, and stops every process that it started.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from protocol.constants import MIB
from protocol.errors import AddressInUseError, ConfigurationError, DiskcastError, StorageError
from protocol.model.session_records import CastId
from protocol.program.options import JOIN_VARIABLE
from protocol.shared.units import format_bytes
from protocol.trust.join_code import join_code
from protocol.trust.minisign import PublicKey
from sender.demo.image import IMAGE_BYTES_MIN, DemoImage, find_mke2fs, make_demo_image, read_partition_table
from sender.demo.programs import Program, Programs, config_directory
from sender.identity.certificate import ensure_certificate
from sender.identity.directories import PROGRAM_DIRECTORY
from sender.identity.join_key import ensure_join_key
from sender.identity.signing_keys import KEY_SUFFIX, PUBLIC_SUFFIX, create_signing_key
from sender.imaging.image_file import ImageFile

INTERFACE = "lo"
HOST = "127.0.0.1"

AGENT_COUNT_MAX = 16
"""Each is a separate Python process; a laptop can run sixteen."""

CAST_S_MAX = 10.0
CAST_S_MIN = 8.0
CAST_BYTES_PER_S = 64 * MIB
"""A demo must last long enough to be watched, and for a late joiner to start, some seconds on a busy machine: at this
rate an image of 512 MiB takes eight seconds."""
SENT_PER_STORED_BYTE = 1.3
"""Headers, parity and repairs; the blocks that the late joiner missed come on top."""

LATE_JOIN_FRACTION = 1 / 3
REHEARSED_LOSS = "5%"

DISCOVERY_TIMEOUT_S = 25.0
GATHER_TIMEOUT_S = 30.0
"""Agents find their sender within four seconds if multicast works here; otherwise they report that before the sender
gives up."""

CAST_TIMEOUT_S = 120.0
"""Ten times the duration of a cast: a demo must not hang."""

EXIT_TIMEOUT_S = 10.0
"""Time for agents to exit after their sender; after a successful cast they exit before it."""
COMPARE_BYTES = MIB

PrintStep = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class DemoPlan:
    """The options of the demo."""

    image_bytes: int
    agent_count: int
    directory: Path | None
    """Parent of the temporary directory; None for the system's place for large temporary files."""
    keep: bool
    show_tables: bool
    """True to let the programs show their progress on this terminal."""


@dataclasses.dataclass(slots=True)
class AgentRun:
    """One agent: its role and its result."""

    name: str
    target: Path
    joins_late: bool = False
    rehearses_loss: bool = False
    started_after_s: float = 0.0
    """Seconds from the sender's start to its own."""
    exit_code: int | None = None
    """None if it was never started."""
    result: dict[str, object] = dataclasses.field(default_factory=dict)
    """Last JSON line of the agent."""
    fault: str = ""
    """The failure, or the difference between target and source; empty if every byte is right."""

    @property
    def role(self) -> str:
        """Role in the demo, for the table."""
        if self.joins_late:
            return "joins after a third of the data"
        return f"loses {REHEARSED_LOSS} of its datagrams" if self.rehearses_loss else "ordinary"

    @property
    def ok(self) -> bool:
        """True if the agent reported success and its target is a true clone."""
        return self.exit_code == 0 and not self.fault


@dataclasses.dataclass(frozen=True, slots=True)
class DemoReport:
    """The results of the demo."""

    directory: Path
    image: DemoImage
    payload_bytes: int
    sender_exit_code: int
    sender_fault: str
    agents: list[AgentRun]

    @property
    def ok(self) -> bool:
        """True if the sender and every agent succeeded."""
        return self.sender_exit_code == 0 and all(agent.ok for agent in self.agents)


@contextlib.contextmanager
def demo_directory(plan: DemoPlan) -> Iterator[Path]:
    """Make a temporary directory with enough free space, and remove it afterwards unless the user keeps it.

    Raises:
        ConfigurationError: the parent directory doesn't exist.
        StorageError: it is full or can't be written to.
    """
    # /tmp is often memory; /var/tmp is where large temporary files belong (Filesystem Hierarchy Standard).
    parent = plan.directory or Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108
    if not parent.is_dir():
        raise ConfigurationError(
            f"the directory {parent} doesn't exist: create it, or name another with --directory"
        )
    # The source, its packed form, and a target an agent; each consists mostly of holes.
    wanted_bytes = plan.image_bytes * (plan.agent_count + 2) // 2
    free_bytes = shutil.disk_usage(parent).free
    if free_bytes < wanted_bytes:
        raise StorageError(
            f"{parent} has {format_bytes(free_bytes)} free, the demo needs {format_bytes(wanted_bytes)}: "
            "name another directory with --directory, or choose a smaller --size"
        )
    try:
        directory = Path(tempfile.mkdtemp(prefix="diskcast-demo-", dir=parent))
    except OSError as error:
        raise StorageError(
            f"can't write to {parent}: {error.strerror}; name another directory with --directory"
        ) from error
    try:
        yield directory
    finally:
        if not plan.keep:
            shutil.rmtree(directory, ignore_errors=True)


async def run_demo(plan: DemoPlan, directory: Path, print_step: PrintStep) -> DemoReport:
    """Make a disk, pack it, cast it to the agents, and compare their targets with it.

    Args:
        plan: the options of the demo.
        directory: an empty one; see :func:`demo_directory`.
        print_step: gets each step as a line of text.

    Raises:
        DiskcastError: the demo can't be set up; a failed cast is in the report instead.
    """
    assert 1 <= plan.agent_count <= AGENT_COUNT_MAX, plan.agent_count
    image, packed, payload_bytes = await make_packed(plan, directory, print_step)
    cast = _Cast(plan, packed, payload_bytes, plan_agents(directory, plan.agent_count), print_step)
    sender_exit_code = await cast.run()
    print_step("Comparing every target with the source disk, byte by byte")
    faults = [asyncio.to_thread(find_fault, image.path, agent.target) for agent in cast.agents]
    for agent, fault in zip(cast.agents, await asyncio.gather(*faults), strict=True):
        agent.fault = agent.fault or fault
    return DemoReport(directory, image, payload_bytes, sender_exit_code, cast.sender_fault, cast.agents)


async def make_packed(plan: DemoPlan, directory: Path, print_step: PrintStep) -> tuple[DemoImage, Path, int]:
    """Make a disk and pack it.

    Args:
        plan: the options of the demo.
        directory: the place for both files.
        print_step: gets each step as a line of text.

    Returns:
        The disk, its image, and the payload bytes of the image.

    Raises:
        DiskcastError: one of them can't be made.
    """
    assert plan.image_bytes >= IMAGE_BYTES_MIN, plan.image_bytes
    print_step(f"Working in {directory}")
    print_step("Making a source disk with files of this machine")
    disk = directory / "disk.img"
    image = await asyncio.to_thread(make_demo_image, disk, plan.image_bytes, directory, mke2fs=find_mke2fs())
    content = f"{image.filesystem} with {image.file_count} files, {format_bytes(image.content_bytes)}"
    print_step(f"  {format_bytes(image.raw_bytes)}, mostly free: {content}")
    if image.filesystem != "ext4":
        print_step("  (a tar stream instead of a filesystem, because mke2fs isn't installed)")
    packed = directory / "demo.dci"
    await _pack(plan, image, packed, print_step)
    payload_bytes = await asyncio.to_thread(_payload_bytes, packed)
    print_step(f"  {format_bytes(payload_bytes)} to send")
    return image, packed, payload_bytes


def plan_agents(directory: Path, count: int) -> list[AgentRun]:
    """Return the agents: the second loses datagrams, the last of three or more joins late."""
    agents = [
        AgentRun(f"agent-{number}", directory / f"agent-{number}.img") for number in range(1, count + 1)
    ]
    if count > 1:
        agents[1].rehearses_loss = True
    if count > 2:
        agents[-1].joins_late = True
    return agents


def free_ports() -> tuple[int, int]:
    """Return a free UDP port for data, and a port number free for both TCP and UDP, for control and feedback.

    Another program could still take one before the cast does; the cast would then fail with that error.
    """
    for _ in range(16):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as data,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as control,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as feedback,
        ):
            # Not only on the loopback address: a cast on another interface must not hear this one.
            data.bind(("", 0))
            control.bind((HOST, 0))
            control_port = control.getsockname()[1]
            try:
                feedback.bind((HOST, control_port))
            except OSError:  # the other protocol's port of that number is taken
                continue
            return data.getsockname()[1], control_port
    raise AddressInUseError("no port number is free for both TCP and UDP: stop some programs and try again")


def find_fault(source: Path, target: Path) -> str:
    """Return the reason why ``target`` isn't a clone of ``source``; empty if it is one.

    Compares every byte, then reads the clone's partition table.
    """
    try:
        with source.open("rb") as expected, target.open("rb") as found:
            if os.fstat(expected.fileno()).st_size != os.fstat(found.fileno()).st_size:
                return f"{target.name} is {os.fstat(found.fileno()).st_size} bytes long"
            offset = 0
            while block := expected.read(COMPARE_BYTES):
                if block != found.read(COMPARE_BYTES):
                    return f"{target.name} differs in the MiB from byte {offset}"
                offset += len(block)
        if read_partition_table(target) != read_partition_table(source):
            return f"{target.name} has another partition table"
    except OSError as error:
        return f"{target.name}: {error.strerror}"
    except DiskcastError as error:
        return str(error)
    return ""


async def _pack(plan: DemoPlan, image: DemoImage, packed: Path, print_step: PrintStep) -> None:
    # A key of its own, which goes with the directory: the user's key isn't for a demo.
    key_path = packed.with_name(f"demo{KEY_SUFFIX}")
    await asyncio.to_thread(create_signing_key, key_path, "")
    arguments = ["pack", str(image.path), "-o", str(packed), "--name", "demo", "--key", str(key_path)]
    print_step(f"Packing it:  diskcast {_shown(arguments, packed.parent)}")
    async with Programs(packed.parent, attach=plan.show_tables) as programs:
        program = await programs.start("sender", arguments, name="pack", shown=True)
        code = await program.wait()
    if code != 0:
        raise StorageError(
            f"diskcast pack failed with exit code {code}. {program.last_error_line()}".rstrip()
        )


def _shown(arguments: list[str], directory: Path) -> str:
    """Return a command line as a user would type it in the demo's directory."""
    return shlex.join(argument.removeprefix(f"{directory}/") for argument in arguments)


def _payload_bytes(packed: Path) -> int:
    with ImageFile.open(packed) as image:
        return image.header.payload_bytes


def _join_code(directory: Path, cast_id: CastId, signer: PublicKey) -> str:
    """Return the join code that the sender will print: the demo makes its certificate and its key."""
    keys = config_directory(directory) / PROGRAM_DIRECTORY
    certificate = ensure_certificate(keys, HOST, datetime.now(UTC))
    return join_code(certificate.pin, ensure_join_key(keys), cast_id, signer).text


class _Cast:
    """The sender and its agents, from the first start to the last exit."""

    def __init__(
        self, plan: DemoPlan, packed: Path, payload_bytes: int, agents: list[AgentRun], print_step: PrintStep
    ) -> None:
        self.agents = agents
        self.sender_fault = ""
        self._plan = plan
        self._packed = packed
        self._late_join_bytes = payload_bytes * LATE_JOIN_FRACTION
        self._print_step = print_step
        self._data_port, self._control_port = free_ports()
        self._cast_id = CastId(secrets.randbits(32))
        self._public_key = packed.with_name(f"demo{PUBLIC_SUFFIX}")
        signer = PublicKey.parse(self._public_key.read_text(encoding="ascii"))
        self._join_code = _join_code(packed.parent, self._cast_id, signer)
        self._late_join = asyncio.Event()
        self._late_join_planned = False
        self._started_s = time.monotonic()
        self._sender_ended = False
        cast_s = min(CAST_S_MAX, max(CAST_S_MIN, plan.image_bytes / CAST_BYTES_PER_S))
        self._rate_mbit_per_s = max(1, round(payload_bytes * SENT_PER_STORED_BYTE / cast_s * 8e-6))

    async def run(self) -> int:
        """Run the cast and return the sender's exit code."""
        async with (
            Programs(self._packed.parent, attach=self._plan.show_tables) as programs,
            asyncio.TaskGroup() as tasks,
        ):
            sender = await self._start_sender(programs)
            receptions = [tasks.create_task(self._run_agent(programs, agent)) for agent in self.agents]
            exit_code = await self._wait_for_end(programs, sender)
            self._sender_ended = True
            self._late_join.set()
            await asyncio.wait(receptions, timeout=EXIT_TIMEOUT_S)
            await programs.stop()
        return exit_code

    async def _start_sender(self, programs: Programs) -> Program:
        first_count = sum(not agent.joins_late for agent in self.agents)
        arguments = ["send", str(self._packed), "--interface", INTERFACE, "--wait-for", str(first_count)]
        arguments += [
            "--max-wait",
            f"{GATHER_TIMEOUT_S:.0f}",
            "--rate",
            f"{self._rate_mbit_per_s}M",
            "--port",
            str(self._data_port),
        ]
        arguments += ["--control", f"{HOST}:{self._control_port}", "--cast-id", f"{self._cast_id:08x}"]
        self._print_step(f"Casting it:  diskcast {_shown(arguments, self._packed.parent)}")
        example = _shown([*self._arguments(self.agents[0]), "--join", self._join_code], self._packed.parent)
        self._print_step(f"Receiving it with {len(self.agents)} agents:  diskcast-agent {example}")
        for agent in self.agents:
            self._print_step(f"  {agent.name}: {agent.role}")
        return await programs.start("sender", arguments, name="send", shown=True)

    async def _wait_for_end(self, programs: Programs, sender: Program) -> int:
        result: dict[str, object] = {}
        try:
            async with asyncio.timeout(CAST_TIMEOUT_S):
                exit_code = await sender.wait(result.update)
        except TimeoutError:
            self.sender_fault = f"the cast took longer than {CAST_TIMEOUT_S:.0f} s"
            await programs.stop()
            return await sender.process.wait()
        self.sender_fault = "" if exit_code == 0 else str(result.get("error") or sender.last_error_line())
        return exit_code

    def _arguments(self, agent: AgentRun) -> list[str]:
        arguments = ["receive", "--target", str(agent.target), "--interface", INTERFACE]
        arguments += [
            "--port",
            str(self._data_port),
            "--name",
            agent.name,
            "--wait",
            f"{DISCOVERY_TIMEOUT_S:.0f}",
            "--trust-key",
            str(self._public_key),
        ]
        if agent.rehearses_loss:
            arguments += ["--rehearse-loss", REHEARSED_LOSS]
        if agent.joins_late:
            # With the sender's address it doesn't listen for other casts first: the demo is short.
            arguments += ["--sender", f"https://{HOST}:{self._control_port}"]
        return arguments

    async def _run_agent(self, programs: Programs, agent: AgentRun) -> None:
        if agent.joins_late:
            await self._late_join.wait()
            if self._sender_ended:
                agent.fault = "the cast ended before it joined"
                return
        agent.started_after_s = time.monotonic() - self._started_s
        # Not on the command line, which every user of this machine can read.
        code = {JOIN_VARIABLE: self._join_code}
        program = await programs.start("receiver", self._arguments(agent), name=agent.name, environment=code)

        def take(event: dict[str, object]) -> None:
            agent.result = event
            received_bytes = event.get("bytes_received")
            if isinstance(received_bytes, int) and received_bytes > 0 and not self._late_join_planned:
                self._plan_late_join(received_bytes)

        agent.exit_code = await program.wait(take)
        if agent.exit_code != 0:
            agent.fault = str(agent.result.get("error") or program.last_error_line() or "it was stopped")

    def _plan_late_join(self, received_bytes: int) -> None:
        """Schedule the late join from the known rate: agents report received bytes only once a second, too coarse."""
        self._late_join_planned = True
        left_bytes = max(0.0, self._late_join_bytes - received_bytes)
        delay_s = left_bytes / (self._rate_mbit_per_s * 125_000)
        asyncio.get_running_loop().call_later(delay_s, self._late_join.set)
