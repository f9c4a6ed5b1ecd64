"""Prometheus metrics of a cast: one table, read from the session's plain counters when somebody scrapes.

The data path pays nothing for them. Labels are bounded: by the receivers of a cast (RECEIVER_COUNT_MAX), by the
reasons for which datagrams are rejected, or by fixed lists.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as MetricFamily
from prometheus_client.registry import Collector

from protocol.errors import AddressInUseError, ConfigurationError
from protocol.json_fields import STATE_NAMES
from protocol.receiver_record import ReceiverRecord
from protocol.sender_session import SenderSession
from protocol.session_records import ReceiverState
from protocol.wire.codec import REJECT_REASONS
from protocol.wire.messages import LIMITERS
from sender.feedback import FeedbackPort
from sender.shared_session import SharedSession
from sender.transmitter import TransmitterStatistics

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

Samples = Iterable[tuple[tuple[str, ...], float]]
"""Label values and a value."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sources:
    """Where the values come from; read under the session's lock."""

    session: SenderSession
    transmitter: TransmitterStatistics
    feedback: FeedbackPort


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table.

    Attributes:
        name: as it is exposed, with unit and ``_total``.
        kind: its Prometheus type.
        help: what it says.
        labels: their names.
        read: the samples; for a histogram, every observed value with its label values.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]
    read: Callable[[Sources], Samples]


def _value(read: Callable[[Sources], float]) -> Callable[[Sources], Samples]:
    return lambda sources: [((), read(sources))]


def _session(read: Callable[[SenderSession], float]) -> Callable[[Sources], Samples]:
    return lambda sources: [((), read(sources.session))]


def _per_receiver(read: Callable[[ReceiverRecord], float]) -> Callable[[Sources], Samples]:
    return lambda sources: [((record.name,), read(record)) for record in sources.session.receivers.values()]


def _cast_info(sources: Sources) -> Samples:
    parameters = sources.session.parameters
    cast_id = f"{parameters.cast_id:08x}"
    return [((cast_id, parameters.image_name, parameters.image_id.hex(), parameters.group), 1.0)]


def _cast_state(sources: Sources) -> Samples:
    return [((name,), float(number == sources.session.state)) for number, name in STATE_NAMES.items()]


def _sent_symbols(sources: Sources) -> Samples:
    demands = (sources.session.manifest_demand, sources.session.image_demand)
    return [
        (("source",), sum(demand.sent_source_count for demand in demands)),
        (("parity",), sum(demand.sent_parity_count for demand in demands)),
        (("repair",), sum(demand.sent_repair_count for demand in demands)),
    ]


def _rejected(sources: Sources) -> Samples:
    return [((reason,), sources.session.rejects.get(reason, 0)) for reason in REJECT_REASONS]


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


def _completions(sources: Sources) -> Samples:
    for record in sources.session.receivers.values():
        if record.state is ReceiverState.COMPLETE and record.completion is not None:
            yield (), record.completion.seconds_total


