"""Traces and figures of simulated casts."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from protocol.constants import DATA_HEADER_BYTES
from protocol.sending.events import ReceiverRecovered, ReceiverSlow
from tests.simulation.cast import CastModel, SimulatedCast
from tests.simulation.links import WIRE_OVERHEAD_BYTES

SAMPLE_S = 0.02
_SETTLED_AFTER_S = 2.0
"""Losses count after this time: slow start may lose datagrams."""
_MACHINE_FOUND_AFTER_S = 3.0
"""Drops at sockets count after this time, in which a slow processor has to be found."""
_WINDOW_S = 0.3
"""Time over which delivery rates are averaged."""
_REACHED = 0.9
_OVERSHOOT = 1.1

TRACE_DTYPE = np.dtype(
    [
        ("time", "f8"),
        ("rate", "f8"),
        ("sent", "f8"),
        ("parity", "f8"),
        ("cause", "U10"),
        ("who", "i4"),
        ("grtt", "f8"),
        ("tcp", "f8"),
    ]
)
PORT_DTYPE = np.dtype(
    [
        ("limit", "f8"),
        ("queue", "f8"),
        ("offered", "f8"),
        ("dropped", "f8"),
        ("lost", "f8"),
        ("socket_dropped", "f8"),
        ("assembled", "f8"),
        ("arrived", "f8"),
        ("fill", "f8"),
    ]
)


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """Samples of one run.

    Attributes:
        model: model of the run.
        cast: the run.
        samples: ``TRACE_DTYPE[n]``: seconds since image data started, pacing rate in bytes of frames per second,
            symbols sent so far, parity, bottleneck and its receiver (-1 for none), GRTT, bytes that the TCP flows
            delivered so far.
        ports: ``PORT_DTYPE[n, receivers]``: the port's limit in bytes per second, bytes in its queue; datagrams
            offered, dropped at the queue's end and lost beyond, image bytes assembled and frame bytes arrived, all so
            far; share of the buffers in use.
    """

    model: CastModel
    cast: SimulatedCast
    samples: NDArray[np.void]
    ports: NDArray[np.void]


def record(model: CastModel) -> Trace:
    """Run ``model`` and take a sample every :data:`SAMPLE_S`."""
    cast = SimulatedCast(model)
    rows: list[tuple[object, ...]] = []
    port_rows: list[list[tuple[float, ...]]] = []

    def sample() -> None:
        session, now = cast.session, cast.timeline.now
        if session.statistics.started_at is None:
            return
        bottleneck = session.bottleneck
        rows.append(
            (
                now - session.statistics.started_at,
                session.rate_bytes_per_s,
                cast.symbols_sent_count,
                session.parity,
                str(bottleneck.cause),
                -1 if bottleneck.receiver_id is None else bottleneck.receiver_id,
                session.grtt_s,
                sum(flow.delivered_bytes for flow in cast.tcp_flows),
            )
        )
        port_rows.append([_port_row(cast, index, now) for index in range(len(cast.receivers))])

    cast.run(sample_s=SAMPLE_S, sample=sample)
    sample()
    return Trace(model, cast, np.array(rows, TRACE_DTYPE), np.array(port_rows, PORT_DTYPE))


def _port_row(cast: SimulatedCast, index: int, now: float) -> tuple[float, ...]:
    receiver = cast.receivers[index]
    link, session = receiver.link, receiver.session
    assert session is not None
    return (
        link.rate_bytes_per_s(now),
        link.backlog_bytes(now),
        link.offered_count,
        link.queue_drop_count,
        link.path_loss_count,
        session.statistics.socket_drop_count,
        receiver.assembled_count * cast.model.block_bytes,
        session.statistics.bytes_received,
        session.fill,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """Figures of a run.

    Attributes:
        seconds: from the first image data to the last receiver's end.
        goodput_share: image bytes over what the slowest port could carry in that time, for those that completed.
        lost_share: symbols that didn't reach the unluckiest receiver after the first two seconds.
        queue_lost_share: share of symbols that a full queue dropped on the way to the same receiver.
        socket_lost_share: share of the symbols that the same or another unlucky receiver dropped at its socket after
            the first three seconds.
        slow_changes_max: how often one receiver at most became slow or recovered.
        sent_ratio: symbols sent over source symbols.
        nack_count: NACK datagrams.
        feedback_share: bytes of feedback over bytes of data, Ethernet frames.
        reached_s: for each change of a port's rate, seconds until 90 % of the new limit is delivered and no more than
            110 % of it is sent; infinite when the next change or the end came first.
        tcp_share: bytes that TCP flows delivered over what their port could carry while the cast ran.
        finished_s: end of each receiver, seconds from the first image data.
        complete: completion of each receiver.
    """

    seconds: float
    goodput_share: float
    lost_share: float
    queue_lost_share: float
    socket_lost_share: float
    slow_changes_max: int
    sent_ratio: float
    nack_count: int
    feedback_share: float
    reached_s: tuple[float, ...]
    tcp_share: float
    finished_s: tuple[float, ...]
    complete: tuple[bool, ...]


def summarise(trace: Trace) -> Summary:
    """Return the figures of a recorded run."""
    cast = trace.cast
    started_at = cast.session.statistics.started_at
    assert started_at is not None
    finished_s = tuple((receiver.finished_at or np.inf) - started_at for receiver in cast.receivers)
    seconds = max(finished_s)
    capacities = [
        receiver.link.capacity_bytes(started_at, receiver.finished_at)
        for receiver in cast.receivers
        if receiver.complete and receiver.finished_at is not None
    ]
    lost, queue_lost = _lost_shares(trace)
    tcp = cast.model.tcp
    return Summary(
        seconds=seconds,
        goodput_share=cast.image.stored_bytes / min(capacities) if capacities else 0.0,
        lost_share=lost,
        queue_lost_share=queue_lost,
        socket_lost_share=_socket_lost_share(trace),
        slow_changes_max=_slow_changes_max(trace),
        sent_ratio=cast.session.statistics.symbols_transmitted_count / cast.image.source_symbols_count,
        nack_count=cast.session.statistics.nacks_received_count,
        feedback_share=cast.feedback_bytes / cast.data_bytes,
        reached_s=tuple(_reached(trace)),
        tcp_share=_tcp_share(trace) if tcp else 0.0,
        finished_s=finished_s,
        complete=tuple(receiver.complete for receiver in cast.receivers),
    )


def _lost_shares(trace: Trace) -> tuple[float, float]:
    """Return the largest share that didn't arrive, and the share that the queue of the same receiver dropped.

    Each receiver counts until its end.
    """
    worst = (0.0, 0.0)
    times = trace.samples["time"]
    first = int(np.searchsorted(times, _SETTLED_AFTER_S))
    if first >= times.size - 1:
        return worst
    started_at = trace.cast.session.statistics.started_at
    for index, receiver in enumerate(trace.cast.receivers):
        last = int(np.searchsorted(times, (receiver.finished_at or np.inf) - started_at)) - 1
        port = trace.ports[:, index]
        offered = port["offered"][last] - port["offered"][first] if last > first else 0.0
        if offered > 0:
            dropped = (port["dropped"][last] - port["dropped"][first]) / offered
            lost = (port["lost"][last] - port["lost"][first]) / offered
            worst = max(worst, (dropped + lost, dropped))
    return worst


def _socket_lost_share(trace: Trace) -> float:
    """Return the largest share of datagrams that a receiver dropped at its socket, until its end."""
    times = trace.samples["time"]
    first = int(np.searchsorted(times, _MACHINE_FOUND_AFTER_S))
    started_at = trace.cast.session.statistics.started_at
    worst = 0.0
    for index, receiver in enumerate(trace.cast.receivers):
        last = int(np.searchsorted(times, (receiver.finished_at or np.inf) - started_at)) - 1
        if last <= first:
            continue
        port = trace.ports[:, index]
        offered = port["offered"][last] - port["offered"][first]
        dropped = port["socket_dropped"][last] - port["socket_dropped"][first]
        worst = max(worst, float(dropped / max(1.0, offered)))
    return worst


def _slow_changes_max(trace: Trace) -> int:
    changes = Counter(
        event.receiver_id
        for _, event in trace.cast.events
        if isinstance(event, ReceiverSlow | ReceiverRecovered)
    )
    return max(changes.values(), default=0)


def windowed_rate(times: NDArray[np.float64], totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean growth over the last :data:`_WINDOW_S` before each sample."""
    before = np.maximum(np.searchsorted(times, times - _WINDOW_S), 0)
    elapsed = np.maximum(times - times[before], 1e-9)
    rate: NDArray[np.float64] = (totals - totals[before]) / elapsed
    return rate


