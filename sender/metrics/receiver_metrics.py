"""Prometheus metrics of the receivers of a cast, as the sender knows them.

With 500 machines in a room the number of series per machine matters. States and bottlenecks therefore have only a
series for the current one, with the value 1; Prometheus sees that the others have ended.
"""

from __future__ import annotations

import bisect
from collections import Counter
from typing import Final

from protocol.model.cast_state import CastState
from protocol.model.session_records import ReceiverState
from sender.cast.reporting.failure_cause import FailureCause, failure_cause
from sender.metrics.metric import Histogram, HistogramSample, Metric, MetricSources, Samples, per_machine

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
"""Bounds from a small image on a fast network to a large image on a slow network."""


def _receivers(sources: MetricSources) -> Samples:
    counts = Counter(record.state for record in sources.session.receivers.values())
    return [((state.value,), counts[state]) for state in ReceiverState]


def _states(sources: MetricSources) -> Samples:
    return [((record.name, record.state.value), 1.0) for record in sources.session.receivers.values()]


def _bottlenecks(sources: MetricSources) -> Samples:
    """Return only those of active receivers: alerts on reported values depend on this."""
    if sources.session.state is not CastState.CASTING:
        return []
    return [
        ((record.name, record.bottleneck.value), 1.0)
        for record in sources.session.receivers.values()
        if record.state.active
    ]


def _behind(sources: MetricSources) -> Samples:
    for record in sources.session.receivers.values():
        if record.state.active and record.slow_cause is not None:
            yield (record.name, record.slow_cause.value), 1.0


def _failed(sources: MetricSources) -> Samples:
    for record in sources.session.receivers.values():
        cause = failure_cause(record)
        if cause is not None:
            yield (record.name, cause.value), 1.0


def _failures(sources: MetricSources) -> Samples:
    counts = Counter(failure_cause(record) for record in sources.session.receivers.values())
    return [((cause.value,), counts[cause]) for cause in FailureCause]


def _completions(sources: MetricSources) -> HistogramSample:
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
        "1 for the current state of a receiver; other states have no series.",
        ("machine", "state"),
        _states,
    ),
    Metric(
        "diskcast_receiver_bottleneck",
        "gauge",
        "1 for the current bottleneck of a receiver that data is cast to; others have no series.",
        ("machine", "bottleneck"),
        _bottlenecks,
    ),
    Metric(
        "diskcast_receiver_failed",
        "gauge",
        "1 for a receiver that ended without the whole image, by cause; others have no series.",
        ("machine", "cause"),
        _failed,
    ),
    Metric(
        "diskcast_receiver_failures",
        "gauge",
        "Receivers that ended without the whole image, by cause.",
        ("cause",),
        _failures,
    ),
    Metric(
        "diskcast_receiver_rewritten_blocks",
        "gauge",
        "Blocks that read back wrong and were written again; known after the receiver has ended.",
        ("machine",),
        per_machine(lambda r: r.completion.blocks_rewritten if r.completion else 0),
    ),
    Metric(
        "diskcast_receiver_progress_ratio",
        "gauge",
        "Verified share of the blocks that were needed at the join, 0 to 1.",
        ("machine",),
        per_machine(lambda r: r.progress),
    ),
    Metric(
        "diskcast_receiver_loss_ratio",
        "gauge",
        "Share of the datagrams that don't arrive, smoothed.",
        ("machine",),
        per_machine(lambda r: r.loss),
    ),
    Metric(
        "diskcast_receiver_loss_burst_datagrams",
        "gauge",
        "Average length of loss bursts since the join; 0 without loss.",
        ("machine",),
        per_machine(lambda r: r.loss_burst),
    ),
    Metric(
        "diskcast_receiver_queue_delay_seconds",
        "gauge",
        "Recent delay of datagrams in queues on the way to the receiver.",
        ("machine",),
        per_machine(lambda r: r.queue_delay_s),
    ),
    Metric(
        "diskcast_receiver_sustainable_rate_bytes_per_second",
        "gauge",
        "Rate of data datagrams that the receiver could take; infinite while unlimited.",
        ("machine",),
        per_machine(lambda r: r.sustainable_bytes_per_s),
    ),
    Metric(
        "diskcast_receiver_slow",
        "gauge",
        "1 while an active receiver is much slower than the group.",
        ("machine",),
        per_machine(lambda r: float(r.state.active and r.slow_since is not None)),
    ),
    Metric(
        "diskcast_receiver_demoted",
        "gauge",
        "1 for a straggler, which is finished after the other receivers.",
        ("machine",),
        per_machine(lambda r: float(r.demoted)),
    ),
    Metric(
        "diskcast_receiver_behind",
        "gauge",
        "1 for an active receiver that is much slower than the group, or a straggler, by cause: its disk, the network "
        "to it, its processor. Others have no series.",
        ("machine", "cause"),
        _behind,
    ),
    Metric(
        "diskcast_receiver_buffer_fill_ratio",
        "gauge",
        "Used share of the buffers.",
        ("machine",),
        per_machine(lambda r: r.fill),
    ),
    Metric(
        "diskcast_receiver_rtt_seconds",
        "gauge",
        "Round-trip time.",
        ("machine",),
        per_machine(lambda r: r.rtt_s),
    ),
    Metric(
        "diskcast_receiver_written_bytes_total",
        "counter",
        "Bytes written to the target.",
        ("machine",),
        per_machine(lambda r: r.bytes_written),
    ),
    Metric(
        "diskcast_receiver_socket_drops_total",
        "counter",
        "Datagrams dropped at the socket: the agent was too slow.",
        ("machine",),
        per_machine(lambda r: r.socket_drop_count),
    ),
    Metric(
        "diskcast_receiver_pool_drops_total",
        "counter",
        "Symbols dropped without a free buffer: decoding or the disk was too slow.",
        ("machine",),
        per_machine(lambda r: r.pool_drop_count),
    ),
    Metric(
        "diskcast_receiver_nacks_total",
        "counter",
        "NACK datagrams sent by the receiver.",
        ("machine",),
        per_machine(lambda r: r.nacks_sent_count),
    ),
    Metric(
        "diskcast_receiver_nacked_symbols_total",
        "counter",
        "Symbols requested by the NACKs of the receiver.",
        ("machine",),
        per_machine(lambda r: r.nacked_symbol_count),
    ),
    Histogram(
        "diskcast_receiver_completion_seconds",
        "Time from the join of a receiver to its last verified block.",
        _completions,
    ),
)
