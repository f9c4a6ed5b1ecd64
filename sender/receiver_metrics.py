"""The metrics of each receiver of a cast, as its sender knows them."""

from __future__ import annotations

import bisect
from typing import Final

from protocol.session_records import ReceiverState
from protocol.wire.messages import LIMITERS
from sender.metric import Histogram, HistogramSample, Metric, Samples, Sources, per_receiver

COMPLETION_BUCKETS_S: Final = (
    5.0,
    10.0,
    20.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    1200.0,
    1800.0,
    3600.0,
    7200.0,
)
"""From a small image on a fast network to a large one on a slow network."""


def _receivers(sources: Sources) -> Samples:
    states = [record.state for record in sources.session.receivers.values()]
    return [((state.value,), states.count(state)) for state in ReceiverState]


def _receiver_states(sources: Sources) -> Samples:
    for record in sources.session.receivers.values():
        for state in ReceiverState:
            yield (record.name, state.value), float(record.state is state)


def _receiver_limiters(sources: Sources) -> Samples:
    for record in sources.session.receivers.values():
        for limiter in LIMITERS:
            yield (record.name, limiter), float(record.state.active and record.limiter == limiter)


def _completions(sources: Sources) -> HistogramSample:
    counts = [0] * (len(COMPLETION_BUCKETS_S) + 1)
    total_s = 0.0
    for record in sources.session.receivers.values():
        if record.state is ReceiverState.COMPLETE and record.completion is not None:
            counts[bisect.bisect_left(COMPLETION_BUCKETS_S, record.completion.seconds_total)] += 1
            total_s += record.completion.seconds_total
    return HistogramSample(COMPLETION_BUCKETS_S, tuple(counts), total_s)


RECEIVER_METRICS: Final[tuple[Metric | Histogram, ...]] = (
    Metric("diskcast_receivers", "gauge", "Receivers by state.", ("state",), _receivers),
    Metric(
        "diskcast_receiver_state",
        "gauge",
        "1 for the state that a receiver is in.",
        ("receiver", "state"),
        _receiver_states,
    ),
    Metric(
        "diskcast_receiver_limiter",
        "gauge",
        "1 for what limits an active receiver.",
        ("receiver", "limiter"),
        _receiver_limiters,
    ),
    Metric(
        "diskcast_receiver_progress_ratio",
        "gauge",
        "Share of the blocks needed at join that are verified, 0 to 1.",
        ("receiver",),
        per_receiver(lambda r: r.progress),
    ),
    Metric(
        "diskcast_receiver_loss_ratio",
        "gauge",
        "Share of the datagrams that don't arrive, smoothed.",
        ("receiver",),
        per_receiver(lambda r: r.loss),
    ),
    Metric(
        "diskcast_receiver_loss_burst_datagrams",
        "gauge",
        "Datagrams lost in a row, on average since it joined; 0 while none was lost.",
        ("receiver",),
        per_receiver(lambda r: r.loss_burst),
    ),
    Metric(
        "diskcast_receiver_queue_delay_seconds",
        "gauge",
        "Time that datagrams to it lately spent in queues on the way.",
        ("receiver",),
        per_receiver(lambda r: r.queue_delay_s),
    ),
    Metric(
        "diskcast_receiver_sustainable_rate_bytes_per_second",
        "gauge",
        "Rate of data datagrams that it could take; infinite while nothing has limited it.",
        ("receiver",),
        per_receiver(lambda r: r.sustainable_bytes_per_s),
    ),
    Metric(
        "diskcast_receiver_slow",
        "gauge",
        "1 while an active receiver is much slower than the group.",
        ("receiver",),
        per_receiver(lambda r: float(r.state.active and r.slow_since is not None)),
    ),
    Metric(
        "diskcast_receiver_demoted",
        "gauge",
        "1 for a straggler, which is finished after the others.",
        ("receiver",),
        per_receiver(lambda r: float(r.demoted)),
    ),
    Metric(
        "diskcast_receiver_buffer_fill_ratio",
        "gauge",
        "Share of its buffers that is in use.",
        ("receiver",),
        per_receiver(lambda r: r.fill),
    ),
    Metric(
        "diskcast_receiver_rtt_seconds",
        "gauge",
        "Its round-trip time.",
        ("receiver",),
        per_receiver(lambda r: r.rtt_s),
    ),
    Metric(
        "diskcast_receiver_written_bytes_total",
        "counter",
        "Bytes written to the target.",
        ("receiver",),
        per_receiver(lambda r: r.bytes_written),
    ),
    Metric(
        "diskcast_receiver_socket_drops_total",
        "counter",
        "Datagrams dropped at its socket: the program was too slow.",
        ("receiver",),
        per_receiver(lambda r: r.socket_drop_count),
    ),
    Metric(
        "diskcast_receiver_pool_drops_total",
        "counter",
        "Symbols dropped for want of a buffer: decoding or the disk was too slow.",
        ("receiver",),
        per_receiver(lambda r: r.pool_drop_count),
    ),
    Metric(
        "diskcast_receiver_nacks_total",
        "counter",
        "NACK datagrams that it sent.",
        ("receiver",),
        per_receiver(lambda r: r.nacks_sent_count),
    ),
    Metric(
        "diskcast_receiver_nacked_symbols_total",
        "counter",
        "Symbols that it asked for.",
        ("receiver",),
        per_receiver(lambda r: r.nacked_symbol_count),
    ),
    Histogram(
        "diskcast_receiver_completion_seconds",
        "Time from a receiver's join to its last verified block.",
        _completions,
    ),
)