METRICS: Final[tuple[Metric, ...]] = (
    Metric(
        "diskcast_cast_info", "gauge", "1; what is cast.", ("cast", "image", "image_id", "group"), _cast_info
    ),
    Metric("diskcast_cast_state", "gauge", "1 for the state that the cast is in.", ("state",), _cast_state),
    Metric(
        "diskcast_pass_index",
        "gauge",
        "Sweep over the image.",
        (),
        _session(lambda s: s.image_demand.pass_index),
    ),
    Metric(
        "diskcast_pass_progress_ratio",
        "gauge",
        "How far the running sweep over the image has come, 0 to 1.",
        (),
        _session(lambda s: s.image_demand.progress),
    ),
    Metric(
        "diskcast_wanted_blocks",
        "gauge",
        "Blocks that a sweep has still to send.",
        (),
        _session(lambda s: s.image_demand.wanted_count + s.manifest_demand.wanted_count),
    ),
    Metric(
        "diskcast_rate_bytes_per_second",
        "gauge",
        "Rate that is paced to.",
        (),
        _session(lambda s: s.rate_bytes_per_s),
    ),
    Metric(
        "diskcast_achieved_rate_bytes_per_second",
        "gauge",
        "Rate at which datagrams really left, smoothed.",
        (),
        _session(lambda s: s.achieved_bytes_per_s),
    ),
    Metric("diskcast_grtt_seconds", "gauge", "Group round-trip time.", (), _session(lambda s: s.grtt_s)),
    Metric(
        "diskcast_parity_ratio",
        "gauge",
        "Proactive repair symbols per source symbol.",
        (),
        _session(lambda s: s.parity),
    ),
    Metric(
        "diskcast_sent_bytes_total",
        "counter",
        "Bytes of data datagrams sent, headers of UDP and below left out.",
        (),
        _session(lambda s: s.statistics.bytes_transmitted),
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
        _value(lambda sources: sources.transmitter.datagrams_sent_count),
    ),
    Metric(
        "diskcast_send_calls_total",
        "counter",
        "System calls that took them: far fewer where segmentation works.",
        (),
        _value(lambda sources: sources.transmitter.send_calls_count),
    ),
    Metric(
        "diskcast_send_queue_full_total",
        "counter",
        "Sends that had to wait because the interface's queue was full.",
        (),
        _value(lambda sources: sources.transmitter.full_queue_count),
    ),
    Metric(
        "diskcast_feedback_datagrams_total",
        "counter",
        "Datagrams received on the feedback port.",
        (),
        _value(lambda sources: sources.feedback.received_count),
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
        _session(lambda s: s.statistics.nacks_received_count),
    ),
    Metric(
        "diskcast_nacked_symbols_total",
        "counter",
        "Symbols that NACKs asked for: the deficits, summed.",
        (),
        _session(lambda s: s.statistics.nacked_symbol_count),
    ),
    Metric(
        "diskcast_reports_received_total",
        "counter",
        "REPORT datagrams received.",
        (),
        _session(lambda s: s.statistics.reports_received_count),
    ),
    Metric(
        "diskcast_flushes_sent_total",
        "counter",
        "FLUSH datagrams sent.",
        (),
        _session(lambda s: s.statistics.flushes_sent_count),
    ),
    Metric(
        "diskcast_joins_total",
        "counter",
        "Joins, those of returning receivers included.",
        (),
        _session(lambda s: s.statistics.joins_count),
    ),
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
        _per_receiver(lambda r: r.progress),
    ),
    Metric(
        "diskcast_receiver_loss_ratio",
        "gauge",
        "Share of the datagrams that don't arrive, smoothed.",
        ("receiver",),
        _per_receiver(lambda r: r.loss),
    ),
    Metric(
        "diskcast_receiver_buffer_fill_ratio",
        "gauge",
        "Share of its buffers that is in use.",
        ("receiver",),
        _per_receiver(lambda r: r.fill),
    ),
    Metric(
        "diskcast_receiver_rtt_seconds",
        "gauge",
        "Its round-trip time.",
        ("receiver",),
        _per_receiver(lambda r: r.rtt_s),
    ),
    Metric(
        "diskcast_receiver_written_bytes_total",
        "counter",
        "Bytes written to the target.",
        ("receiver",),
        _per_receiver(lambda r: r.bytes_written),
    ),
    Metric(
        "diskcast_receiver_socket_drops_total",
        "counter",
        "Datagrams dropped at its socket: the program was too slow.",
        ("receiver",),
        _per_receiver(lambda r: r.socket_drop_count),
    ),
    Metric(
        "diskcast_receiver_pool_drops_total",
        "counter",
        "Symbols dropped for want of a buffer: decoding or the disk was too slow.",
        ("receiver",),
        _per_receiver(lambda r: r.pool_drop_count),
    ),
    Metric(
        "diskcast_receiver_nacks_total",
        "counter",
        "NACK datagrams that it sent.",
        ("receiver",),
        _per_receiver(lambda r: r.nacks_sent_count),
    ),
    Metric(
        "diskcast_receiver_nacked_symbols_total",
        "counter",
        "Symbols that it asked for.",
        ("receiver",),
        _per_receiver(lambda r: r.nacked_symbol_count),
    ),
    Metric(
        "diskcast_receiver_completion_seconds",
        "histogram",
        "Time from a receiver's join to its last verified block.",
        (),
        _completions,
    ),
)


class CastCollector(Collector):
    """Reads the table when Prometheus scrapes."""

    def __init__(
        self, shared: SharedSession, transmitter: TransmitterStatistics, feedback: FeedbackPort
    ) -> None:
        """Read from these."""
        self._shared = shared
        self._transmitter = transmitter
        self._feedback = feedback

    def collect(self) -> Iterator[MetricFamily]:
        """One family a row; the samples are copied under the lock and written out after it."""
        with self._shared.look() as (session, _now):
            sources = Sources(session, self._transmitter, self._feedback)
            rows = [(metric, list(metric.read(sources))) for metric in METRICS]
        for metric, samples in rows:
            yield _family(metric, samples)


def _family(metric: Metric, samples: list[tuple[tuple[str, ...], float]]) -> MetricFamily:
    if metric.kind == "histogram":
        values = [value for _labels, value in samples]
        bounds = (*COMPLETION_BUCKETS_S, math.inf)
        buckets = [
            ("+Inf" if bound == math.inf else str(bound), sum(value <= bound for value in values))
            for bound in bounds
        ]
        return HistogramMetricFamily(metric.name, metric.help, buckets=buckets, sum_value=sum(values))
    family_class = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = family_class(metric.name, metric.help, labels=metric.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


@contextlib.contextmanager
def metrics_server(collector: CastCollector, address: str, port: int) -> Iterator[int]:
    """Serve ``/metrics`` in a thread of its own while the context lasts; yields the port.

    Raises:
        AddressInUseError: the port is taken.
        ConfigurationError: ``address`` isn't one of this machine, or the port isn't allowed.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(
                f"the metrics port {port} of {address} is taken: choose another with --metrics-port"
            ) from error
        raise ConfigurationError(
            f"can't serve metrics on {address} port {port}: {error}; choose others with --metrics-address and "
            "--metrics-port"
        ) from error
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