def _reached(trace: Trace) -> list[float]:
    """Return the time that each change took, for the first receiver whose port's rate changes."""
    times = trace.samples["time"]
    started_at = trace.cast.session.statistics.started_at
    frame_bytes = DATA_HEADER_BYTES + trace.model.symbol_bytes
    frame_share = frame_bytes / (frame_bytes + WIRE_OVERHEAD_BYTES)
    for index, receiver in enumerate(trace.model.receivers):
        steps = receiver.port.steps
        if len(steps) == 1:
            continue
        arrived = windowed_rate(times, trace.ports[:, index]["arrived"])
        sent = windowed_rate(times, trace.samples["sent"] * frame_bytes)
        reached = []
        for number, (step_s, rate) in enumerate(steps[1:], 1):
            since = trace.cast.start + step_s - started_at
            until = (
                trace.cast.start + steps[number + 1][0] - started_at if number + 1 < len(steps) else np.inf
            )
            limit = rate * frame_share
            good = (times > since) & (times < until)
            good &= (arrived >= _REACHED * limit) & (sent <= _OVERSHOOT * limit)
            reached.append(float(times[good][0] - since) if good.any() else np.inf)
        return reached
    return []


def _tcp_share(trace: Trace) -> float:
    """Return the flow's share of the port after both have settled."""
    tcp = trace.model.tcp[0]
    started_at = trace.cast.session.statistics.started_at
    times = trace.samples["time"]
    settled = max(0.0, trace.cast.start + tcp.start_s - started_at) + _SETTLED_AFTER_S
    first = int(np.searchsorted(times, settled))
    if first >= times.size - 1:
        return 0.0
    link = trace.cast.receivers[tcp.receiver_index].link
    capacity = link.capacity_bytes(started_at + times[first], started_at + times[-1])
    delivered = trace.samples["tcp"][-1] - trace.samples["tcp"][first]
    return float(delivered / capacity)
