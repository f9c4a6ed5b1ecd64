"""Scenario of a room of slow machines: the automatic rate against the best rate that an operator could set by hand."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.bench.figures import Figure
from tests.bench.room import Bench, Cast, CastRecord, Image, receiver_name
from tests.support.network.lab import Network, Program
from tests.support.programs.processor_quota import ProcessorQuota
from tests.support.rate_search import best_fixed_rate

MACHINE_COUNT = 2
PROCESSOR_SHARE = 0.05
"""A machine that decodes a few megabytes a second, as a virtual machine without hardware acceleration does."""
LIMIT_S = 400.0
FOUND_AFTER_S = 3.0
"""Time to find the machines' limit; drops at sockets count only after it."""
TIME_BOUND = 1.3
LOST_PERCENT_MAX = 2.0
CHANGES_MAX = 1


def slow_machines(bench: Bench, image: Image) -> Iterator[Figure]:
    """Measure two machines with a small share of a processor each."""
    name = "slow-machines"
    bench.say(f"  {name}: {MACHINE_COUNT} machines with {PROCESSOR_SHARE:.0%} of a processor each")
    record, lost_share = _cast(bench, image)

    def seconds_at(mbit_per_s: float) -> float:
        bench.say(f"  at most {mbit_per_s:.1f} Mbit/s")
        return _cast(bench, image, "--max-rate", f"{mbit_per_s:.2f}M")[0].seconds

    fixed_s, fixed_mbit_per_s = best_fixed_rate(seconds_at, image.raw_bytes * 8e-6 / record.seconds)
    yield Figure(
        name,
        "time against the best fixed rate",
        record.seconds / fixed_s,
        at_most=TIME_BOUND,
        note=f"{record.seconds:.1f} s against {fixed_s:.1f} s at {fixed_mbit_per_s:.0f} Mbit/s",
    )
    yield Figure(
        name,
        f"lost at the sockets after {FOUND_AFTER_S:g} s",
        100 * lost_share,
        "%",
        at_most=LOST_PERCENT_MAX,
        note=f"{record.symbols_sent_ratio:.3f} symbols sent per source symbol",
    )
    changes = Counter(
        line["receiver"] for event in ("receiver_slow", "receiver_recovered") for line in record.named(event)
    )
    yield Figure(
        name,
        "changes of “slow” at one machine",
        max(changes.values(), default=0),
        at_most=CHANGES_MAX,
        note=", ".join(f"{machine}: {count}" for machine, count in changes.items()),
    )


def _cast(bench: Bench, image: Image, *options: str) -> tuple[CastRecord, float]:
    """Cast to the machines; return the record and the largest share of datagrams dropped at a socket later on."""
    with contextlib.ExitStack() as stack:
        quotas = [stack.enter_context(ProcessorQuota(PROCESSOR_SHARE)) for _ in range(MACHINE_COUNT)]
        network = stack.enter_context(Network(MACHINE_COUNT))
        # Each datagram is a packet: the socket counts dropped packets.
        network.set_offload(False)
        cast = Cast(bench, network, image, options, limit_s=LIMIT_S)
        with cast:
            for quota, agent in zip(quotas, cast.agents, strict=True):
                quota.add(agent.pid)
            running = cast.wait_until(FOUND_AFTER_S)
            before = [_socket_drops(agent) for agent in cast.agents]
            sent = network.port_counters()
            record = cast.finish()
            sent_later = [
                after.offered_bytes - at_first.offered_bytes
                for at_first, after in zip(sent, network.port_counters(), strict=True)
            ]
    if not running:
        return record, math.nan
    dropped = {one["name"]: one["socket_drops_count"] for one in record.result["receivers"]}
    return record, max(
        (dropped[receiver_name(index)] - drops) * _PACKET_BYTES / offered_bytes
        for index, (drops, offered_bytes) in enumerate(zip(before, sent_later, strict=True))
    )


_PACKET_BYTES = 1514


def _socket_drops(program: Program) -> int:
    """Return the packets that the program's namespace has dropped at UDP sockets."""
    lines = Path(f"/proc/{program.pid}/net/udp").read_text().splitlines()
    return sum(int(line.split()[-1]) for line in lines[1:])
