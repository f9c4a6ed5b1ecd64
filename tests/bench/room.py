"""A room to cast in for the scenarios: images, waiting agents, one cast followed from outside, what came of it."""

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
"""From the start of the sending program to its first image data: seventeen interpreters start on few cores."""


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """Random bytes, and the same packed."""

    raw: Path
    packed: Path
    raw_bytes: int


class Target(NamedTuple):
    """Where an agent writes, and where the bench reads what it wrote."""

    written: Path
    stored: Path


@dataclasses.dataclass(frozen=True, slots=True)
class CastRecord:
    """What came of one cast. Times are seconds since image data began.

    Attributes:
        seconds: to the end of the cast, by the sender's own account; nan if it never said.
        exit_code: the sender's.
        result: the sender's last line.
        agent_exit_codes: by receiver.
        completed_s: when each receiver that completed was known to have, by receiver.
        events: all of the sender's lines with their times.
        symbols_sent_ratio: data datagrams sent to source symbols of the image.
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
        """When the last of those that completed had; nan if nobody did."""
        return max(self.completed_s.values(), default=math.nan)

    def slowest_s(self, indexes: Sequence[int]) -> float:
        """When the last of ``indexes`` had completed; nan unless all did."""
        if any(index not in self.completed_s for index in indexes):
            return math.nan
        return max(self.completed_s[index] for index in indexes)

    def named(self, event: str) -> list[dict[str, Any]]:
        """The sender's events of one name."""
        return [line for _, line in self.events if line.get("event") == event]


class Bench:
    """What all scenarios of a run share: where images are, how often to measure, results of references.

    Args:
        folder: on a tmpfs.
        round_count: casts of each kind, where a scenario compares two; medians are taken.
        console: for a line about every cast.
    """

    def __init__(self, folder: Path, round_count: int, console: rich.console.Console) -> None:
        self.folder = folder
        self.round_count = round_count
        self._console = console

    @functools.cache  # noqa: B019  as long-lived as the run
    def image(self, raw_bytes: int) -> Image:
        """Random bytes of this size, made once."""
        image = Image(self.folder / f"{raw_bytes}.bin", self.folder / f"{raw_bytes}.dci", raw_bytes)
        write_random_image(image.raw, raw_bytes, seed=1)
        ours.pack(image.raw, image.packed)
        return image

    def say(self, text: str) -> None:
        """One line for whoever watches."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def cast(self, network: Network, image: Image, *options: str, **settings: Any) -> Cast:
        """A cast to begin with ``with``; the arguments are :class:`Cast`'s."""
        return Cast(self, network, image, options, **settings)

    def alternate(self, *measures: Callable[[], float]) -> list[float]:
        """Each measure's median over the rounds; their order alternates, so that none gets the warmer machine."""
        values: list[list[float]] = [[] for _ in measures]
        for index in range(self.round_count):
            for place in list(range(len(measures)))[:: 1 if index % 2 == 0 else -1]:
                values[place].append(measures[place]())
        return [statistics.median(row) for row in values]


class Cast:
    """One cast to the first receivers of a network, agents first.

    Args:
        bench: the run.
        network: shaped as the scenario wants it.
        image: what is cast.
        options: for ``diskcast send``.
        receiver_count: agents; the others of the network's receivers stay free.
        targets: by receiver, where they aren't files of the cast's own.
        agent_options: for ``diskcast-agent receive``, by receiver.
        limit_s: for the cast, from its first image data.
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
        """Seconds since image data began."""
        return time.monotonic() - self.started_at

    def wait_until(self, offset_s: float) -> bool:
        """Wait until ``offset_s`` after image data began.

        Returns:
            False if the sender ended before.
        """
        try:
            self.sender.wait(max(0.0, offset_s - self.now_s()))
        except LabError:
            return True
        return False

    def finish(self, *, succeeds: bool = True) -> CastRecord:
        """Wait for all programs and compare every complete target with the image.

        Args:
            succeeds: whether all programs have to end with exit code 0.

        Raises:
            LabError: not ended in time, one failed, or a receiver that says it is complete isn't.
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
                raise LabError(f"{receiver_name(index)} says it is complete and differs at byte {offset}")
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
    """As ``--name`` says it to the operator."""
    return f"r{index}"


def lost_share(before: PortCounters, after: PortCounters) -> float:
    """Share of what was sent to a port between two looks and didn't leave by it; nan if nothing was sent."""
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
        f"    limited by {bottlenecks or 'nothing'}"
    )
