"""The networks that the automatic rate has to cope with, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from protocol.constants import MIB
from protocol.model.cast_policy import CastPolicy, SlowPolicy
from tests.simulation.cast import CastModel, TcpModel
from tests.simulation.links import BYTES_PER_S_OF_MBIT, Port, shaped, stepped
from tests.simulation.receivers import ReceiverModel

_SWITCH_QUEUE_BYTES = 512_000
"""A port of a cheap gigabit switch."""
_SHALLOW_QUEUE_BYTES = 100_000
_LATE_S = 0.03
"""As long as the scheduler may leave a thread waiting for a processor that other programs keep busy."""
_FAR_DELAY_S = 0.02
_STRAGGLER_IMAGE_BYTES = 256 * MIB
"""Eleven seconds at 200 Mbit/s: longer than ``--slow-for``."""
_SOCKET_BYTES = 4_000_000
_DEEP_SOCKET_BYTES = 20_000_000
"""Datagrams that fit into the 32 MiB which the agent gets from the kernel, less the kernel's overhead."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scenario:
    """A named cast, and what it is about."""

    name: str
    title: str
    build: Callable[[], CastModel]


def _group(count: int, port: Port, **changes: object) -> CastModel:
    return CastModel(tuple(ReceiverModel(port) for _ in range(count)), **changes)  # type: ignore[arg-type]


def gigabit(**changes: object) -> Port:
    """A port of a gigabit switch."""
    port = Port(((0.0, 1000 * BYTES_PER_S_OF_MBIT),), queue_bytes=_SWITCH_QUEUE_BYTES)
    return dataclasses.replace(port, **changes)  # type: ignore[arg-type]


def _shaped_image_bytes(mbit_per_s: float) -> int:
    return int(min(512 * MIB, mbit_per_s * BYTES_PER_S_OF_MBIT * 25))


def _one_slow(policy: SlowPolicy | None, slow: ReceiverModel | None = None) -> CastModel:
    """Seven receivers at 200 Mbit/s and, unless ``policy`` is None, one at a tenth of that."""
    others = [ReceiverModel(shaped(200)) for _ in range(7)]
    if policy is None:
        return CastModel(tuple(others), image_bytes=_STRAGGLER_IMAGE_BYTES)
    slow = slow or ReceiverModel(shaped(20))
    return CastModel(
        (slow, *others), _STRAGGLER_IMAGE_BYTES, policy=CastPolicy(slow_policy=policy), limit_s=1200.0
    )


def _slow_disk(policy: SlowPolicy) -> CastModel:
    port = gigabit()
    slow = ReceiverModel(port, disk_bytes_per_s=10e6)
    return CastModel(
        (slow, *(ReceiverModel(port) for _ in range(3))),
        image_bytes=2 * _STRAGGLER_IMAGE_BYTES,
        policy=CastPolicy(slow_policy=policy),
    )


def _one_of(count: int, port: Port, one: ReceiverModel, **changes: object) -> CastModel:
    """``one`` and ``count - 1`` receivers that have nothing but their port."""
    others = tuple(ReceiverModel(port) for _ in range(count - 1))
    return CastModel((one, *others), **changes)  # type: ignore[arg-type]


def _slow_machine(decoder_bytes_per_s: float) -> ReceiverModel:
    """A virtual machine without hardware acceleration, or an old laptop."""
    return ReceiverModel(
        gigabit(),
        processor_bytes_per_s=8 * decoder_bytes_per_s,
        decoder_bytes_per_s=decoder_bytes_per_s,
        socket_bytes=_DEEP_SOCKET_BYTES,
    )


def _slow_room(count: int) -> CastModel:
    decoders = [4e6] * count if count == 2 else [3e6 + 2e6 * index / (count - 1) for index in range(count)]
    return CastModel(tuple(_slow_machine(each) for each in decoders), image_bytes=128 * MIB)


def _busy(port: Port) -> CastModel:
    """Receivers whose threads wait for a processor now and then."""
    return CastModel(tuple(ReceiverModel(port, late_s=_LATE_S) for _ in range(4)))


def _far(port: Port) -> CastModel:
    far = dataclasses.replace(port, delay_s=_FAR_DELAY_S)
    return CastModel(tuple(ReceiverModel(far, feedback_delay_s=_FAR_DELAY_S) for _ in range(4)))


def _tcp(share: bool) -> CastModel:
    return _group(1, shaped(200), policy=CastPolicy(share=share), tcp=(TcpModel(start_s=1.0),))


