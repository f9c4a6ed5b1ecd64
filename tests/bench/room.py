"""A room for the scenarios: images, waiting agents, and a cast with its record."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import rich.console

from protocol.constants import DATA_HEADER_BYTES
from tests.bench import ours
from tests.bench.kept_memory import touch_memory
from tests.bench.measurement import first_difference, write_random_image
from tests.support.network.lab import (
    LabError,
    Network,
    PortCounters,
    Program,
    receive,
    send,
    wait_for_udp_socket,
)

START_LIMIT_S = 30.0
"""Time from the start of the sending program to its first image data: seventeen interpreters start on few cores."""


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """Random bytes, raw and packed."""

    raw: Path
    packed: Path
    raw_bytes: int


class Target(NamedTuple):
    """The path that an agent writes to, and the path that the benchmark compares."""

    written: Path
    stored: Path


@dataclasses.dataclass(frozen=True, slots=True)
class CastRecord:
    """The record of one cast. Times are seconds since the first image data.

    Attributes:
        seconds: time to the end of the cast, as the sender reports it; nan if it doesn't.
        exit_code: exit code of the sender.
        result: last line of the sender.
        agent_exit_codes: exit codes of the agents, by receiver.
        completed_s: times at which receivers were reported as complete, by receiver.
        events: all lines of the sender, with their times.
        symbols_sent_ratio: data datagrams sent per source symbol of the image.
    """

    seconds: float
    exit_code: int
    result: dict[str, Any]
    agent_exit_codes: tuple[int, ...]
    completed_s: dict[int, float]
    events: tuple[tuple[float, dict[str, Any]], ...]
    symbols_sent_ratio: float

    @property
    def last_completed_s(self) -> float:
        """Return the time at which the last complete receiver completed; nan if none did."""
        return max(self.completed_s.values(), default=math.nan)

    def slowest_s(self, indexes: Sequence[int]) -> float:
        """Return the time at which the last of ``indexes`` completed; nan unless all did."""
        if any(index not in self.completed_s for index in indexes):
            return math.nan
        return max(self.completed_s[index] for index in indexes)

    def named(self, event: str) -> list[dict[str, Any]]:
        """Return the sender's events of one name."""
        return [line for _, line in self.events if line.get("event") == event]


