"""Prometheus metrics of a cast: one table, read from the session's counters on each scrape.

``diskcast send`` and the daemon use the same table; the data path does no work for it. Labels are bounded: by the
running and recent casts of a daemon, by the receivers of a cast (RECEIVER_COUNT_MAX), by the reasons for rejected
datagrams, or by fixed lists.
"""

from __future__ import annotations

from typing import Final

from protocol.model.bottleneck import Bottleneck, Cause
from protocol.model.cast_state import CastState
from protocol.sending.sender_session import SenderSession
from protocol.wire.codec import REJECT_REASONS
from sender.cast.transmission.transmitter import LATENESS_BOUNDS_S
from sender.metrics.metric import (
    Histogram,
    HistogramSample,
    Metric,
    MetricSources,
    Samples,
    of_session,
    value,
)
from sender.metrics.receiver_metrics import RECEIVER_METRICS


def _cast_info(sources: MetricSources) -> Samples:
    parameters = sources.session.parameters
    return [((parameters.image_id.hex(), parameters.group), 1.0)]


def _cast_state(sources: MetricSources) -> Samples:
    return [((state.label,), float(state is sources.session.state)) for state in CastState]


def _cast_outcome(sources: MetricSources) -> Samples:
    session = sources.session
    return [((session.outcome.label,), 1.0)] if session.state is CastState.ENDED else []


def _elapsed_s(sources: MetricSources) -> Samples:
    statistics = sources.session.statistics
    if statistics.started_at is None:
        return [((), 0.0)]
    end = statistics.ended_at
    return [((), (sources.now if end is None else end) - statistics.started_at)]


def _sent_symbols(sources: MetricSources) -> Samples:
    demands = (sources.session.manifest_demand, sources.session.image_demand)
    return [
        (("source",), sum(demand.sent_source_count for demand in demands)),
        (("parity",), sum(demand.sent_parity_count for demand in demands)),
        (("repair",), sum(demand.sent_repair_count for demand in demands)),
    ]


def _rejected(sources: MetricSources) -> Samples:
    return [((reason,), sources.session.rejects.get(reason, 0)) for reason in REJECT_REASONS]


def _bottleneck(sources: MetricSources) -> Samples:
    """Return only the current bottleneck: for Prometheus, a series that disappears has ended."""
    return [(_bottleneck_labels(sources.session, sources.session.bottleneck), 1.0)]


def _bottleneck_seconds(sources: MetricSources) -> Samples:
    """Return all times, with causes without a machine from the start: a counter that appears has no first increase."""
    session = sources.session
    seconds = {Bottleneck(cause, None): 0.0 for cause in Cause} | session.bottleneck_seconds
    return [(_bottleneck_labels(session, bottleneck), value) for bottleneck, value in seconds.items()]


def _bottleneck_labels(session: SenderSession, bottleneck: Bottleneck) -> tuple[str, str]:
    machine = "" if bottleneck.receiver_id is None else session.receivers[bottleneck.receiver_id].name
    return bottleneck.cause.value, machine


def _burst_lateness(sources: MetricSources) -> HistogramSample:
    lateness = sources.transmitter.burst_lateness
    return HistogramSample(LATENESS_BOUNDS_S, tuple(lateness.bucket_counts), lateness.sum_s)