SCENARIOS: tuple[Scenario, ...] = (
    *(
        Scenario(
            f"shaped-{mbit}",
            f"4 receivers behind ports shaped to {mbit} Mbit/s",
            lambda mbit=mbit: _group(4, shaped(mbit), image_bytes=_shaped_image_bytes(mbit)),
        )
        for mbit in (10, 50, 200, 800)
    ),
    Scenario(
        "shaped-200-offload",
        "the same at 200 Mbit/s, super-datagrams dropped whole",
        lambda: _group(4, shaped(200, whole_calls=True)),
    ),
    Scenario(
        "shallow-200",
        "4 receivers at 200 Mbit/s, queues of 100 KB",
        lambda: _group(4, shaped(200, queue_bytes=_SHALLOW_QUEUE_BYTES, burst_bytes=3000)),
    ),
    Scenario("gigabit", "4 receivers on a gigabit switch", lambda: _group(4, gigabit())),
    *(
        Scenario(
            f"loss-{percent}",
            f"4 receivers on a gigabit switch, {percent} % random loss at each",
            lambda percent=percent: _group(4, gigabit(loss=percent / 100)),
        )
        for percent in (1, 5)
    ),
    Scenario(
        "loss-5-shaped-200",
        "4 receivers at 200 Mbit/s, 5 % random loss at each",
        lambda: _group(4, shaped(200, loss=0.05)),
    ),
    Scenario(
        "step",
        "one receiver at 200, then 50, then 200 Mbit/s",
        lambda: _group(1, stepped([(0.0, 200), (8.0, 50), (18.0, 200)])),
    ),
    Scenario("none-slow", "7 receivers at 200 Mbit/s", lambda: _one_slow(None)),
    *(
        Scenario(
            f"one-slow-{policy}",
            f"8 receivers, one of them at 20 instead of 200 Mbit/s, --slow {policy}",
            lambda policy=policy: _one_slow(policy),
        )
        for policy in SlowPolicy
    ),
    *(
        Scenario(
            f"slow-disk-{policy}",
            f"4 receivers on a gigabit switch, one of them with a disk of 10 MB/s, --slow {policy}",
            lambda policy=policy: _slow_disk(policy),
        )
        for policy in SlowPolicy
    ),
    Scenario(
        "burst-loss",
        "4 receivers at 200 Mbit/s, every 20th super-datagram lost",
        lambda: _group(4, shaped(200), uplink=Port(delay_s=0.0, lost_call_period=20)),
    ),
    Scenario(
        "burst-loss-gigabit",
        "4 receivers on a gigabit switch, every 20th super-datagram lost",
        lambda: _group(4, gigabit(), uplink=Port(delay_s=0.0, lost_call_period=20)),
    ),
    Scenario("tcp", "one receiver at 200 Mbit/s, a TCP flow beside it", lambda: _tcp(False)),
    Scenario("tcp-share", "the same with --share", lambda: _tcp(True)),
    Scenario(
        "one-at-half",
        "8 receivers, one of them at 100 instead of 200 Mbit/s",
        lambda: _one_of(8, shaped(200), ReceiverModel(shaped(100)), image_bytes=256 * MIB),
    ),
    Scenario(
        "slow-for-a-while",
        "4 receivers at 200 Mbit/s, one of them at 20 from 2 s to 6 s",
        lambda: _one_of(
            4,
            shaped(200),
            ReceiverModel(stepped([(0.0, 200), (2.0, 20), (6.0, 200)])),
            image_bytes=256 * MIB,
        ),
    ),
    Scenario(
        "slow-processor",
        "4 receivers on a gigabit switch, one of them with a processor for 400 Mbit/s",
        lambda: _one_of(
            4,
            gigabit(),
            ReceiverModel(
                gigabit(), processor_bytes_per_s=400 * BYTES_PER_S_OF_MBIT, socket_bytes=_SOCKET_BYTES
            ),
        ),
    ),
    Scenario(
        "slow-room",
        "2 machines with one slow processor each on a gigabit switch: 4 MB/s decoded",
        lambda: _slow_room(2),
    ),
    Scenario("slow-room-8", "8 machines that decode 3 to 5 MB/s on a gigabit switch", lambda: _slow_room(8)),
    Scenario(
        "slow-decoder",
        "4 receivers on a gigabit switch, one of them decodes 4 MB/s",
        lambda: _one_of(4, gigabit(), _slow_machine(4e6), image_bytes=128 * MIB),
    ),
    Scenario(
        "disks-60",
        "4 receivers on a gigabit switch, all of them with disks of 60 MB/s",
        lambda: CastModel(tuple(ReceiverModel(gigabit(), disk_bytes_per_s=60e6) for _ in range(4))),
    ),
    Scenario(
        "busy-threads",
        "4 receivers on a gigabit switch, threads up to 30 ms late",
        lambda: _busy(gigabit()),
    ),
    Scenario(
        "busy-threads-200", "4 receivers at 200 Mbit/s, threads up to 30 ms late", lambda: _busy(shaped(200))
    ),
    Scenario("far-200", "4 receivers at 200 Mbit/s, 40 ms away", lambda: _far(shaped(200))),
    *(
        Scenario(
            f"group-{count}",
            f"{count} receiver{'s' if count > 1 else ''} at 100 Mbit/s",
            lambda count=count: _group(count, shaped(100), image_bytes=256 * MIB),
        )
        for count in (1, 16)
    ),
    Scenario(
        "group-16-loss-5",
        "16 receivers at 100 Mbit/s, 5 % random loss at each",
        lambda: _group(16, shaped(100, loss=0.05), image_bytes=128 * MIB),
    ),
)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
