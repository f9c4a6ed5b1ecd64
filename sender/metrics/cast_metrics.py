"""Prometheus metrics of a cast: one table, read from the session's plain counters when somebody scrapes.

It serves ``diskcast send`` with its one cast and the daemon with its several. The data path pays nothing for them.
Labels are bounded: by the casts that a daemon runs at once and has run lately, by the receivers of a cast
(RECEIVER_COUNT_MAX), by the reasons for which datagrams are rejected, or by fixed lists.
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
    """Only the one of now: a series that is no longer there has ended, for Prometheus."""
    return [(_bottleneck_labels(sources.session, sources.session.bottleneck), 1.0)]


def _bottleneck_seconds(sources: MetricSources) -> Samples:
    """Causes that aren't one machine's are there from the start: a counter that appears has no first increase."""
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
        "diskcast_cast_info", "gauge", "1; what is cast, and where to.", ("image_id", "group"), _cast_info
    ),
    Metric("diskcast_cast_state", "gauge", "1 for the state that the cast is in.", ("state",), _cast_state),
    Metric(
        "diskcast_cast_paused",
        "gauge",
        "1 while the operator has paused it.",
        (),
        of_session(lambda s: float(s.paused)),
    ),
    Metric(
        "diskcast_cast_outcome",
        "gauge",
        "1; how a cast ended: complete, cancelled, or failed by an error of the sender's. None before.",
        ("outcome",),
        _cast_outcome,
    ),
    Metric(
        "diskcast_cast_elapsed_seconds",
        "gauge",
        "Time since image data began to be sent, until the cast's end.",
        (),
        _elapsed_s,
    ),
    Metric(
        "diskcast_pass_index",
        "gauge",
        "Sweep over the image.",
        (),
        of_session(lambda s: s.image_demand.pass_index),
    ),
    Metric(
        "diskcast_pass_progress_ratio",
        "gauge",
        "How far the running sweep over the image has come, 0 to 1.",
        (),
        of_session(lambda s: s.image_demand.progress),
    ),
    Metric(
        "diskcast_wanted_blocks",
        "gauge",
        "Blocks that a sweep has still to send.",
        (),
        of_session(lambda s: s.image_demand.wanted_count + s.manifest_demand.wanted_count),
    ),
    Metric(
        "diskcast_rate_bytes_per_second",
        "gauge",
        "Rate that is paced to; 0 when the cast has ended.",
        (),
        of_session(lambda s: 0.0 if s.state is CastState.ENDED else s.rate_bytes_per_s),
    ),
    Metric(
        "diskcast_achieved_rate_bytes_per_second",
        "gauge",
        "Rate at which datagrams really left, smoothed; 0 when the cast has ended.",
        (),
        of_session(lambda s: 0.0 if s.state is CastState.ENDED else s.achieved_bytes_per_s),
    ),
    Metric(
        "diskcast_bottleneck",
        "gauge",
        "1; what holds the rate down now and, where it is one machine's doing, whose.",
        ("cause", "machine"),
        _bottleneck,
    ),
    Metric(
        "diskcast_bottleneck_seconds_total",
        "counter",
        "Time for which the rate was held down, by cause and machine.",
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
        "Blocks that are sent at the same time, so that a lost burst costs each of them little.",
        (),
        of_session(lambda s: s.interleave_depth),
    ),
    Metric(
        "diskcast_sent_bytes_total",
        "counter",
        "Bytes of data datagrams sent, headers of UDP and below left out.",
        (),
        of_session(lambda s: s.statistics.bytes_transmitted),
    ),
    Metric(
        "diskcast_sent_symbols_total",
        "counter",
        "Symbols planned for sending: of the image, proactive parity, or answers to NACKs.",
        ("cause",),
        _sent_symbols,
    ),
    Metric(
        "diskcast_sent_datagrams_total",
        "counter",
        "Data datagrams handed to the kernel.",
        (),
        value(lambda sources: sources.transmitter.datagrams_sent_count),
    ),
    Metric(
        "diskcast_send_calls_total",
        "counter",
        "System calls that took them: far fewer where segmentation works.",
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
        "How much after its time a burst left that had to wait for its turn: the pacing's jitter.",
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
        "Symbols that NACKs asked for: the deficits, summed.",
        (),
        of_session(lambda s: s.statistics.nacked_symbol_count),
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
        "Joins, those of returning receivers included.",
        (),
        of_session(lambda s: s.statistics.joins_count),
    ),
    *RECEIVER_METRICS,
)