METRICS: Final[tuple[Metric | Histogram, ...]] = (
    Metric(
        "diskcast_cast_info",
        "gauge",
        "1; the image and the multicast group of the cast.",
        ("image_id", "group"),
        _cast_info,
    ),
    Metric(
        "diskcast_cast_state",
        "gauge",
        "1 for the current state of the cast, 0 for the others.",
        ("state",),
        _cast_state,
    ),
    Metric(
        "diskcast_cast_paused",
        "gauge",
        "1 while the cast is paused by the operator.",
        (),
        of_session(lambda s: float(s.paused)),
    ),
    Metric(
        "diskcast_cast_outcome",
        "gauge",
        "1; outcome of an ended cast: complete, cancelled, or failed by an error of the sender. Absent before.",
        ("outcome",),
        _cast_outcome,
    ),
    Metric(
        "diskcast_cast_elapsed_seconds",
        "gauge",
        "Time from the first image data to now, or to the end of the cast.",
        (),
        _elapsed_s,
    ),
    Metric(
        "diskcast_pass_index",
        "gauge",
        "Current pass over the image, 0 for the first.",
        (),
        of_session(lambda s: s.image_demand.pass_index),
    ),
    Metric(
        "diskcast_pass_progress_ratio",
        "gauge",
        "Progress of the current pass over the image, 0 to 1.",
        (),
        of_session(lambda s: s.image_demand.progress),
    ),
    Metric(
        "diskcast_wanted_blocks",
        "gauge",
        "Blocks still to send in the current pass.",
        (),
        of_session(lambda s: s.image_demand.wanted_count + s.manifest_demand.wanted_count),
    ),
    Metric(
        "diskcast_rate_bytes_per_second",
        "gauge",
        "Paced rate; 0 after the end of the cast.",
        (),
        of_session(lambda s: 0.0 if s.state is CastState.ENDED else s.rate_bytes_per_s),
    ),
    Metric(
        "diskcast_achieved_rate_bytes_per_second",
        "gauge",
        "Measured rate of data datagrams, smoothed; 0 after the end of the cast.",
        (),
        of_session(lambda s: 0.0 if s.state is CastState.ENDED else s.achieved_bytes_per_s),
    ),
    Metric(
        "diskcast_bottleneck",
        "gauge",
        "1 for the current bottleneck: its cause and, if a single machine causes it, that machine.",
        ("cause", "machine"),
        _bottleneck,
    ),
    Metric(
        "diskcast_bottleneck_seconds_total",
        "counter",
        "Time for which each bottleneck limited the rate, by cause and machine.",
        ("cause", "machine"),
        _bottleneck_seconds,
    ),
    Metric("diskcast_grtt_seconds", "gauge", "Group round-trip time.", (), of_session(lambda s: s.grtt_s)),
    Metric(
        "diskcast_parity_ratio",
        "gauge",
        "Proactive repair symbols per source symbol.",
        (),
        of_session(lambda s: s.parity),
    ),
    Metric(
        "diskcast_interleave_depth_blocks",
        "gauge",
        "Blocks that are interleaved, so that a lost burst costs each of them little.",
        (),
        of_session(lambda s: s.interleave_depth),
    ),
    Metric(
        "diskcast_sent_bytes_total",
        "counter",
        "Bytes of data datagrams sent, without UDP and lower headers.",
        (),
        of_session(lambda s: s.statistics.bytes_transmitted),
    ),
    Metric(
        "diskcast_sent_symbols_total",
        "counter",
        "Symbols planned, by cause: source symbols, proactive parity, or repair for NACKs.",
        ("cause",),
        _sent_symbols,
    ),
    Metric(
        "diskcast_sent_datagrams_total",
        "counter",
        "Data datagrams passed to the kernel.",
        (),
        value(lambda sources: sources.transmitter.datagrams_sent_count),
    ),
    Metric(
        "diskcast_send_calls_total",
        "counter",
        "System calls for sending them: far fewer with segmentation offload.",
        (),
        value(lambda sources: sources.transmitter.send_calls_count),
    ),
    Metric(
        "diskcast_send_queue_full_total",
        "counter",
        "Sends that had to wait because the interface's queue was full.",
        (),
        value(lambda sources: sources.transmitter.full_queue_count),
    ),
    Histogram(
        "diskcast_burst_lateness_seconds",
        "Delay of paced bursts after their scheduled time: the jitter of the pacing.",
        _burst_lateness,
    ),
    Metric(
        "diskcast_feedback_datagrams_total",
        "counter",
        "Datagrams received on the feedback port.",
        (),
        value(lambda sources: sources.feedback.received_count),
    ),
    Metric(
        "diskcast_rejected_datagrams_total",
        "counter",
        "Feedback datagrams that were dropped, by reason.",
        ("reason",),
        _rejected,
    ),
    Metric(
        "diskcast_nacks_received_total",
        "counter",
        "NACK datagrams received.",
        (),
        of_session(lambda s: s.statistics.nacks_received_count),
    ),
    Metric(
        "diskcast_nacked_symbols_total",
        "counter",
        "Symbols requested by NACKs: the sum of the deficits.",
        (),
        of_session(lambda s: s.statistics.nacked_symbol_count),
    ),
    Metric(
        "diskcast_block_digests_total",
        "counter",
        "Blocks whose digests were sent because a machine found symbols in them that aren't the sender's.",
        (),
        of_session(lambda s: s.statistics.digests_sent_count),
    ),
    Metric(
        "diskcast_fetched_blocks_total",
        "counter",
        "Blocks that machines fetched over the control API because digests didn't help.",
        (),
        of_session(lambda s: s.statistics.blocks_served_count),
    ),
    Metric(
        "diskcast_reports_received_total",
        "counter",
        "REPORT datagrams received.",
        (),
        of_session(lambda s: s.statistics.reports_received_count),
    ),
    Metric(
        "diskcast_flushes_sent_total",
        "counter",
        "FLUSH datagrams sent.",
        (),
        of_session(lambda s: s.statistics.flushes_sent_count),
    ),
    Metric(
        "diskcast_joins_total",
        "counter",
        "Joins, including rejoins.",
        (),
        of_session(lambda s: s.statistics.joins_count),
    ),
    *RECEIVER_METRICS,
)