class Bench:
    """The images, the number of rounds and the reference results that all scenarios of a run share.

    Args:
        folder: a folder on a tmpfs.
        round_count: casts of each kind, if a scenario compares two; medians are compared.
        console: console for a line about every cast.
    """

    def __init__(self, folder: Path, round_count: int, console: rich.console.Console) -> None:
        self.folder = folder
        self.round_count = round_count
        self._console = console

    @functools.cache  # noqa: B019  as long-lived as the run
    def image(self, raw_bytes: int) -> Image:
        """Return random bytes of this size, which are made once."""
        image = Image(self.folder / f"{raw_bytes}.bin", self.folder / f"{raw_bytes}.dci", raw_bytes)
        write_random_image(image.raw, raw_bytes, seed=1)
        ours.pack(image.raw, image.packed)
        return image

    def say(self, text: str) -> None:
        """Print one line to the console."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def cast(self, network: Network, image: Image, *options: str, **settings: Any) -> Cast:
        """Return a cast, which ``with`` starts; the arguments are those of :class:`Cast`."""
        return Cast(self, network, image, options, **settings)

    def alternate(self, *measures: Callable[[], float]) -> list[float]:
        """Return the median of each measure over the rounds, whose order alternates because the machine warms up."""
        values: list[list[float]] = [[] for _ in measures]
        for index in range(self.round_count):
            for place in list(range(len(measures)))[:: 1 if index % 2 == 0 else -1]:
                values[place].append(measures[place]())
        return [statistics.median(row) for row in values]


class Cast:
    """A cast to the first receivers of a network; the agents start first.

    Args:
        bench: the run.
        network: a network that is already shaped.
        image: the image to cast.
        options: options of ``diskcast send``.
        receiver_count: number of agents; other receivers of the network stay idle.
        targets: targets by receiver; by default new files.
        agent_options: options of ``diskcast-agent receive``, by receiver.
        limit_s: time limit of the cast, from its first image data.
    """

    def __init__(
        self,
        bench: Bench,
        network: Network,
        image: Image,
        options: Sequence[str] = (),
        *,
        receiver_count: int | None = None,
        targets: Mapping[int, Target] | None = None,
        agent_options: Mapping[int, Sequence[str]] | None = None,
        limit_s: float = 120.0,
    ) -> None:
        self.network = network
        self.image = image
        self.started_at = math.nan
        self._bench = bench
        self._options = options
        self._count = len(network.receivers) if receiver_count is None else receiver_count
        self._given_targets = dict(targets or {})
        self._agent_options = dict(agent_options or {})
        self._limit_s = limit_s
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            touch_memory(self._bench.folder, self._count * self.image.raw_bytes)
            folder = Path(undo.enter_context(tempfile.TemporaryDirectory(dir=self._bench.folder)))
            own_files = [Target(folder / str(index), folder / str(index)) for index in range(self._count)]
            self.targets = [self._given_targets.get(index, own) for index, own in enumerate(own_files)]
            self.agents = [
                undo.enter_context(self._start_agent(index, target))
                for index, target in enumerate(self.targets)
            ]
            wait_for_udp_socket(self.agents, START_LIMIT_S)
            wanted = ("--wait-for", str(self._count), "--cast-id", ours.CAST_ID)
            self.sender = undo.enter_context(send(self.network, self.image.packed, *wanted, *self._options))
            self.sender.wait_event("casting_started", START_LIMIT_S)
            self.started_at = next(
                at for at, event in self.sender.timeline() if event["event"] == "casting_started"
            )
            self._exit = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit.close()

    def _start_agent(self, index: int, target: Target) -> Program:
        options = ("--cast", ours.CAST_ID, "--name", receiver_name(index))
        return receive(self.network, index, target.written, *options, *self._agent_options.get(index, ()))

    def now_s(self) -> float:
        """Return the seconds since the first image data."""
        return time.monotonic() - self.started_at

    def wait_until(self, offset_s: float) -> bool:
        """Wait until ``offset_s`` after the first image data.

        Returns:
            False if the sender exited before.
        """
        try:
            self.sender.wait(max(0.0, offset_s - self.now_s()))
        except LabError:
            return True
        return False

    def finish(self, *, succeeds: bool = True) -> CastRecord:
        """Wait for all programs and compare every complete target with the image.

        Args:
            succeeds: True if all programs must exit with code 0.

        Raises:
            LabError: a program didn't exit in time or failed, or a complete target differs from the image.
        """
        codes = [
            program.wait(max(1.0, self._limit_s - self.now_s())) for program in [self.sender, *self.agents]
        ]
        for program, code in zip([self.sender, *self.agents], codes, strict=True):
            if succeeds and code:
                raise LabError(f"{program.result.get('error', 'failed')}: {program.describe()}")
        events = tuple((at - self.started_at, event) for at, event in self.sender.timeline())
        names = {receiver_name(index): index for index in range(self._count)}
        completed_s = {
            names[event["receiver"]]: offset_s
            for offset_s, event in events
            if event["event"] == "receiver_completed"
        }
        for index in completed_s:
            if (offset := first_difference(self.image.raw, self.targets[index].stored)) is not None:
                raise LabError(
                    f"{receiver_name(index)} reports that it is complete, but differs at byte {offset}"
                )
        result = self.sender.result
        started = next(event for _, event in events if event["event"] == "cast_started")
        symbol_bytes = started["symbol_bytes"]
        block_count, rest_bytes = divmod(self.image.raw_bytes, started["block_bytes"])
        source_symbols = block_count * -(-started["block_bytes"] // symbol_bytes) + -(
            -rest_bytes // symbol_bytes
        )
        sent_symbols = result.get("bytes_sent", math.nan) / (symbol_bytes + DATA_HEADER_BYTES)
        record = CastRecord(
            float(result.get("seconds", math.nan)),
            codes[0],
            result,
            tuple(codes[1:]),
            completed_s,
            events,
            sent_symbols / source_symbols,
        )
        self._bench.say(_cast_line(self, record))
        return record


def receiver_name(index: int) -> str:
    """Return the receiver's ``--name``."""
    return f"r{index}"


def lost_share(before: PortCounters, after: PortCounters) -> float:
    """Return the share of datagrams to a port that were lost between two samples; nan if none were sent."""
    offered_bytes = after.offered_bytes - before.offered_bytes
    passed_bytes = after.passed_bytes - before.passed_bytes
    waiting_bytes = after.queued_bytes - before.queued_bytes
    return max(0.0, 1.0 - (passed_bytes + waiting_bytes) / offered_bytes) if offered_bytes else math.nan


def _cast_line(cast: Cast, record: CastRecord) -> str:
    loss_by_name = {one["name"]: one["loss"] for one in record.result.get("receivers", ())}
    names = [receiver_name(index) for index in range(len(cast.agents))]
    losses = " ".join(f"{100 * loss_by_name.get(name, math.nan):.2f}" for name in names)
    ends = " ".join(f"{record.completed_s.get(index, math.nan):.1f}" for index in range(len(cast.agents)))
    bottlenecks = ", ".join(
        f"{one['text']} {one['seconds']:.1f} s" for one in record.result.get("bottleneck_seconds", ())
    )
    return (
        f"  {record.seconds:.2f} s, exit codes {record.exit_code} {list(record.agent_exit_codes)}, sent "
        f"{record.symbols_sent_ratio:.3f} times the source symbols\n"
        f"    complete after {ends} s, lost {losses} %\n"
        f"    bottlenecks: {bottlenecks or 'none'}"
    )
