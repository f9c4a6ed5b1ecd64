"""Scenarios of one machine that is much slower than the others, by its cable or its disk, under each policy."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

from protocol.errors import DroppedError, ReceiversIncompleteError
from protocol.model.bottleneck import Cause
from tests.bench import peers
from tests.bench.figures import Figure
from tests.bench.room import Bench, CastRecord, Image, Target, receiver_name
from tests.support.disks.slow_disk import Behaviour, slow_disk
from tests.support.network.lab import Network

OTHERS_COUNT = 7
SLOW = OTHERS_COUNT
"""Index of the slow receiver."""
OTHERS = range(OTHERS_COUNT)
RATE_MBIT_PER_S = 200
SLOW_MBIT_PER_S = 20
LIMIT_S = 180.0
SLOW_DISK_MEMORY = "24MiB"
"""Small compared with the image, as in practice, so that buffers don't hide the slow disk."""
OTHERS_BOUND = 1.10
TOGETHER_PERCENT = 10.0


@functools.cache
def reference(bench: Bench, image: Image) -> CastRecord:
    """Measure the room without its slow machine, once per run."""
    with Network(OTHERS_COUNT) as network:
        network.set_rate(RATE_MBIT_PER_S)
        with bench.cast(network, image) as cast:
            return cast.finish()


def slow_link(bench: Bench, image: Image, name: str, *options: str, succeeds: bool = True) -> CastRecord:
    """Run a cast in which the slow machine's link has a tenth of the others' rate."""
    bench.say(f"  {name}: one of {OTHERS_COUNT + 1} at {SLOW_MBIT_PER_S} of {RATE_MBIT_PER_S} Mbit/s")
    with Network(OTHERS_COUNT + 1) as network:
        network.set_rate(RATE_MBIT_PER_S)
        network.set_rate(SLOW_MBIT_PER_S, [network.receivers[SLOW]])
        with bench.cast(network, image, *options, limit_s=LIMIT_S) as cast:
            return cast.finish(succeeds=succeeds)


def demoted(bench: Bench, image: Image) -> Iterator[Figure]:
    """Measure the default policy: the others aren't held back, and the slow one completes after them."""
    name = "straggler-network"
    record = slow_link(bench, image, name)
    yield others_time(name, bench, image, record)
    yield completed_count(name, record, OTHERS_COUNT + 1)
    slow_s = record.slowest_s([SLOW])
    link_s = image.raw_bytes * 8e-6 / SLOW_MBIT_PER_S
    yield Figure(
        name,
        "slow one's time against its link's",
        slow_s / link_s,
        note=f"{slow_s:.1f} s; {record.symbols_sent_ratio:.2f} symbols sent per source symbol",
    )


def dropped(bench: Bench, image: Image) -> Iterator[Figure]:
    """Measure ``--slow drop``: the others aren't held back, and both programs report it by their exit codes."""
    name = "straggler-drop"
    record = slow_link(bench, image, name, "--slow", "drop", "--slow-for", "2s", succeeds=False)
    yield others_time(name, bench, image, record)
    codes = (record.exit_code, record.agent_exit_codes[SLOW])
    wanted = (ReceiversIncompleteError.exit_code, DroppedError.exit_code)
    yield Figure(
        name,
        "sender and slow one end with their exit codes",
        float(codes == wanted),
        at_least=1.0,
        note=f"{codes[0]} and {codes[1]}, expected {wanted[0]} and {wanted[1]}",
    )


def waited_for(bench: Bench, image: Image) -> Iterator[Figure]:
    """Measure ``--slow wait``: all machines have the slow one's rate and end with it."""
    name = "straggler-wait"
    record = slow_link(bench, image, name, "--slow", "wait")
    yield completed_count(name, record, OTHERS_COUNT + 1)
    last_s = record.last_completed_s
    yield Figure(
        name,
        "first end before the last",
        100 * (last_s - min(record.completed_s.values())) / last_s,
        "%",
        at_most=TOGETHER_PERCENT,
        note=f"all after {last_s:.1f} s; the slow one's link alone takes "
        f"{image.raw_bytes * 8e-6 / SLOW_MBIT_PER_S:.1f} s",
    )


