"""The cost of a flood of forged NACKs, paired with casts beside the same flood to a port where nobody listens."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator

from protocol.constants import CONTROL_PORT_DEFAULT, DATA_PORT_DEFAULT, GROUP_IPV4_DEFAULT
from tests.bench.figures import Figure
from tests.bench.room import Bench, Image
from tests.support.network.lab import INTERFACE, Network

NAME = "forged-nacks"
RATE = "400M"
"""A rate that two processors sustain beside the attacker, which takes a part of one."""

LIMIT_S = 120.0
_CLOSED_PORT = 7499
_START_LIMIT_S = 30.0


def forged_nacks(bench: Bench, image: Image) -> Iterator[Figure]:
    """Measure the throughput of a cast at a fixed rate beside 10,000 forged NACKs a second."""
    sender_cpu_s: dict[int, list[float]] = {_CLOSED_PORT: [], CONTROL_PORT_DEFAULT: []}
    with Network(2) as network:
        outsider = network.receivers[1]

        def measure(port: int) -> float:
            where = (INTERFACE, GROUP_IPV4_DEFAULT, str(DATA_PORT_DEFAULT))
            flood = ("feedback", *where, f"{network.sender.address},{port}", str(LIMIT_S))
            with network.start(
                outsider, [sys.executable, "-m", "tests.attacks.wire_attacker", *flood]
            ) as attack:
                attack.wait_event("ready", _START_LIMIT_S)
                with bench.cast(network, image, "--rate", RATE, receiver_count=1, limit_s=LIMIT_S) as cast:
                    record = cast.finish()
                    usage = cast.sender.usage
            if usage is not None:
                sender_cpu_s[port].append(usage.cpu_s)
            return record.seconds

        quiet_s, flooded_s = bench.alternate(
            lambda: measure(_CLOSED_PORT), lambda: measure(CONTROL_PORT_DEFAULT)
        )
    note = f"median {flooded_s:.2f} s, beside a flood to a closed port {quiet_s:.2f} s"
    yield Figure(NAME, "throughput", 100 * quiet_s / flooded_s, "%", at_least=95.0, note=note)
    used_s = [statistics.median(values) for values in sender_cpu_s.values()]
    note = f"median {used_s[1]:.2f} s, otherwise {used_s[0]:.2f} s"
    yield Figure(NAME, "sender's processor time", 100 * used_s[1] / used_s[0], "%", note=note)
