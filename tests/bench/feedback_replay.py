"""Benchmark of the sender's feedback path with the feedback of a whole room, recorded in a simulated cast.

The recording has every call of the sender's session, so the session of the replay has the same states. The replay runs
once as fast as possible, which measures the session alone, and once in real time, where every feedback datagram passes
a UDP socket, the event loop and the lock that the transmitter's threads share.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import statistics
import time
import types
from collections.abc import Callable
from unittest import mock

from protocol.wire.messages import Nack, Report
from sender.addresses import parse_group
from sender.cast.network.interfaces import find_interface
from sender.cast.network.sockets import bind_control_sockets
from sender.cast.session import locked_session
from sender.cast.session.feedback import FeedbackPort
from tests.simulation.cast import SimulatedCast

_TYPE_OFFSET = 3
"""Offset of a datagram's type, after magic and version."""
_LEAD_S = 0.2
_SLEEP_MIN_S = 0.0005


@dataclasses.dataclass(frozen=True, slots=True)
class SessionCost:
    """Median microseconds of a call of the session: parsing, authentication, rate control, demand."""

    report_us: float
    nack_us: float


@dataclasses.dataclass(frozen=True, slots=True)
class PathCost:
    """CPU time of the event loop's thread for feedback.

    Attributes:
        datagram_count: received datagrams.
        sent_count: sent datagrams; the socket dropped the others.
        cpu_us: CPU microseconds per datagram, including the loop's wake-ups.
        cpu_share: share of one core over the time of the cast.
    """

    datagram_count: int
    sent_count: int
    cpu_us: float
    cpu_share: float


def session_cost(cast: SimulatedCast) -> SessionCost:
    """Replay the log of ``cast`` and measure each feedback datagram."""
    assert cast.log is not None
    session = cast.make_session()
    seconds: dict[int, list[float]] = {Report.WIRE_TYPE: [], Nack.WIRE_TYPE: []}
    for now, entry in cast.log:
        if isinstance(entry, bytes):
            start_s = time.perf_counter()
            session.receive_feedback_untrusted(entry, now)
            seconds[entry[_TYPE_OFFSET]].append(time.perf_counter() - start_s)
        else:
            entry(session, now)
    assert not session.rejects, session.rejects
    return SessionCost(
        *(1e6 * statistics.median(seconds[kind.WIRE_TYPE] or [0.0]) for kind in (Report, Nack))
    )


def path_cost(cast: SimulatedCast) -> PathCost:
    """Replay the log of ``cast`` in real time over the loopback interface."""
    lo = find_interface("lo")
    tcp, receiving = bind_control_sockets(None, 0, lo, lo.address_for(parse_group("239.1.1.1")))
    tcp.close()
    # The recorded datagrams echo the clock of the recording, so the replay uses it too.
    shift_s = time.monotonic() + _LEAD_S - cast.start
    clock = types.SimpleNamespace(monotonic=lambda: time.monotonic() - shift_s)
    with mock.patch.object(locked_session, "time", clock):
        return asyncio.run(_replay(cast, receiving, clock.monotonic))


async def _replay(cast: SimulatedCast, receiving: socket.socket, clock: Callable[[], float]) -> PathCost:
    loop = asyncio.get_running_loop()
    wake, ended = asyncio.Event(), asyncio.Event()
    session = cast.make_session()
    shared = locked_session.LockedSession(session, lambda: loop.call_soon_threadsafe(wake.set))
    port = FeedbackPort(receiving, shared)
    address = receiving.getsockname()
    task = asyncio.create_task(port.run())

    def play() -> int:
        try:
            return _play(cast, shared, address, clock)
        finally:
            loop.call_soon_threadsafe(ended.set)

    cpu_before_s, start_s = time.thread_time(), time.monotonic()
    playing = loop.run_in_executor(None, play)
    await ended.wait()
    sent_count = await playing
    await asyncio.sleep(_LEAD_S)
    cpu_s, elapsed_s = time.thread_time() - cpu_before_s, time.monotonic() - start_s - 2 * _LEAD_S
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0)  # the transport closes its socket in the next iteration of the loop
    assert not session.rejects, session.rejects
    count = port.received_count
    return PathCost(count, sent_count, 1e6 * cpu_s / max(1, count), cpu_s / elapsed_s)


def _play(
    cast: SimulatedCast,
    shared: locked_session.LockedSession,
    address: tuple[str, int],
    clock: Callable[[], float],
) -> int:
    """Replay the log at its times; return the number of sent datagrams."""
    assert cast.log is not None
    sent_count = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        for at, entry in cast.log:
            ahead_s = at - clock()
            if ahead_s > _SLEEP_MIN_S:
                time.sleep(ahead_s)
            if isinstance(entry, bytes):
                sending.sendto(entry, address)
                sent_count += 1
            else:
                with shared.update() as (session, now):
                    entry(session, now)
    return sent_count