def udpcast_with_slow_link(bench: Bench, image: Image) -> Iterator[Figure]:
    """Measure udpcast in the same room, for comparison."""
    name = "straggler-udpcast"
    if peers.udpcast_version() is None:
        yield Figure(name, "udpcast's time", math.nan, "s", note="not installed")
        return
    times_s = []
    for slow in (False, True):
        with Network(OTHERS_COUNT + slow) as network:
            network.set_rate(RATE_MBIT_PER_S)
            network.set_rate(SLOW_MBIT_PER_S if slow else RATE_MBIT_PER_S, network.receivers[SLOW:])
            one = peers.cast_udpcast(network, image.raw, lossy=False, limit_s=LIMIT_S)
        bench.say(
            f"  udpcast, {'with' if slow else 'without'} the slow machine: {one.failure or f'{one.wall_s:.1f} s'}"
        )
        if one.failure:
            yield Figure(name, "udpcast's time", math.nan, "s", note=one.failure)
            return
        times_s.append(one.wall_s)
    yield Figure(
        name,
        "udpcast's time for all against that without the slow one",
        times_s[1] / times_s[0],
        note=f"{times_s[1]:.1f} s against {times_s[0]:.1f} s",
    )


def others_time(name: str, bench: Bench, image: Image, record: CastRecord) -> Figure:
    """Return the time of the others, compared with a cast without the slow one."""
    alone_s = reference(bench, image).slowest_s(OTHERS)
    others_s = record.slowest_s(OTHERS)
    return Figure(
        name,
        "time of the others against a cast without the slow one",
        others_s / alone_s,
        at_most=OTHERS_BOUND,
        note=f"{others_s:.2f} s against {alone_s:.2f} s",
    )


def completed_count(name: str, record: CastRecord, wanted_count: int) -> Figure:
    """Return the number of receivers that verified every byte."""
    missing = [receiver_name(index) for index in range(wanted_count) if index not in record.completed_s]
    return Figure(
        name,
        "receivers complete",
        len(record.completed_s),
        at_least=wanted_count,
        note=f"not {', '.join(missing)}" if missing else "",
    )


def slow_disk_named(bench: Bench, image: Image) -> Iterator[Figure]:
    """Measure a disk with a tenth of the others' rate: the others aren't held back, and the disk is named."""
    name = "straggler-disk"
    behaviour = Behaviour(write_bytes_per_s=SLOW_MBIT_PER_S * 1e6 / 8)
    bench.say(f"  {name}: one of {OTHERS_COUNT + 1} writes {SLOW_MBIT_PER_S} Mbit/s")
    with (
        tempfile.TemporaryDirectory(dir=bench.folder) as folder,
        slow_disk(Path(folder), behaviour) as disk,
        Network(OTHERS_COUNT + 1) as network,
    ):
        network.set_rate(RATE_MBIT_PER_S)
        target = Target(disk.directory / "target", disk.storage / "target")
        with bench.cast(
            network,
            image,
            targets={SLOW: target},
            agent_options={SLOW: ("--memory", SLOW_DISK_MEMORY)},
            limit_s=LIMIT_S,
        ) as cast:
            record = cast.finish()
    yield others_time(name, bench, image, record)
    yield completed_count(name, record, OTHERS_COUNT + 1)
    reported = {
        (line["receiver"], line["cause"])
        for event in ("receiver_slow", "receiver_demoted")
        for line in record.named(event)
    }
    wanted = {(receiver_name(SLOW), Cause.DISK.value)}
    yield Figure(
        name,
        "only the slow one named, with its disk",
        float(reported == wanted),
        at_least=1.0,
        note=", ".join(f"{receiver}: {cause}" for receiver, cause in sorted(reported)) or "no machine named",
    )
    times_s = [(one["receiver"], one["cause"], one["seconds"]) for one in record.result["bottleneck_seconds"]]
    own_s = sum(seconds for receiver, cause, seconds in times_s if (receiver, cause) in wanted)
    yield Figure(
        name,
        "of the cast's time, limited by that disk",
        100 * own_s / record.seconds,
        "%",
        note="after the others had ended it is the only one left",
    )
    slow_s = record.slowest_s([SLOW])
    disk_s = image.raw_bytes * 8e-6 / SLOW_MBIT_PER_S
    yield Figure(name, "time of the slow one / time of its disk", slow_s / disk_s, note=f"{slow_s:.1f} s")
