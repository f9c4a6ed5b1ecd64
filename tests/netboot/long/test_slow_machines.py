"""A room of slow machines at the automatic rate, against the best rate that an operator could have set by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.machines.netboot_room import AGENT_STARTED, BOOT_LIMIT_S, NetbootRoom
from tests.support.machines.virtual_machine import Disk, MachineSpec, VirtualMachine
from tests.support.network.lab import LabError, Program
from tests.support.programs.processor_quota import ProcessorQuota
from tests.support.rate_search import best_fixed_rate

pytestmark = pytest.mark.needs_root

_PROCESSOR_SHARE: Final = 0.3
"""Share of a processor for each machine, its emulation included: much less than the sender gets on a busy machine."""
_SLOW_CAST_LIMIT_S: Final = 900.0
_FOUND_AFTER_S: Final = 3.0
"""Time to find the machines' limit; drops at sockets count only after it."""
_SAMPLE_INTERVAL_S: Final = 1.0
_TIME_BOUND: Final = 1.3
_LOST_MAX: Final = 0.02
_CHANGES_MAX: Final = 1
_CHANGES: Final = ("receiver_slow", "receiver_recovered")
_ROOM: Final = "slow"
_NAMES: Final = ("slow-1", "slow-2")


@dataclasses.dataclass(frozen=True, slots=True)
class _Sample:
    """Counters at one moment of a cast.

    Attributes:
        at_s: seconds since its first image data.
        sent_count: datagrams with data that were sent.
        socket_drops: datagrams dropped at the socket of each machine.
        card_drops: frames for which the queue of each machine's card had no room.
    """

    at_s: float
    sent_count: float
    socket_drops: Mapping[str, float]
    card_drops: Mapping[str, float]


@dataclasses.dataclass(frozen=True, slots=True)
class _Result:
    """The figures of one cast; shares are those of the machine that lost most, after the first seconds.

    Attributes:
        seconds: from the first image data to the end.
        socket_loss: share of the datagrams that its socket dropped.
        card_loss: share that the queue of its card dropped.
        changes: number of times that each machine became slow or recovered.
    """

    seconds: float
    socket_loss: float
    card_loss: float
    changes: Counter[str]


class _SlowRoom:
    """Machines whose live systems wait for casts."""

    def __init__(self, room: NetbootRoom, image: str, disks: Sequence[Disk]) -> None:
        self._room = room
        self._image = image
        self._disks = disks

    def plan(self, *options: str) -> Program:
        """Plan a cast, which starts when :meth:`run` says so."""
        return self._room.cast_to(self._image, _ROOM, "--start", "manual", "--json", *options)

    def run(self, cast: Program) -> _Result:
        """Start a cast to blank disks, and measure it."""
        for name in _NAMES:
            cast.wait_event("receiver_joined", 2 * BOOT_LIMIT_S, functools.partial(_is_of, name))
        cast_id = str(self._room.ask("casts", "list")[0]["cast_id"])
        self._room.command("casts", "start", cast_id)
        samples: list[_Sample] = []
        while cast.exit_code is None:
            samples += self._sample(cast_id)
            assert not samples or samples[-1].at_s < _SLOW_CAST_LIMIT_S, cast.describe()
            with contextlib.suppress(LabError):
                cast.wait(_SAMPLE_INTERVAL_S)
        assert cast.exit_code == 0, cast.describe()
        early, late = next(sample for sample in samples if sample.at_s >= _FOUND_AFTER_S), samples[-1]
        changes = [event for event in cast.events if event["event"] in _CHANGES]
        for event in changes:
            print(f"{event['at']} {event['event']}: {event['text']}")
        sent_count = late.sent_count - early.sent_count
        return _Result(
            float(cast.result["seconds"]),
            max((late.socket_drops[name] - early.socket_drops[name]) / sent_count for name in _NAMES),
            max((late.card_drops[name] - early.card_drops[name]) / sent_count for name in _NAMES),
            Counter(str(event["machine"]) for event in changes),
        )

    def repeat(self, *options: str) -> _Result:
        """Measure a further cast."""
        for disk in self._disks:
            disk.erase()
        with self.plan(*options) as cast:
            return self.run(cast)

    def _sample(self, cast_id: str) -> list[_Sample]:
        """Return the counters of a cast; nothing before it sends and after its end."""
        values = {
            (sample.name, sample.labels.get("machine", "")): sample.value
            for sample in self._room.metrics()
            if sample.labels.get("cast") == cast_id
        }
        if not values.get(("diskcast_sent_datagrams_total", "")):
            return []
        return [
            _Sample(
                values["diskcast_cast_elapsed_seconds", ""],
                values["diskcast_sent_datagrams_total", ""],
                {name: values["diskcast_receiver_socket_drops_total", name] for name in _NAMES},
                {name: self._room.network.dropped_frames(tap) for tap, name in enumerate(_NAMES)},
            )
        ]


def _is_of(name: str, event: dict[str, Any]) -> bool:
    return bool(event["machine"] == name)


def test_slow_machines_take_little_longer_than_at_the_best_fixed_rate(
    room: NetbootRoom, medium: Path, debian: str, tmp_path: Path
) -> None:
    """Lost if this fails: a room of old laptops spends most of its time on repairs of what it could not read."""
    disks = [Disk.blank(tmp_path / name) for name in _NAMES]
    room.create_room(_ROOM, {name: tap for tap, name in enumerate(_NAMES)})
    slow = _SlowRoom(room, debian, disks)
    with contextlib.ExitStack() as stack:
        stack.enter_context(room.start_boot_services(medium, words=["diskcast.after=wait"]))
        quotas = [stack.enter_context(ProcessorQuota(_PROCESSOR_SHARE)) for _ in _NAMES]
        cast = stack.enter_context(slow.plan("--max-wait", "never"))
        # Not nice: the quota bounds what a machine takes, and it should get that much beside other programs.
        machines = [
            stack.enter_context(
                VirtualMachine(room.network, tap, MachineSpec(disks=(disks[tap],), niceness=0), name=name)
            )
            for tap, name in enumerate(_NAMES)
        ]
        for machine, quota in zip(machines, quotas, strict=True):
            machine.console.wait_for(AGENT_STARTED, BOOT_LIMIT_S)
            quota.add(machine.pid)
        automatic = slow.run(cast)
        print(f"\nautomatic rate: {automatic}, load {os.getloadavg()[0]:.1f}")

        packed_mbit = (room.images / f"{debian}.dci").stat().st_size * 8e-6

        def seconds_at(mbit_per_s: float) -> float:
            if (least_s := packed_mbit / mbit_per_s) > automatic.seconds:
                return least_s  # slower than the automatic rate even if nothing gets lost
            fixed = slow.repeat("--max-rate", f"{mbit_per_s:.2f}M")
            print(f"at most {mbit_per_s:.1f} Mbit/s: {fixed}, load {os.getloadavg()[0]:.1f}")
            return fixed.seconds

        best_s, best_mbit_per_s = best_fixed_rate(seconds_at, packed_mbit / automatic.seconds)
        print(f"{automatic.seconds / best_s:.2f} times the time at {best_mbit_per_s:.1f} Mbit/s")
    room.remove_room(_ROOM)
    assert automatic.socket_loss < _LOST_MAX
    assert max(automatic.changes.values(), default=0) <= _CHANGES_MAX
    assert automatic.seconds <= _TIME_BOUND * best_s
